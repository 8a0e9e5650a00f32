"""Overlap matching against every pair of cells intersected, and pooling against plain loops."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colocate.core.geometry import Crop
from colocate.core.matching import overlap
from tests.reference import overlap as slow
from tests.strategies import SYMMETRIES, crop_pairs, crops, grids, placed


def _features(b: int, n: int, d: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(b, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _check(own: Crop, other: Crop, cells: tuple[int, int], other_cells: tuple[int, int]) -> None:
    shares = slow.overlap_matrix(own, other, cells, other_cells)
    match = overlap(own, other, cells, other_cells)
    weight = shares.sum(2)
    torch.testing.assert_close(match.weight, weight, atol=1e-9, rtol=0)
    # A share of a hair counts for nothing.
    seen = weight > 1e-9
    fractions = shares / weight.clamp_min(1e-300)[:, :, None]
    torch.testing.assert_close(match.fractions()[seen], fractions[seen], atol=1e-6, rtol=0)
    features = _features(len(shares), shares.shape[2])
    torch.testing.assert_close(match.pool(features)[seen], slow.pooled(shares, features)[seen], atol=1e-5, rtol=0)


@given(crop_pairs(), st.integers(1, 5), st.integers(1, 5))
def test_square_grids_equal_the_slow_overlap(pair: tuple[Crop, Crop], cells: int, other_cells: int) -> None:
    _check(*pair, (cells, cells), (other_cells, other_cells))


@given(crop_pairs(square=False), grids, grids)
def test_any_grids_equal_the_slow_overlap(
    pair: tuple[Crop, Crop], cells: tuple[int, int], other_cells: tuple[int, int]
) -> None:
    _check(*pair, cells, other_cells)


EVERY_PAIR = [(one, other) for one in SYMMETRIES for other in SYMMETRIES]


def _seen_in(pairs: list[tuple[tuple[bool, bool, bool], tuple[bool, bool, bool]]]) -> tuple[Crop, Crop]:
    """Two rectangles that meet, each pair of them in two symmetries."""
    own = crops([placed((10, 90), (20, 80), one) for one, _ in pairs])
    return own, crops([placed((33, 133), (5, 66.5), other) for _, other in pairs])


def test_every_pair_of_symmetries() -> None:
    """In a mixed batch, too, where only some pairs swap their axes."""
    for swaps in (False, True):
        pairs = [(one, other) for one, other in EVERY_PAIR if (one[2] != other[2]) == swaps]
        assert overlap(*_seen_in(pairs), 3).swap.tolist() == [swaps] * 32
        _check(*_seen_in(pairs), (2, 3), (3, 4))
    _check(*_seen_in(EVERY_PAIR), (3, 3), (4, 4))
    _check(*_seen_in(EVERY_PAIR), (2, 5), (4, 4))


def test_a_mixed_batch_on_an_oblong_grid_is_refused() -> None:
    own = Crop.of([[0, 0, 8, 8]] * 2)
    other = Crop.of([[0, 0, 8, 8]] * 2, [False, True])
    with pytest.raises(ValueError, match="square views"):
        overlap(own, other, 4, (2, 3))
    assert overlap(own, other, (2, 3), 4).weight.shape == (2, 6)


def test_the_vectorised_oracle_equals_the_loops() -> None:
    own, other = _seen_in(EVERY_PAIR)
    shares = slow.overlap_matrix(own, other, (4, 4), (4, 4))
    batched = slow.overlap_matrix_batched(own, other, 4)
    torch.testing.assert_close(batched.double(), shares, atol=1e-5, rtol=0)
    features = _features(len(EVERY_PAIR), 16)
    weight, pooled = slow.pooled_batched(shares, features)
    torch.testing.assert_close(weight, shares.sum(2))
    torch.testing.assert_close(pooled, slow.pooled(shares, features), atol=1e-9, rtol=0)


# Pooling ---------------------------------------------------------------------------------------------------------


@given(crop_pairs(), st.floats(-3, 3))
def test_pooling_is_linear_and_equals_fractions(pair: tuple[Crop, Crop], factor: float) -> None:
    match = overlap(*pair, 3, 4)
    x, y = _features(len(match.swap), 16, seed=1), _features(len(match.swap), 16, seed=2)
    torch.testing.assert_close(match.pool(factor * x + y), factor * match.pool(x) + match.pool(y))
    torch.testing.assert_close(match.pool(x), match.fractions() @ x)


@pytest.mark.parametrize("cells", [3, 7, 14])
def test_cells_whose_edges_meet_share_nothing(cells: int) -> None:
    """Rounding would leave them a crumb, which an unweighted match takes for a cell that was seen."""
    for top in range(60, 100):
        own = Crop.of([[top, top, top + 160, top + 160]])
        mirrored = Crop.of([[top, top + 160, top + 160, top]])
        beside = Crop.of([[top, top + 160 / cells, top + 160, top + 160 + 160 / cells]])
        assert (overlap(own, mirrored, cells).fractions() > 0).sum() == cells**2
        assert (overlap(own, beside, cells).weight > 0).sum() == cells * (cells - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pooling_keeps_the_features_type(dtype: torch.dtype) -> None:
    match = overlap(Crop.of([[0, 0, 90, 90]]), Crop.of([[30, 10, 130, 110]], [True]), 7)
    features = _features(1, 49)
    pooled = match.pool(features.to(dtype))
    assert pooled.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(pooled.double(), match.pool(features), atol=tolerance, rtol=0)


def test_whole_numbers_are_averaged_and_not_cut_off() -> None:
    """The shares became whole numbers too: 0."""
    match = overlap(Crop.of([[0, 0, 8, 8]]), Crop.of([[2, 0, 8, 8]]), 2)
    cells = torch.tensor([[[1], [3], [5], [8]]])
    for kind in (torch.int64, torch.uint8):
        torch.testing.assert_close(match.pool(cells.to(kind)), match.pool(cells.float()))


@pytest.mark.parametrize("corners", [[0, 0, 0, 8], [3, 3, 3, 3], [0, 0, math.nan, 8], [0, 0, math.inf, 8]])
def test_crops_without_area_are_refused(corners: list[float]) -> None:
    """The weights of their cells were nan."""
    fine, wrong = Crop.of([[0, 0, 8, 8]] * 2), Crop.of([[0, 0, 8, 8], corners])
    for pair in ((wrong, fine), (fine, wrong)):
        with pytest.raises(ValueError, match="must have an area above 0"):
            overlap(*pair, 2)


def test_crops_that_are_no_pairs_are_refused() -> None:
    unchecked: Any = inspect.unwrap(overlap)  # without the tests' check of shapes, as users have it
    with pytest.raises(ValueError, match="1 and 3 crops are no pairs"):
        unchecked(Crop.of([[0, 0, 8, 8]]), Crop.of([[0, 0, 8, 8]] * 3), 2)
