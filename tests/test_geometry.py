"""The row and column matrices against torch's antialiased resize, a fine convolution, and their own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from colocate.core.geometry import Crop, cell_edges, resampling, shared_fraction
from tests.strategies import crop_pairs

TOLERANCE = 1e-3 * 255


def test_shapes_are_checked_in_tests() -> None:
    with pytest.raises(TypeCheckError):
        cell_edges(torch.zeros(1, 3), 2)
    with pytest.raises(TypeCheckError):
        cell_edges(torch.zeros(1, 2, dtype=torch.long), 2)


def test_crop_is_still_a_named_tuple_under_the_import_hook() -> None:
    crop = Crop.of([[0, 100, 50, 0], [1, 2, 3, 5]], [True, False])
    rows, cols, transpose = crop
    assert isinstance(crop, tuple) and crop._fields == ("rows", "cols", "transpose")
    assert rows.tolist() == [[0, 50], [1, 3]] and cols.tolist() == [[100, 0], [2, 5]]
    assert transpose.tolist() == [True, False]
    assert crop.area().tolist() == [5000, 6]
    assert crop._replace(transpose=~transpose).transpose.tolist() == [False, True]


def test_crops_are_wholly_where_their_corners_are_and_turns_may_be_0_and_1() -> None:
    """Of corners on a GPU `transpose` stayed on the host, where `overlap` could not use it."""
    for there in (Crop.of(torch.zeros(2, 4, device="meta"), turns) for turns in (None, [0, 1])):
        assert {part.device.type for part in there} == {"meta"} and there.transpose.dtype == torch.bool
    for turns in ([0, 1], [False, True], np.array([0, 1]), torch.tensor([False, True])):
        assert Crop.of([[0, 0, 8, 8]] * 2, turns).transpose.tolist() == [False, True]


@pytest.mark.parametrize("corners", [[0, 0, 8, 8], [[0, 0, 8]], [[0, 0, 8, 8, 1]], []])
def test_corners_that_are_no_rows_of_four_are_refused(corners: list[object]) -> None:
    """Of three the weights of cells were nan."""
    with pytest.raises(ValueError, match="rows of top, left, bottom, right"):
        Crop.of(corners)
    with pytest.raises(ValueError, match="one transpose for each"):
        Crop.of([[0, 0, 8, 8]] * 2, [True])


@given(crop_pairs(), st.integers(1, 9), st.integers(1, 9))
def test_shared_fractions_add_up_to_the_shared_length(pair: tuple[Crop, Crop], cells: int, other_cells: int) -> None:
    a, b = pair[0].rows, pair[1].cols
    shares = shared_fraction(a, cells, b, other_cells)
    assert shares.shape == (len(a), cells, other_cells)
    assert bool((shares >= 0).all()) and bool((shares.sum(2) <= 1 + 1e-9).all())
    length = (a[:, 1] - a[:, 0]).abs() / cells
    shared = (torch.minimum(a.amax(1), b.amax(1)) - torch.maximum(a.amin(1), b.amin(1))).clamp_min(0)
    torch.testing.assert_close(shares.sum((1, 2)) * length, shared)


# Resampling ------------------------------------------------------------------------------------------------------


def _noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).double()


def _apply(
    image: torch.Tensor, corners: list[float], size: tuple[int, int], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    crop = Crop.of([corners])
    rows = resampling(crop.rows.to(dtype), size[0], image.shape[1])
    cols = resampling(crop.cols.to(dtype), size[1], image.shape[2])
    return rows[0].double() @ image @ cols[0].double().T


@pytest.mark.parametrize(
    ("corners", "size"),
    [
        ((0, 0, 96, 120), (24, 30)),  # exact reductions
        ((0, 0, 96, 120), (41, 29)),
        ((7, 11, 90, 117), (32, 32)),
        ((7, 11, 90, 117), (82, 105)),  # just below 1
        ((10, 20, 50, 52), (40, 32)),  # size kept
        ((7, 11, 40, 51), (64, 64)),  # enlargements
        ((7, 11, 40, 51), (34, 41)),  # just above 1
        ((30, 30, 33, 32), (24, 24)),
        ((5, 5, 6, 6), (9, 9)),  # one pixel
        ((0, 0, 96, 20), (32, 64)),  # one axis reduced, the other enlarged
        ((0, 0, 96, 120), (1, 1)),
    ],
)
def test_resampling_is_torch_antialiased_bilinear(corners: tuple[int, ...], size: tuple[int, int]) -> None:
    image = _noise(96, 120)
    top, left, bottom, right = corners
    expected = F.interpolate(
        image[None, :, top:bottom, left:right], size, mode="bilinear", antialias=True, align_corners=False
    )[0]
    assert (_apply(image, list(corners), size) - expected).abs().max() < TOLERANCE
    assert (_apply(image, [bottom, left, top, right], size) - expected.flip(1)).abs().max() < TOLERANCE
    assert (_apply(image, [top, right, bottom, left], size) - expected.flip(2)).abs().max() < TOLERANCE


@given(st.integers(1, 60), st.integers(0, 40), st.integers(1, 80), st.booleans())
def test_resampling_of_any_crop(length: int, start: int, size: int, flipped: bool) -> None:
    axis = _noise(1, 100, seed=length)[0]
    ends = torch.tensor([[start, start + length]], dtype=torch.float32)
    ours = resampling(ends.flip(1) if flipped else ends, size, 100)[0].double() @ axis[0]
    expected = F.interpolate(
        axis[None, None, :, start : start + length], (1, size), mode="bilinear", antialias=True, align_corners=False
    ).flatten()
    assert (ours - (expected.flip(0) if flipped else expected)).abs().max() < TOLERANCE


# Blur ------------------------------------------------------------------------------------------------------------


def _triangle_and_gauss(offset: float, reach: float, sigma: float) -> float:
    """The convolution by midpoint sums over the triangle's foot, 4000 steps."""
    steps = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000 * 2 - 1
    z = (offset - steps * reach) / sigma
    gauss = torch.exp(-0.5 * z * z) / (sigma * math.sqrt(2 * math.pi))
    return float(((1 - steps.abs()) * gauss).sum() / 2000)


