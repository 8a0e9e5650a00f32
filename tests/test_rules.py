"""The other ways to match cells: nearest centres, features, attention; and grids made coarser."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from colocate.core.geometry import Crop, bounding_box, cell_centres, coarser
from colocate.core.matching import attend, most_similar, nearest_centre, nearest_feature, overlap
from colocate.core.settings import ViewConfig
from colocate.core.views import sample_params
from tests.reference import vicreg as slow
from tests.strategies import crop_pairs, grids, intersection


def _cells(b: int, n: int, d: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(b, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(crop_pairs(), grids)
def test_centres_are_where_the_view_came_from(pair: tuple[Crop, Crop], grid: tuple[int, int]) -> None:
    ours = cell_centres(pair[0], grid)
    expected = [slow.centres(pair[0], view, grid) for view in range(len(ours))]
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


@given(crop_pairs(square=False), grids, grids)
def test_nearest_centres_are_nearest(
    pair: tuple[Crop, Crop], cells: tuple[int, int], other_cells: tuple[int, int]
) -> None:
    match = nearest_centre(*pair, cells, other_cells)
    for view in range(len(match.partner)):
        places = [
            [torch.tensor(place) for place in slow.centres(crop, view, grid)]
            for crop, grid in zip(pair, (cells, other_cells), strict=True)
        ]
        _, distance = slow.nearest(*places)
        torch.testing.assert_close(match.closeness[view].tolist(), [-d for d in distance], atol=1e-3, rtol=1e-5)
        for own, partner, least in zip(places[0], match.partner[view].tolist(), distance, strict=True):
            assert float((own - places[1][partner]).norm()) <= least + 1e-3  # one of those equally near


@given(crop_pairs(), st.integers(2, 6))
def test_the_nearest_centre_shares_tissue_where_views_have_like_cells(pair: tuple[Crop, Crop], cells: int) -> None:
    """Of two grids over one rectangle each cell's nearest centre is its own place: overlap and nearest centre agree."""
    own = pair[0]
    twin = own._replace(rows=own.rows.flip(1))
    near, shared = nearest_centre(own, twin, cells), overlap(own, twin, cells)
    torch.testing.assert_close(shared.fractions().argmax(2), near.partner)
    assert float(near.closeness.abs().max()) < 1e-9


def test_features_find_the_nearest_and_the_most_similar() -> None:
    own, other = _cells(3, 6), _cells(3, 5, seed=1)
    near, similar = nearest_feature(own, other), most_similar(own, other)
    for view in range(3):
        assert near.partner[view].tolist() == slow.nearest(list(own[view]), list(other[view]))[0]
        for i, cell in enumerate(own[view]):
            cosines = [float(F.cosine_similarity(cell, partner, dim=0)) for partner in other[view]]
            assert similar.partner[view, i] == cosines.index(max(cosines))
            assert similar.closeness[view, i].item() == pytest.approx(max(cosines), abs=1e-5)
    values = _cells(3, 5, d=2, seed=2)
    torch.testing.assert_close(near.pool(values)[1, 4], values[1, near.partner[1, 4]])
    assert bool((near.weight == 1).all())


def test_partners_carry_gradients_and_matching_does_not() -> None:
    own, other = _cells(2, 4).requires_grad_(), _cells(2, 4, seed=1).requires_grad_()
    most_similar(own, other).pool(other).sum().backward()
    assert own.grad is None and other.grad is not None and float(other.grad.sum()) == 2 * 4 * 4


@given(crop_pairs(), st.integers(1, 7))
def test_the_best_are_the_highest_and_stay_in_order(pair: tuple[Crop, Crop], count: int) -> None:
    match = overlap(*pair, 3)
    best = match.best(count)
    assert best.shape[1] == count and bool((best.diff(dim=1) > 0).all())
    for weight, chosen in zip((match.weight * 1e6).round(), best, strict=True):
        rest = weight[[i for i in range(9) if i not in chosen]]
        assert bool(weight[chosen].min() >= rest.max())
    assert match.best(100).shape[1] == 9


