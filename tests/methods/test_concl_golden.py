"""ConCL's concepts in its reference implementation's published values, and where carrying them exactly differs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colocate.core.geometry import Crop
from colocate.core.matching import overlap
from colocate.core.views import Batch, View
from colocate.methods.concl import LEAST_CELLS, ConCL, prototypes
from colocate.methods.moco import MoCo
from colocate.methods.settings import ConCLConfig, MoCoConfig
from colocate.models.encoder import Encoder, Features
from tests.reference import concl as slow
from tests.reference.info_nce import info_nce as plain_info_nce

GRID, CELLS = (14, 14), (7, 7)
SIDES = ("query", "key")


@pytest.fixture(scope="module")
def values(golden: Path) -> dict[str, Tensor]:
    with np.load(golden / "vicregl_concl.npz") as stored:
        return {key.removeprefix("concl."): torch.from_numpy(stored[key]) for key in stored if key.startswith("concl.")}


class Concepts(NamedTuple):
    """What a view shows of its reference view's concepts, both ways: b x n clusters, b x n x k shares."""

    published: Tensor
    exact: Tensor


def view_of(values: dict[str, Tensor], side: str) -> Crop:
    """A view's place in its reference view, which is the unit square."""
    top, left, bottom, right, flip = values["view_in_reference"][:, SIDES.index(side)].unbind(1)
    start, end = torch.where(flip > 0, right, left), torch.where(flip > 0, left, right)
    return Crop.of(torch.stack([top, start, bottom, end], 1))


def reference_of(values: dict[str, Tensor]) -> Crop:
    return Crop.of([[0, 0, 1, 1]] * len(values["assignment"]))


def one_hot(values: dict[str, Tensor], name: str) -> Tensor:
    return F.one_hot(values[name].long().flatten(1), int(values["concepts"])).double()


def concepts(values: dict[str, Tensor], side: str) -> Concepts:
    match = overlap(view_of(values, side), reference_of(values), CELLS, GRID)
    return Concepts(values[f"assignment_{side}"].long().flatten(1), match.pool(one_hot(values, "assignment")))


def features(values: dict[str, Tensor], side: str) -> Tensor:
    return values[f"features_{side}"].flatten(2).mT


@pytest.mark.parametrize("side", SIDES)
def test_the_published_rule_of_carrying_is_a_vote_in_a_cut_of_whole_cells(values, side):
    place = values["view_in_reference"][:, SIDES.index(side)]
    assignment, expected = values["assignment"].long(), values[f"assignment_{side}"].long()
    ours = [slow.rounded(grid, p[:4], bool(p[4]), 7) for grid, p in zip(assignment, place, strict=True)]
    assert torch.equal(torch.stack(ours), expected)
    assert torch.equal(slow.rounded_loop(assignment, place[:, :4], place[:, 4] > 0, 7), expected)


def test_prototypes(values):
    """Ours, the loops, and those loops that benchmarks take."""
    sides = [(features(values, side), values[f"assignment_{side}"]) for side in SIDES]
    for side, looped in zip(SIDES, slow.prototypes_loop(*sides[0], *sides[1]), strict=True):
        shares, cells = one_hot(values, f"assignment_{side}"), features(values, side)
        ours, (loops, covered) = prototypes(cells, shares), slow.prototypes(cells, shares)
        for mean in (ours.mean.flatten(0, 1), loops.flatten(0, 1), looped):
            torch.testing.assert_close(mean, values[f"prototypes_{side}"], rtol=1e-10, atol=1e-12)
        assert torch.equal(ours.cells, covered)


# Exact area, where the published rule rounds -------------------------------------------------------------------------


def test_where_exact_area_and_rounding_differ(values):
    """Where a view is the whole reference view nothing needs rounding, and the votes are the areas."""
    found = [concepts(values, side) for side in SIDES]
    published, exact = (torch.stack(each) for each in zip(*found, strict=True))
    largest, got = exact.max(3).values, exact.gather(3, published[..., None]).squeeze(3)
    other = (largest - got > 1e-9).double().mean(2)  # the cells of each view that have another concept
    cut = torch.stack([view_of(values, side).area() < 1 for side in SIDES])
    assert bool((other[~cut] == 0).all())
    assert 0.1 < other[cut].mean() < 0.3
    assert got.mean() < largest.mean()  # the best single concept of each cell is better, too


