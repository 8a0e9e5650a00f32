"""Paint: a tile coloured by position, the real view code, the cells' mean colours, and the match between them.

Red is x and green is y, so a colour is a place, and what the pixels say can be held against what the match says.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from colocate.core.geometry import Crop
from colocate.core.matching import overlap
from colocate.core.settings import ViewConfig
from colocate.core.views import AugmentParams, render, sample_params
from tests.strategies import TILE, crop_pairs, intersection, same_crops

SIZE = 60  # view pixels: whole pixels a cell for grids of 3, 4, 5, 6 and 10
PLAIN = ViewConfig(
    size=SIZE, symmetries="all", jitter_p=0, grey_p=0, blur_p=0, mean=(0, 0, 0), std=(1, 1, 1)
)  # what is left: crop, resize, flip and quarter turns


def _painted() -> Tensor:
    """Pixel (y, x) is (x, y, 128)."""
    x = torch.arange(TILE).expand(TILE, TILE)
    return torch.stack([x, x.T, torch.full_like(x, 128)]).to(torch.uint8)


def _plain_looks(crop: Crop) -> AugmentParams:
    b = len(crop.rows)
    ones = torch.ones(b, 3)
    unchanged = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).expand(b, 4)
    return AugmentParams(crop, torch.zeros(b), unchanged, torch.zeros(b, dtype=torch.bool), ones, 0 * ones)


def _places(crop: Crop, cells: int) -> Tensor:
    """Where each cell of each view lies by its colour: b x n x (x, y) in source pixels."""
    tiles = _painted().expand(len(crop.rows), -1, -1, -1)
    view = render(tiles, _plain_looks(crop), PLAIN)
    assert view.crop is crop
    torch.testing.assert_close(view.images[:, 2], torch.full_like(view.images[:, 2], 128 / 255))
    means = F.avg_pool2d(view.images[:, :2].double() * 255 + 0.5, SIZE // cells)
    return means.flatten(2).mT


def _cell_length(crop: Crop, cells: int) -> Tensor:
    """b x 1 x (x, y) in source pixels."""
    return torch.stack([(ends[:, 1] - ends[:, 0]).abs() / cells for ends in (crop.cols, crop.rows)], 1)[:, None]


def _check(own: Crop, other: Crop, cells: int, other_cells: int) -> None:
    match = overlap(own, other, cells, other_cells)
    here, there = _places(own, cells), _places(other, other_cells)
    matched = match.pool(there)
    mine, theirs = _cell_length(own, cells), _cell_length(other, other_cells)
    # The kernel ends at the crop's edge: cells there are a few hundredths of a view pixel off.
    slack = 0.1 * torch.maximum(mine * cells, theirs * other_cells) / SIZE + 0.05
    off = (matched - here).abs()
    seen, whole = match.weight > 1e-6, match.weight > 1 - 1e-6
    assert bool((off <= mine / 2 + theirs / 2 + slack)[seen].all())
    assert bool((off <= theirs / 2 + slack)[whole].all())

    shared = intersection(own, other)
    back = overlap(other, own, other_cells, cells)
    some = shared > 0
    # The other view's colour over the shared area, from this side (pooled, weighted) and from its own (weighted).
    from_here = _mean(matched, match.weight)[some]
    from_there = _mean(there, back.weight)[some]
    torch.testing.assert_close(from_here, from_there, atol=1e-3, rtol=0)
    # And the shared area is where the crops say that it is, in the pixels of either view.
    centre = torch.stack([_middle(own.cols, other.cols), _middle(own.rows, other.rows)], 1)[some]
    assert bool(((_mean(here, match.weight)[some] - centre).abs() <= (mine / 2 + slack)[some, 0]).all())
    assert bool(((from_there - centre).abs() <= (theirs / 2 + slack)[some, 0]).all())


def _mean(places: Tensor, weight: Tensor) -> Tensor:
    return (places * weight[:, :, None]).sum(1) / weight.sum(1)[:, None]


def _middle(ends: Tensor, other_ends: Tensor) -> Tensor:
    low = torch.maximum(ends.amin(1), other_ends.amin(1))
    return (low + torch.minimum(ends.amax(1), other_ends.amax(1))) / 2


@given(crop_pairs(whole=True, shortest=16), st.sampled_from([3, 4, 5, 6, 10]), st.sampled_from([3, 4, 5, 6, 10]))
def test_matched_paint_agrees_within_half_a_cell(pair: tuple[Crop, Crop], cells: int, other_cells: int) -> None:
    _check(*pair, cells, other_cells)


@settings(max_examples=10)
@given(same_crops(whole=True, shortest=16), st.sampled_from([3, 5, 6, 10]))
def test_matched_paint_is_exact_for_crops_equal_up_to_symmetry(pair: tuple[Crop, Crop], cells: int) -> None:
    own, other = pair
    matched = overlap(own, other, cells).pool(_places(other, cells))
    torch.testing.assert_close(matched, _places(own, cells), atol=2e-3, rtol=0)


@pytest.mark.parametrize("cells", [6, 10])
def test_paint_holds_for_the_crops_that_are_drawn(cells: int) -> None:
    index = torch.arange(64)
    sizes = torch.tensor([TILE, TILE]).expand(64, 2)
    own, other = (sample_params(PLAIN, sizes, index, 0, 0, view).crop for view in (0, 1))
    assert len({(bool(r[0] > r[1]), bool(c[0] > c[1]), bool(t)) for r, c, t in zip(*own, strict=True)}) == 8
    _check(own, other, cells, cells)


@settings(max_examples=20)
@given(crop_pairs(whole=True, shortest=16), st.sampled_from([3, 5, 6, 10]))
def test_every_cell_shows_the_place_that_its_crop_gives(pair: tuple[Crop, Crop], cells: int) -> None:
    """Pixels against the crop alone, to a twentieth of a cell: no match involved."""
    for crop in pair:
        at = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
        down, across = torch.meshgrid(at, at, indexing="ij")
        turned = crop.transpose[:, None, None]
        u, v = torch.where(turned, down, across), torch.where(turned, across, down)
        ends = [e[:, :, None, None] for e in (crop.cols, crop.rows)]
        x, y = (e[:, 0] + t * (e[:, 1] - e[:, 0]) for e, t in zip(ends, (u, v), strict=True))
        expected = torch.stack([x, y], -1).flatten(1, 2)
        assert bool(((_places(crop, cells) - expected).abs() < 0.05 * _cell_length(crop, cells) + 0.05).all())