@pytest.mark.parametrize("sigma_px", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("length", "size"), [(200, 64), (64, 64), (40, 64)])
def test_blur_is_the_convolution_of_triangle_and_gaussian(length: int, size: int, sigma_px: float) -> None:
    total = 240
    ends = torch.tensor([[20.0, 20.0 + length]], dtype=torch.float64)
    ours = resampling(ends, size, total, torch.tensor([sigma_px], dtype=torch.float64))[0]
    scale = length / size
    for i in (0, 3, size // 2, size - 1):
        centre = 20 + (i + 0.5) * scale
        row = torch.tensor(
            [
                _triangle_and_gauss(p + 0.5 - centre, max(scale, 1), sigma_px * scale) if 20 <= p < 20 + length else 0.0
                for p in range(total)
            ],
            dtype=torch.float64,
        )
        # 4 sigma hold all but 6e-5 of a Gaussian.
        assert (ours[i] - row / row.sum()).abs().sum() < 5e-4


# Promises --------------------------------------------------------------------------------------------------------

cut = st.tuples(st.integers(0, 60), st.integers(1, 40), st.booleans(), st.sampled_from([0.0, 0.1, 0.7, 2.0]))


def _matrices(cuts: list[tuple[int, int, bool, float]], size: int, length: int = 100) -> torch.Tensor:
    ends = torch.tensor([(a + n, a) if flip else (a, a + n) for a, n, flip, _ in cuts], dtype=torch.float32)
    return resampling(ends, size, length, torch.tensor([sigma for *_, sigma in cuts], dtype=torch.float32))


@given(st.lists(cut, min_size=1, max_size=4), st.integers(1, 48))
def test_matrices_average_pixels_of_their_own_crop(cuts: list[tuple[int, int, bool, float]], size: int) -> None:
    matrices = _matrices(cuts, size)
    assert bool(matrices.isfinite().all()) and bool((matrices >= 0).all())
    torch.testing.assert_close(matrices.sum(2), torch.ones(len(cuts), size), atol=1e-5, rtol=0)
    assert not bool(((matrices != 0) & (matrices < 1e-12)).any())  # denormals are slow
    for (start, length, _, _), matrix in zip(cuts, matrices, strict=True):
        assert bool((matrix[:, :start] == 0).all()) and bool((matrix[:, start + length :] == 0).all())


def test_no_denormals_at_full_size() -> None:
    ends = torch.tensor([[0.0, 224.0], [10.0, 120.0], [200.0, 1200.0]])
    for sigma in (0.1, 2.0):
        matrices = resampling(ends, 224, 1400, torch.full((3,), sigma))
        assert not bool(((matrices != 0) & (matrices < 1e-12)).any())
        # Truncated: no row is longer than the kernel's foot.
        taps = (matrices != 0).sum(2).amax(1)
        scale = (ends[:, 1] - ends[:, 0]) / 224
        assert bool((taps <= 2 * (scale.clamp_min(1) + 4 * sigma * scale) + 1).all())


@given(st.lists(cut, min_size=2, max_size=4), st.integers(1, 48), st.integers(0, 30))
def test_a_matrix_is_its_own_crops_whatever_the_batch_and_the_padding(
    cuts: list[tuple[int, int, bool, float]], size: int, padding: int
) -> None:
    together = _matrices(cuts, size, 100 + padding)
    assert bool((together[:, :, 100:] == 0).all())
    for one, matrix in zip(cuts, together, strict=True):
        torch.testing.assert_close(_matrices([one], size)[0], matrix[:, :100], atol=1e-6, rtol=0)


@given(cut, st.integers(1, 48))
def test_a_flip_reverses_the_rows(one: tuple[int, int, bool, float], size: int) -> None:
    start, length, flip, sigma = one
    other = (start, length, not flip, sigma)
    torch.testing.assert_close(_matrices([other], size)[0], _matrices([one], size)[0].flip(0), atol=1e-5, rtol=0)


@given(st.integers(8, 60), st.integers(0, 40), st.integers(1, 48), st.sampled_from([0.0, 1.0]))
def test_a_ramp_stays_a_ramp_away_from_the_edges(length: int, start: int, size: int, sigma: float) -> None:
    """Nothing is shifted: pixel i of the view shows the source at its own centre."""
    matrix = _matrices([(start, length, False, sigma)], size)[0]
    scale = length / size
    seen = matrix @ (torch.arange(100) + 0.5)
    centre = start + (torch.arange(size) + 0.5) * scale
    foot = max(scale, 1) + 4 * sigma * scale
    inside = (centre - foot >= start) & (centre + foot <= start + length)
    assert bool(((seen - centre)[inside].abs() < 0.1 * max(scale, 1)).all())


def test_no_crops_no_matrices() -> None:
    assert resampling(torch.zeros(0, 2), 8, 16).shape == (0, 8, 16)
