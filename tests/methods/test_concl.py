"""ConCL and PLM's form of it: what counts when, and the concept loss against plain loops."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from colocate.base.errors import UserError
from colocate.core.views import Batch
from colocate.methods.concl import LEAST_CELLS, ConCL
from colocate.methods.rules import Overlap
from colocate.methods.settings import ConCLConfig, MoCoConfig
from colocate.models.backbones import Backbone
from colocate.training.loop import build_method
from tests.methods.test_moco import batch_of
from tests.reference.overlap import overlap_matrix
from tests.tiny import tiny_recipe

MOCO = MoCoConfig(queue_length=20, hidden=16, width=8)
CONFIG = ConCLConfig(MOCO, concepts=3, warmup_epochs=2)
PLM = replace(CONFIG, moco=replace(MOCO, match=Overlap(), dense=0.4))


def built(config: ConCLConfig = CONFIG) -> ConCL:
    method = build_method(tiny_recipe(Path(), Path(), method=config)).double().eval()
    assert isinstance(method, ConCL)
    return method


def batch_at(epoch: int) -> Batch:
    return batch_of(5, epoch, reference=True)


def plain_concepts(method: ConCL, batch: Batch) -> tuple[torch.Tensor, int]:
    """The concept loss tile by tile and concept by concept, and how many concepts were shown twice."""
    assert batch.reference is not None
    clusters, grid = method.cluster(batch.reference)
    q, k = method.query(batch.first.images), method.moco.key.encoder(batch.second.images)
    losses = []
    for tile in range(len(q.whole)):
        for concept in range(clusters.shape[2]):
            means, covered = [], []
            for view, features in ((batch.first, q), (batch.second, k)):
                one = slice(tile, tile + 1)
                shares = overlap_matrix(view.crop.select(one), batch.reference.crop.select(one), features.grid, grid)[0]
                parts = shares @ clusters[tile, :, concept].double()
                means.append((parts[:, None] * features.field[tile]).sum(0) / parts.sum())
                covered.append(float(parts.sum()))
            if min(covered) < LEAST_CELLS:
                continue
            heads = method.query.whole, method.moco.key.encoder.whole
            a, b = (F.normalize(head(mean), dim=0) for head, mean in zip(heads, means, strict=True))
            logits = torch.cat([(a @ b)[None], method.past_prototypes.vectors @ a]) / method.moco.temperature
            losses.append(logits.logsumexp(0) - logits[0])
    return torch.stack(losses).mean(), len(losses)


def test_concepts_are_contrasted_as_the_paper_says() -> None:
    method, batch = built(), batch_at(2)
    method.moco.key.follow(method.query)  # and once more, in forward: they stay equal
    plain = copy.deepcopy(method)
    losses = method(batch)
    expected, count = plain_concepts(plain, batch)
    assert "cells" not in losses.terms
    torch.testing.assert_close(losses.terms["concepts"], expected)
    torch.testing.assert_close(losses.total(), expected)
    assert 5 < count <= 15
    assert int(method.past_prototypes.position) == count % 20
    losses.total().backward()
    expected.backward()
    for (name, mine), theirs in zip(method.query.named_parameters(), plain.query.parameters(), strict=True):
        assert mine.grad is not None, name
        other = torch.zeros_like(mine) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(mine.grad, other, rtol=1e-5, atol=1e-7, msg=name)  # weights are float32


@pytest.mark.parametrize("config", [CONFIG, PLM])
def test_only_whole_views_count_before_the_warm_up_ends(config: ConCLConfig) -> None:
    method = built(config)
    early = method(batch_at(1))
    assert early.terms["concepts"] == 0 and early.total() == early.terms["whole"] > 0
    early.total().backward()
    assert [name for name, p in method.query.named_parameters() if p.grad is None] == []
    assert not method.past_prototypes.used

    late = method(batch_at(2))
    assert late.terms["whole"] == 0 < late.terms["concepts"]
    if config is PLM:
        late_terms = method.moco.contrast(batch_at(2))
        assert late_terms.cells is not None and late.terms["cells"] > 0
    torch.testing.assert_close(late.total(), late.terms["concepts"] + late.terms.get("cells", 0))


def test_shares_of_the_terms_are_lambdas() -> None:
    alike = {name: built(replace(PLM, moco=replace(PLM.moco, dense=dense))) for name, dense in (("a", 0.0), ("b", 0.4))}
    a, b = (method(batch_at(2)) for method in alike.values())
    torch.testing.assert_close(b.terms["concepts"], 0.6 * a.terms["concepts"])
    assert a.terms["cells"] == 0 < b.terms["cells"]


def test_clustering_leaves_the_key_encoder_as_it_was() -> None:
    method, batch = built().train(), batch_at(2)
    assert batch.reference is not None
    before = copy.deepcopy(method.state_dict())
    method.cluster(batch.reference)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    assert method.moco.key.encoder.training


def test_what_it_cannot_do_without_is_named() -> None:
    with pytest.raises(UserError, match=r"switch it on with --views\.reference"):
        built()(batch_at(0)._replace(reference=None))
    with pytest.raises(UserError, match=r"cells cannot be 500 concepts"):
        built(replace(CONFIG, concepts=500))(batch_at(2))
    with pytest.raises(UserError, match=r"clusters the stage of stride 16, which learns nothing with --cell-stride 8"):
        CONFIG.build(Backbone("resnet18", cell_stride=8))
    with pytest.raises(UserError, match="clusters the stage of stride 16"):
        CONFIG.build(Backbone("resnet18", output_stride=16, cell_stride=8))
    CONFIG.build(Backbone("test_vit", cell_stride=16))  # whose blocks all have one stride
