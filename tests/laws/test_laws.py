"""Laws that any correct overlap obeys, whatever its code."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.core.geometry import Crop
from colocate.core.matching import Match, overlap
from tests.strategies import crop_pairs, grids, intersection, same_crops


def _areas(match: Match, crop: Crop) -> torch.Tensor:
    """Shared area of every pair of cells, b x n x m, in square source pixels."""
    n = match.weight.shape[1]
    return match.fractions() * match.weight[:, :, None] * (crop.area() / n)[:, None, None]


@given(crop_pairs(square=False), grids, grids)
def test_both_directions_see_the_same_shared_areas(
    pair: tuple[Crop, Crop], cells: tuple[int, int], other_cells: tuple[int, int]
) -> None:
    own, other = pair
    there, back = overlap(own, other, cells, other_cells), overlap(other, own, other_cells, cells)
    torch.testing.assert_close(_areas(there, own), _areas(back, other).mT, atol=1e-6, rtol=1e-9)


@given(crop_pairs(), st.integers(1, 9), st.integers(1, 9))
def test_shared_area_sums_to_the_intersection(pair: tuple[Crop, Crop], cells: int, other_cells: int) -> None:
    own, other = pair
    match = overlap(own, other, cells, other_cells)
    torch.testing.assert_close(_areas(match, own).sum((1, 2)), intersection(own, other), atol=1e-6, rtol=1e-9)
    mean_weight = match.weight.mean(1) * own.area()
    torch.testing.assert_close(mean_weight, intersection(own, other), atol=1e-6, rtol=1e-9)


@given(crop_pairs(), st.integers(1, 9), st.integers(1, 9))
def test_weights_lie_in_the_unit_interval(pair: tuple[Crop, Crop], cells: int, other_cells: int) -> None:
    for own, other in (pair, pair[::-1]):
        match = overlap(own, other, cells, other_cells)
        assert bool((match.weight >= 0).all()) and bool((match.weight <= 1).all())
        sums = match.fractions().sum(2)
        hit = match.weight > 0
        torch.testing.assert_close(sums[hit], torch.ones_like(sums[hit]))
        assert bool((sums[~hit] == 0).all())


@given(crop_pairs(), st.integers(1, 7))
def test_a_crop_covers_itself_cell_by_cell(pair: tuple[Crop, Crop], cells: int) -> None:
    for crop in pair:
        match = overlap(crop, crop, cells)
        identity = torch.eye(cells * cells, dtype=torch.float64).expand_as(match.fractions())
        torch.testing.assert_close(match.fractions(), identity, atol=1e-9, rtol=0)
        torch.testing.assert_close(match.weight, torch.ones_like(match.weight))


@settings(max_examples=20)
@given(same_crops(), st.integers(1, 4))
def test_symmetric_crops_are_a_permutation(pair: tuple[Crop, Crop], cells: int) -> None:
    fractions = overlap(*pair, cells).fractions()
    permutation = fractions.round()
    torch.testing.assert_close(fractions, permutation, atol=1e-9, rtol=0)
    ones = torch.ones_like(permutation[:, 0])
    assert torch.equal(permutation.sum(1), ones) and torch.equal(permutation.sum(2), ones)
    # And back again: the other direction undoes it.
    back = overlap(*pair[::-1], cells).fractions()
    torch.testing.assert_close(back @ fractions, torch.eye(cells**2, dtype=torch.float64).expand_as(fractions))


@given(crop_pairs(), st.integers(1, 5), st.floats(0.1, 9), st.floats(-50, 50))
def test_moving_and_scaling_the_tile_changes_nothing(
    pair: tuple[Crop, Crop], cells: int, scale: float, shift: float
) -> None:
    moved = [crop._replace(rows=crop.rows * scale + shift, cols=crop.cols * scale - shift) for crop in pair]
    torch.testing.assert_close(overlap(*moved, cells).weight, overlap(*pair, cells).weight, atol=1e-8, rtol=0)


@given(crop_pairs(), st.integers(1, 4))
def test_a_finer_grid_says_the_same_of_its_coarse_cells(pair: tuple[Crop, Crop], cells: int) -> None:
    """Averaging the weights of four quarters gives the cell's own."""
    fine, coarse = overlap(*pair, 2 * cells, 3).weight, overlap(*pair, cells, 5).weight
    quarters = fine.reshape(-1, cells, 2, cells, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(quarters, coarse, atol=1e-9, rtol=0)
