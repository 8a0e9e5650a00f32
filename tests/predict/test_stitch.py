"""What windows saw in pieces comes out whole and once, as soon as it can, and little is held meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import label

from colocate.predict.stitch import Box, Found, Place, Stitcher, Windows
from tests.predict.windowed import as_sets, assert_apart, drawn, found, perfect, pictures, rasters, stitched


@given(rasters(), st.integers(1, 120), st.integers(1, 120))
def test_windows_cover_the_picture_and_cores_share_no_pixel(raster: tuple[int, int], width: int, height: int) -> None:
    side, overlap = raster
    seen, cores = np.zeros((2, height, width), int)
    whole = Box(0, 0, height, width)
    geometry = Windows(width, height, side, overlap)
    all_windows = list(geometry)
    assert all_windows == sorted(all_windows)
    for window in all_windows:
        part = np.s_[window.top : window.top + side, window.left : window.left + side]
        seen[part] += 1
        core = geometry.core(Place(window.row, window.column), whole)
        cores += core
        rest = core.copy()
        rest[part] = False
        assert not rest.any()
    assert seen.min() >= 1 and seen.max() <= 4
    assert cores.min() == cores.max() == 1
    last = all_windows[-1]
    assert last.row == 0 or last.top + overlap < height  # the one before does not reach the end
    assert last.column == 0 or last.left + overlap < width


@given(pictures(), rasters())
def test_a_perfect_detector_finds_each_object_once_and_whole(ids: np.ndarray, raster: tuple[int, int]) -> None:
    merged = stitched(ids, *raster)
    one_window = stitched(ids, 2 * max(ids.shape), 0)
    assert len(merged) == ids.max()
    assert as_sets(drawn(one, ids) for one in merged) == as_sets(ids == id for id in range(1, ids.max() + 1))
    facts = [sorted((one.area_px, one.class_, round(one.score, 6)) for one in some) for some in (merged, one_window)]
    assert facts[0] == facts[1]
    assert_apart(merged, ids)


@given(pictures(), rasters(), st.data())
def test_skipped_windows_leave_the_others_in_peace(
    ids: np.ndarray, raster: tuple[int, int], data: st.DataObject
) -> None:
    """Against masks of the whole picture: views of an object are joined if both saw a pixel of it, and so on."""
    side, overlap = raster
    every = list(Windows(ids.shape[1], ids.shape[0], side, overlap))
    skipped = data.draw(st.sets(st.integers(0, len(every) - 1)))
    expected: list[np.ndarray] = []
    for id in range(1, ids.max() + 1):
        groups: list[np.ndarray] = []
        for number, window in enumerate(every):
            seen = np.zeros(ids.shape, bool)
            if number not in skipped:
                part = np.s_[window.top : window.top + side, window.left : window.left + side]
                seen[part] = ids[part] == id
            if seen.any():
                same = [group for group in groups if (group & seen).any()]
                groups = [group for group in groups if not (group & seen).any()]
                groups.append(np.logical_or.reduce([seen, *same]))
        expected += groups
    merged = stitched(ids, side, overlap, skipped=skipped)
    assert len(merged) == len(expected)
    assert as_sets(drawn(one, ids) for one in merged) == as_sets(expected)


def test_objects_come_as_soon_as_no_later_window_sees_them() -> None:
    side, overlap = 40, 10
    ids = label(np.random.default_rng(0).random((100, 100)) > 0.9, connectivity=1)
    stitcher = Stitcher(side, overlap, 100, 100)
    came: dict[bytes, Place] = {}
    for number, window in enumerate(Windows(100, 100, side, overlap)):
        for one in stitcher.add(window, found(perfect(ids, window), side, number)):
            came[np.packbits(drawn(one, ids)).tobytes()] = Place(window.row, window.column)
    assert stitcher.finish() == []
    for id in range(1, ids.max() + 1):
        rows, columns = np.nonzero(ids == id)
        last = Place(min(rows.max() // 30, 2), min(columns.max() // 30, 2))
        assert came[np.packbits(ids == id).tobytes()] == last


def test_objects_come_in_the_order_in_which_they_were_first_seen() -> None:
    ids = np.zeros((40, 100), np.int32)
    ids[5:8, 45:50], ids[10:30, 25:60], ids[12:20, 75:80] = 1, 2, 3  # the second is seen before the first
    stitcher = Stitcher(40, 10, 100, 40)
    came = []
    for window in Windows(100, 40, 40, 10):
        cut = np.zeros((40, 40), np.int32)
        part = ids[:, window.left : window.left + 40]
        cut[:, : part.shape[1]] = part
        came.append([one.class_ for one in stitcher.add(window, Found(torch.from_numpy(cut), [1, 2, 3], [1.0] * 3))])
    assert came == [[], [2, 1], [3]]


@pytest.mark.parametrize("share", [0.25, 0.7])
def test_pixels_held_do_not_grow_with_the_rows(share: float) -> None:
    """Neither those of many small objects nor those of one that goes through the whole picture."""
    held = {}
    for rows in (5, 15):
        height = 30 * rows + 10
        ids = label(np.random.default_rng(1).random((height, 70)) < share, connectivity=1)
        stitcher = Stitcher(40, 10, 70, height)
        most = 0
        for number, window in enumerate(Windows(70, height, 40, 10)):
            stitcher.add(window, found(perfect(ids, window), 40, number))
            pieces = [piece for one in stitcher.objects.values() for piece in one.pieces]
            most = max(most, sum(piece.seen.size + piece.kept.size for piece in pieces))
        held[rows] = most
    assert 0 < held[15] < 1.5 * held[5]


def test_windows_come_in_order_and_overlap_by_half_at_most() -> None:
    stitcher = Stitcher(40, 10, 100, 100)
    first, second, *_ = Windows(100, 100, 40, 10)
    nothing = Found(torch.zeros(40, 40, dtype=torch.int32), [], [])
    stitcher.add(second, nothing)
    for window in (first, second):
        with pytest.raises(ValueError, match="row by row"):
            stitcher.add(window, nothing)
    with pytest.raises(ValueError, match="half"):
        Stitcher(40, 21, 100, 100)
    with pytest.raises(ValueError, match=r"0\.5"):
        Stitcher(40, 10, 100, 100, least=0.4)
