"""MoCo-v2 and PLM: what their losses must do, against the loss written out plainly."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from colocate.base.errors import UserError
from colocate.core.geometry import Crop
from colocate.core.settings import ViewConfig
from colocate.core.views import Batch, sample_views
from colocate.methods.moco import MoCo
from colocate.methods.rules import MostSimilar, Overlap
from colocate.methods.settings import MoCoConfig
from colocate.training.loop import build_method
from tests.reference.overlap import overlap_matrix
from tests.tiny import double, each_view, tiny_recipe

PLM = MoCoConfig(match=Overlap(), queue_length=20, hidden=16, width=8, dense=0.3)


def built(config: MoCoConfig = PLM) -> MoCo:
    method = build_method(tiny_recipe(Path(), Path(), method=config)).double().eval()  # batch statistics stay
    assert isinstance(method, MoCo)
    return method


def batch_of(count: int = 6, epoch: int = 0, **more: Any) -> Batch:
    """In float64; `more` are settings of the views."""
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (count, 3, 96, 96), dtype=torch.uint8, generator=generator)
    config = ViewConfig(size=96, symmetries="all", local_size=64, local_area=(0.1, 0.4), **more)
    return each_view(sample_views(tiles, config, epoch=epoch), double)


def plain_loss(
    method: MoCo, batch: Batch, weighted: bool = True, both_ways: bool = True, attention: bool = False
) -> torch.Tensor:
    """The paper's equations row by row, with the n^4 overlap and every logit written out; several query views."""
    k = method.key.encoder(batch.second.images)
    past_cells = F.normalize(k.cells.flatten(0, 1), dim=1) if method.past_cells is None else method.past_cells.vectors

    def term(a: torch.Tensor, b: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        a, b = F.normalize(a, dim=0), F.normalize(b, dim=0)
        logits = torch.cat([(a @ b)[None], past @ a]) / method.temperature
        return logits.logsumexp(0) - logits[0]

    wholes, dense = [], []
    for view in (batch.first, *batch.locals):
        q = method.query(view.images)
        rows = []
        past_wholes = None if method.past_wholes is None else method.past_wholes.vectors
        wholes += [term(q.whole[i], k.whole[i], past_wholes) for i in range(len(q.whole)) if past_wholes is not None]
        for tile in range(len(q.whole)):
            one = slice(tile, tile + 1)
            there = overlap_matrix(view.crop.select(one), batch.second.crop.select(one), q.grid, k.grid)[0]
            back = overlap_matrix(batch.second.crop.select(one), view.crop.select(one), k.grid, q.grid)[0]
            sides = [(there, q.cells[tile], k.cells[tile], method.key.encoder.align, True)]
            sides += [(back, k.cells[tile], q.cells[tile], method.query.align, False)] if both_ways else []
            for shares, mine, other, align, queries in sides:
                area = shares
                if attention:  # no gradient through it
                    alike = F.normalize(mine.detach(), dim=1) @ F.normalize(other.detach(), dim=1).T
                    area = shares * (alike / 0.2).exp()
                for cell in range(len(mine)):
                    weight = shares[cell].sum()
                    pooled = area[cell] @ other / area[cell].sum() if weight > 0 else 0 * other[0]
                    pooled = pooled if align is None else align(pooled)
                    a, b = (mine[cell], pooled) if queries else (pooled, mine[cell])
                    counts = weight if weighted else (weight > 0).double()
                    rows.append(counts * term(a, b, past_cells))
        dense.append(torch.stack(rows).mean())
    whole = (1 - method.dense) * torch.stack(wholes).mean() if wholes else 0
    return whole + method.dense * torch.stack(dense).mean()


ABLATIONS = {
    "the paper": (PLM, 0, {}),
    "without area weights": (replace(PLM, match=Overlap(weighted=False)), 0, {"weighted": False}),
    "without the linear after pooling": (replace(PLM, align=False), 0, {}),
    "one way": (replace(PLM, both_ways=False, align=False), 0, {"both_ways": False}),
    "a coarser grid": (replace(PLM, most_cells=2), 0, {}),
    "lambda": (replace(PLM, dense=0.75), 0, {}),
    "cells of the batch as negatives": (replace(PLM, negatives="cells"), 0, {}),
    "cells alone": (replace(PLM, negatives="cells", norm=True, dense=1.0), 2, {}),
    "local views": (PLM, 2, {}),
    "attention": (replace(PLM, match=Overlap(attention=True)), 0, {"attention": True}),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_loss_is_the_papers(name: str) -> None:
    config, local_views, changes = ABLATIONS[name]
    method, batch = built(config), batch_of(3, local_views=local_views)
    plain = copy.deepcopy(method)
    losses = method(batch)
    expected = plain_loss(plain, batch, **changes)
    torch.testing.assert_close(losses.total(), expected)
    losses.total().backward()
    expected.backward()
    for (name, mine), theirs in zip(method.query.named_parameters(), plain.query.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None, name
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


def test_moco_v2_is_plm_with_nothing_on_cells() -> None:
    plm = built(replace(PLM, dense=0.0))
    moco = built(replace(PLM, match=None))
    moco.load_state_dict(plm.state_dict(), strict=False)
    assert moco.query.cells is None and moco.past_cells is None and moco.dense == 0
    batch = batch_of()
    torch.testing.assert_close(moco(batch).total(), plm(batch).total())
    assert set(moco(batch).terms) == {"whole"}


def test_views_that_share_nothing_give_no_dense_loss() -> None:
    method, batch = built(), batch_of()
    left, right = (Crop.of([ends] * 6) for ends in ([0, 0, 96, 40], [0, 96, 96, 50]))
    apart = Batch(batch.first._replace(crop=left), batch.second._replace(crop=right), batch.tiles)
    losses = method(apart)
    assert losses.terms["cells"] == 0
    losses.total().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.query.parameters())


def test_gathered_batches_move_the_key_once_a_step() -> None:
    once, twice = PLM.build(built().backbone, 1), PLM.build(built().backbone, 2)
    assert twice.key.momentum**2 == pytest.approx(once.key.momentum)


def test_a_linear_layer_that_could_not_learn_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.both-ways"):
        replace(PLM, both_ways=False)


def test_densecl_follows_its_own_features() -> None:
    """Query cells alone, partners by backbone similarity, no weights, no linear: written out."""
    config = replace(PLM, match=MostSimilar(), both_ways=False, align=False)
    method, batch = built(config), batch_of()
    plain = copy.deepcopy(method)
    losses = method(batch)
    assert plain.past_cells is not None
    q, k = plain.query(batch.first.images), plain.key.encoder(batch.second.images)
    rows = []
    for tile in range(6):
        for cell, feature in zip(q.cells[tile], q.field[tile], strict=True):
            similar = torch.stack([F.cosine_similarity(feature, other, dim=0) for other in k.field[tile]])
            a, b = F.normalize(cell, dim=0), F.normalize(k.cells[tile, similar.argmax()], dim=0)
            logits = torch.cat([(a @ b)[None], plain.past_cells.vectors @ a]) / plain.temperature
            rows.append(logits.logsumexp(0) - logits[0])
    torch.testing.assert_close(losses.terms["cells"], method.dense * torch.stack(rows).mean())