# What counts in the loss ---------------------------------------------------------------------------------------------


def method_of(assignment: Tensor) -> ConCL:
    """ConCL with a cluster map in place of its k-means; features are given, so there is no network."""
    config = MoCoConfig(width=32, queue_length=64)
    moco = MoCo(Encoder(nn.Identity(), nn.Identity()), config, momentum=0.9)
    method = ConCL(moco, ConCLConfig(config)).double()
    method.past_prototypes.used.fill_(True)
    method.cluster = lambda reference: (F.one_hot(assignment.flatten(1)).double(), GRID)
    return method


def batch_of(values: dict[str, Tensor]) -> tuple[Batch, Features, Features]:
    pixels = torch.zeros(8, 3, 2, 2)
    reference = View(pixels, reference_of(values))
    first, second = (View(pixels, view_of(values, side)) for side in SIDES)
    q, k = (
        Features(cells.mean(1), None, cells.clone().requires_grad_(), CELLS)
        for cells in (features(values, side) for side in SIDES)
    )
    return Batch(first, second, torch.arange(8), reference=reference), q, k


def test_concepts_hardly_seen_by_either_view_do_not_count(values):
    """The loss, its gradient and the queue, against loops over the concepts that cover half a cell of both views."""
    assignment = values["assignment"].long().clone()
    assignment[:, 0, 0] = 4  # a corner: a quarter of a cell of a whole view, nothing where the view is cut
    assignment[:, :2, -2:] = 5  # a cell of a view that is the whole reference, less or nothing elsewhere
    batch, q, k = batch_of(values)
    assert batch.reference is not None
    method = method_of(assignment)
    negatives = method.past_prototypes.vectors.clone()
    loss = method.contrast_concepts(batch, batch.reference, q, k)

    sides = []
    for view, seen in ((batch.first, q), (batch.second, k)):
        shares = overlap(view.crop, batch.reference.crop, CELLS, GRID).pool(F.one_hot(assignment.flatten(1)).double())
        sides.append((seen.field, shares, shares.sum(1)))
    (mine, shares, covered), (theirs, other_shares, other_covered) = sides
    shown = [(t, c) for t in range(8) for c in range(6) if min(covered[t, c], other_covered[t, c]) >= LEAST_CELLS]
    assert not {(t, 4) for t in range(8)} & set(shown)
    assert 0 < len({(t, 5) for t in range(8)} & set(shown)) < 8
    assert (covered > 0).sum() > len(shown)

    def means(cells: Tensor, shares: Tensor) -> Tensor:
        return torch.stack([(shares[t, :, c, None] * cells[t]).sum(0) / shares[t, :, c].sum() for t, c in shown])

    keys = means(theirs, other_shares).detach()
    expected = plain_info_nce(means(mine, shares), keys, negatives)
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)  # weights are float32
    (gradient,), (expected_gradient,) = (torch.autograd.grad(each, mine) for each in (loss, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-8)
    past = torch.cat([F.normalize(keys, dim=1), negatives[len(shown) :]])
    torch.testing.assert_close(method.past_prototypes.vectors, past, rtol=0, atol=1e-10)
    assert method.past_prototypes.position == len(shown)


def test_a_batch_whose_views_share_no_concept_gives_no_loss_and_a_finite_gradient(values):
    batch, q, k = batch_of(values)
    apart = Crop.of([[0, 0, 0.5, 1]] * 8), Crop.of([[0.5, 0, 1, 1]] * 8)
    batch = batch._replace(first=batch.first._replace(crop=apart[0]), second=batch.second._replace(crop=apart[1]))
    assignment = (torch.arange(14) >= 7).long()[None, :, None].expand(8, 14, 14)
    method = method_of(assignment)
    before = method.past_prototypes.vectors.clone()
    assert batch.reference is not None
    loss = method.contrast_concepts(batch, batch.reference, q, k)
    assert loss == 0 and torch.equal(method.past_prototypes.vectors, before)
    (gradient,) = torch.autograd.grad(loss, q.field)
    assert bool((gradient == 0).all())