def test_the_best_of_many_seen_whole_are_not_those_at_the_top() -> None:
    """Crops as they are drawn: of cells seen whole, those that lie most within one other cell, wherever they are."""
    config = ViewConfig(size=56)
    sizes = torch.full((500, 2), 224)
    own, other = (sample_params(config, sizes, torch.arange(500), 0, 0, view).crop for view in (0, 1))
    match = overlap(own, other, 7)
    rows = torch.bincount(match.best(20).flatten() // 7, minlength=7) / (500 * 20)
    assert float((rows - rows.flip(0)).abs().max()) < 0.02
    assert torch.equal(replace(match, weight=(match.weight > 0).double()).best(20), match.best(20))


@given(crop_pairs())
def test_attention_among_equals_is_plain_area(pair: tuple[Crop, Crop]) -> None:
    plain = overlap(*pair, 3, 4)
    b = len(plain.swap)
    match = attend(plain, _cells(b, 9), torch.ones(b, 16, 4, dtype=torch.float64))
    values = _cells(b, 16)
    torch.testing.assert_close(match.pool(values), plain.pool(values), atol=1e-9, rtol=1e-6)
    assert match.weight is plain.weight and torch.equal(match.best(5), plain.best(5))


@given(crop_pairs(), st.floats(0.05, 5))
def test_attention_weighs_area_by_similarity(pair: tuple[Crop, Crop], temperature: float) -> None:
    plain = overlap(*pair, 2, 3)
    b = len(plain.swap)
    own, other = _cells(b, 4), _cells(b, 9, seed=1)
    match, area = attend(plain, own, other, temperature), plain.fractions()
    for view in range(b):
        for i in range(4):
            cosine = torch.stack([F.cosine_similarity(own[view, i], cell, dim=0) for cell in other[view]])
            expected = area[view, i] * (cosine / temperature).exp()
            if plain.weight[view, i] > 1e-6:
                torch.testing.assert_close(match.shares[view, i], expected / expected.sum(), atol=1e-9, rtol=1e-6)
            assert bool((match.shares[view, i][area[view, i] == 0] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_is_among_what_shares_tissue_however_alike_the_rest(dtype: torch.dtype) -> None:
    """At low temperatures a far better cell elsewhere left nothing for those that share tissue."""
    plain = overlap(Crop.of([[0, 0, 8, 8]]), Crop.of([[0, 4, 8, 8]]), 2)  # 1 sees 0 and 1, 3 sees 2 and 3, by halves
    own = torch.tensor([[[1.0, 0.0]] * 4], dtype=dtype)
    other = torch.tensor([[[-1.0, 0.1], [-1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]], dtype=dtype)
    cosine = -1 / 1.01**0.5
    closer = 1 / (1 + math.exp((-1 - cosine) / 0.005))
    expected = torch.tensor([[[0] * 4, [closer, 1 - closer, 0, 0], [0] * 4, [0, 0, 0.5, 0.5]]], dtype=dtype)
    torch.testing.assert_close(attend(plain, own, other, 0.005).shares, expected, atol=1e-4, rtol=0)


def test_coarser_grids_are_averages_by_area() -> None:
    grid = torch.randn(2, 3, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(coarser(grid, 8), grid)
    torch.testing.assert_close(coarser(grid, 2), F.adaptive_avg_pool2d(grid, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(coarser(grid, 4).shape, torch.Size([2, 3, 4, 4]))
    # 8 columns to 3: the middle cell takes a third of columns 3 and 6 and all of 4 and 5.
    rows = coarser(grid, 3)
    expected = (grid[..., 2] / 3 + grid[..., 3] + grid[..., 4] + grid[..., 5] / 3) / (8 / 3)
    torch.testing.assert_close(rows[..., 1], F.avg_pool1d(expected, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(rows.mean((2, 3)), grid.mean((2, 3)), atol=1e-6, rtol=0)


@given(crop_pairs())
def test_a_bounding_box_holds_both_and_no_more(pair: tuple[Crop, Crop]) -> None:
    first, second = pair
    box = bounding_box(first, second)
    for crop in pair:
        torch.testing.assert_close(intersection(box, crop), crop.area())
    for axis in ("rows", "cols"):
        ends = torch.cat([getattr(crop, axis) for crop in pair], 1)
        torch.testing.assert_close(getattr(box, axis), torch.stack([ends.amin(1), ends.amax(1)], 1))
    assert not box.transpose.any()
