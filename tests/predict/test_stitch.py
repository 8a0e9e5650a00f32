"""What windows saw in pieces comes out whole and once; where they disagree, the one that sees better is believed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, gaussian_filter
from skimage.measure import label

from colocate.base.shapes import rasterise
from colocate.evaluation.metrics.objects import Found
from colocate.prediction.outputs import Outlined
from colocate.prediction.settings import PredictConfig
from colocate.prediction.stitch import Piece, Window, Windows, merge, pieces
from tests.reference import stitch as reference

Detector = Callable[[np.ndarray, Window], dict[int, np.ndarray]]
"""The objects of a window as masks, by the ids that they truly have."""


def perfect(ids: np.ndarray, window: Window) -> dict[int, np.ndarray]:
    """Each object of the picture, cut to the window."""
    cut = np.zeros((window.side, window.side), int)
    part = ids[window.top : window.top + window.side, window.left : window.left + window.side]
    cut[: part.shape[0], : part.shape[1]] = part
    return {int(id): cut == id for id in np.unique(cut) if id}


def found(masks: dict[int, np.ndarray], side: int, shuffle: int = 0) -> Found:
    """Masks as a detector gives them: numbered anyhow."""
    order = list(np.random.default_rng(shuffle).permutation(sorted(masks)).tolist())
    ids = np.zeros((side, side), np.int32)
    for number, id in enumerate(order, start=1):
        ids[masks[id]] = number
    return Found(torch.from_numpy(ids), [1 + id % 3 for id in order], [1 / (1 + id) for id in order])


def stitched(
    ids: np.ndarray, side: int, overlap: int, detector: Detector = perfect, skipped: Collection[int] = ()
) -> list[Outlined]:
    seen: list[Piece] = []
    for number, window in enumerate(Windows(ids.shape[1], ids.shape[0], side, overlap)):
        if number not in skipped:
            seen += pieces(window, found(detector(ids, window), side, number))
    return merge(seen)


def drawn(merged: Outlined, like: np.ndarray) -> np.ndarray:
    patch = rasterise(merged.shape, *like.shape)
    whole = np.zeros(like.shape, bool)
    whole[patch.place] = patch.mask
    return whole


def as_sets(masks: Iterable[np.ndarray]) -> set[bytes]:
    return {np.packbits(mask).tobytes() for mask in masks}


def assert_apart(merged: list[Outlined], like: np.ndarray) -> np.ndarray:
    """Valid shapes, together as large as each alone; and no pixel drawn twice. Returns those that are drawn."""
    shapes = [one.shape for one in merged]
    assert shapely.is_valid(shapes).all() and not shapely.is_empty(shapes).any()
    assert shapely.union_all(shapes).area == pytest.approx(sum(shape.area for shape in shapes), abs=1e-9)
    often = sum((drawn(one, like).astype(int) for one in merged), np.zeros(like.shape, int))
    assert often.max() <= 1
    return often > 0


@st.composite
def pictures(draw: st.DrawFn) -> np.ndarray:
    """Ids of connected objects: dust, blobs, some larger than windows, apart or side by side with no gap."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    height, width = (draw(st.sampled_from([48, 31, 60, 17, 1])) for _ in range(2))
    there = gaussian_filter(rng.normal(size=(height, width)), draw(st.sampled_from([0, 1, 3, 6]))) > 0
    seeds = np.full((height, width), True)
    seeds[rng.integers(0, height, 12), rng.integers(0, width, 12)] = False
    nearest = distance_transform_edt(seeds, return_distances=False, return_indices=True)
    regions = 1 + nearest[0] * width + nearest[1] if draw(st.booleans()) else np.ones((height, width), int)
    return label(np.where(there, regions, 0), connectivity=1)


@st.composite
def rasters(draw: st.DrawFn) -> tuple[int, int]:
    """Side and overlap of windows."""
    side = draw(st.sampled_from([16, 9, 12, 21, 30]))
    return side, draw(st.sampled_from([side // 2, side // 3, side // 4, 1]))


@given(rasters(), st.integers(1, 120), st.integers(1, 120))
def test_windows_cover_the_picture_and_cores_share_no_pixel(raster: tuple[int, int], width: int, height: int) -> None:
    side, overlap = raster
    seen, cores = np.zeros((2, height, width), int)
    all_windows = list(Windows(width, height, side, overlap))
    assert all_windows == sorted(all_windows)
    for window in all_windows:
        seen[window.top : window.top + side, window.left : window.left + side] += 1
        assert window.view.polygon.covers(window.core.polygon)
        cores[window.core.slices()] += 1
    assert seen.min() >= 1 and seen.max() <= 4
    assert cores.min() == cores.max() == 1
    last = all_windows[-1]
    assert last.top == 0 or last.top + overlap < height  # the one before does not reach the end
    assert last.left == 0 or last.left + overlap < width


@pytest.mark.slow
@given(pictures(), rasters())
@settings(max_examples=15)
def test_a_perfect_detector_finds_each_object_once_and_whole(ids: np.ndarray, raster: tuple[int, int]) -> None:
    merged = stitched(ids, *raster)
    one_window = stitched(ids, 2 * max(ids.shape), 0)
    assert len(merged) == ids.max()
    assert as_sets(drawn(one, ids) for one in merged) == as_sets(ids == id for id in range(1, ids.max() + 1))
    facts = [sorted((one.shape.area, one.class_, round(one.score, 6)) for one in some) for some in (merged, one_window)]
    assert facts[0] == facts[1]
    assert_apart(merged, ids)


def test_windows_of_any_size_overlap_unless_told_not_to() -> None:
    sizes = [PredictConfig(side).windows("instances") for side in (64, 96, 128, 160, None)]
    assert sizes == [(64, 32), (96, 32), (128, 32), (160, 32), (1024, 256)]
    assert PredictConfig(64, 0).windows("instances") == (64, 0)


def test_objects_come_in_the_order_in_which_they_were_first_seen() -> None:
    ids = np.zeros((40, 100), np.int32)
    ids[5:8, 45:50], ids[10:30, 25:60], ids[12:20, 75:80] = 1, 2, 3  # the second is seen before the first
    windows = Windows(100, 40, 40, 10)
    seen: list[Piece] = []
    for window in windows:
        cut = np.zeros((40, 40), np.int32)
        part = ids[:, window.left : window.left + 40]
        cut[:, : part.shape[1]] = part
        seen += pieces(window, Found(torch.from_numpy(cut), [1, 2, 3], [1.0] * 3))
    assert [one.class_ for one in merge(seen)] == [2, 1, 3]
    assert merge([]) == []


def square(top: int, left: int, side: int, like: tuple[int, int] = (64, 112)) -> np.ndarray:
    mask = np.zeros(like, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def scene(*views: dict[int, np.ndarray]) -> list[Outlined]:
    """Two windows of 64 px side by side, columns 0 to 63 and 48 to 111, saw these masks; the seam of cores is at 56."""
    empty = np.zeros((64, 112), int)

    def detector(_: np.ndarray, window: Window) -> dict[int, np.ndarray]:
        return {id: mask[:, window.left : window.left + 64] for id, mask in views[window.left > 0].items()}

    return stitched(empty, 64, 16, detector)


@pytest.mark.parametrize(("rows", "objects"), [(7, 1), (6, 2)])
def test_objects_are_the_same_if_more_than_half_of_what_both_saw_is(rows: int, objects: int) -> None:
    """Of objects of 10 rows, shifted so that they share 7 of 13 or 6 of 14, however much of them lies elsewhere."""
    row = np.arange(64)[:, None]
    bands = [np.broadcast_to((row >= top) & (row < top + 10), (64, 112)) for top in (10, 20 - rows)]
    assert len(scene({1: square(10, 51, 10)}, {1: square(20 - rows, 51, 10)})) == objects
    assert len(scene({1: bands[0]}, {1: bands[1]})) == objects


def test_arms_that_meet_beyond_a_window_are_one_object() -> None:
    """A U whose arms the left window saw as two objects; and two objects that both windows saw apart stay two."""
    arms = [np.zeros((64, 112), bool) for _ in range(2)]
    arms[0][10:20, 30:100] = arms[1][40:50, 30:100] = True
    bend = np.zeros((64, 112), bool)
    bend[10:50, 90:100] = True
    whole = arms[0] | arms[1] | bend
    for flip in (np.s_[:, :], np.s_[:, ::-1]):
        views = [{1: arms[0][flip], 2: arms[1][flip]}, {1: whole[flip]}][:: 1 if flip == np.s_[:, :] else -1]
        assert as_sets(drawn(one, whole) for one in scene(*views)) == as_sets([whole[flip]])
    assert len(scene({1: arms[0], 2: arms[1]}, {1: arms[0], 2: arms[1]})) == 2
    apart = {1: arms[0] | arms[1]}  # in two parts wherever it was seen: no arms, but one object in parts
    assert len(scene({1: arms[0], 2: arms[1]}, apart)) == 3


def test_an_object_that_one_window_missed_is_whole_if_the_other_sees_it_well() -> None:
    mask = square(20, 46, 18)  # columns 46 to 63: ten of them before the seam
    assert as_sets(drawn(one, mask) for one in scene({1: mask}, {})) == as_sets([mask])


def test_an_object_in_a_poor_border_that_nobody_confirms_is_dropped() -> None:
    mask = square(20, 54, 8)  # two of its columns before the seam
    assert scene({1: mask}, {}) == scene({}, {1: mask[:, ::-1]}) == []


def test_two_poor_borders_do_not_make_a_good_view() -> None:
    """Both upper windows saw an object, most of it where the lower right one, which found nothing, sees better."""
    rows, columns = np.indices((112, 112))
    left, right = ((rows >= 50) & (rows < end) & (columns >= 50) for end in (61, 64))

    def detector(_: np.ndarray, window: Window) -> dict[int, np.ndarray]:
        mask = (left, right)[window.left > 0][window.top : window.top + 64, window.left : window.left + 64]
        return {} if window.top else {1: mask}

    nothing = np.zeros((112, 112), int)
    assert stitched(nothing, 64, 16, detector) == []


def test_what_is_dropped_takes_nothing_from_what_stays() -> None:
    true, false = square(10, 50, 40), square(30, 51, 12)  # the false one reaches into the core of its window
    assert as_sets(drawn(one, true) for one in scene({1: false}, {2: true})) == as_sets([true])
    true, false = true[:, ::-1], false[:, ::-1]
    assert as_sets(drawn(one, true) for one in scene({2: true}, {1: false})) == as_sets([true])


def test_each_window_is_believed_in_its_core() -> None:
    """The left one saw an object end at row 30, the right one at row 34; and the other way round."""
    rows, columns = np.arange(64)[:, None], np.arange(112)
    short, long = (square(10, 40, 30) & (rows < end) for end in (30, 34))
    for left, right in ((short, long), (long, short)):
        merged = scene({1: left}, {1: right})
        assert as_sets(drawn(one, long) for one in merged) == as_sets([np.where(columns < 56, left, right)])


def test_pixels_that_two_objects_claim_go_to_the_one_in_the_core() -> None:
    upper, lower = square(10, 48, 16), square(22, 48, 16)  # four rows that the windows give to different objects
    views = [{1: upper, 2: lower & ~upper}, {1: upper & ~lower, 2: lower}]
    merged = scene(*views)
    assert_apart(merged, upper)
    before = np.arange(112) < 56
    expected = [np.where(before, views[0][id], views[1][id]) for id in (1, 2)]
    assert as_sets(drawn(one, upper) for one in merged) == as_sets(expected)


def test_class_and_score_are_weighted_by_area() -> None:
    mask = square(20, 20, 40)  # columns 20 to 59: the left window is believed in 36 of them, the right one in 4
    windows = Windows(112, 64, 64, 16)
    seen: list[Piece] = []
    for window, class_, score in zip(windows, (2, 1), (0.9, 0.5), strict=True):
        ids = torch.from_numpy(mask[:, window.left : window.left + 64].astype(np.int32))
        seen += pieces(window, Found(ids, [class_], [score]))
    (merged,) = merge(seen)
    assert merged.class_ == 2
    assert merged.score == pytest.approx((36 * 0.9 + 4 * 0.5) / 40)


@pytest.mark.slow
@given(st.integers(0, 1000), rasters())
@settings(max_examples=15)
def test_objects_seen_differently_by_each_window_come_out_once_and_apart(seed: int, raster: tuple[int, int]) -> None:
    """Borders a pixel further in or out in each window, as chance has it."""
    ids = np.zeros((73, 93), int)
    for number, (row, column) in enumerate(np.ndindex(4, 5), start=1):
        ids[4 + 17 * row : 17 + 17 * row, 4 + 17 * column : 17 + 17 * column] = number
    side, overlap = 34 + raster[0], 17 + raster[1] // 4

    def shaky(ids: np.ndarray, window: Window) -> dict[int, np.ndarray]:
        rng = np.random.default_rng((seed, window.top, window.left))
        changes = [binary_erosion, binary_dilation, lambda mask: mask]
        return {id: changes[rng.integers(3)](mask) for id, mask in perfect(ids, window).items() if mask.sum() > 40}

    merged = stitched(ids, side, overlap, shaky)
    assert_apart(merged, ids)
    assert len(merged) == 20
    for one in merged:
        mask = drawn(one, ids)
        most = np.bincount(ids[mask], minlength=21)[1:].max()
        assert most / (169 + mask.sum() - most) > 0.6


@pytest.mark.slow
@given(pictures(), rasters(), st.integers(0, 1000), st.floats(0, 0.5), st.data())
@settings(max_examples=20)
def test_objects_are_those_of_the_slow_way(
    ids: np.ndarray, raster: tuple[int, int], seed: int, missed: float, data: st.DataObject
) -> None:
    """Windows that miss objects or parts of them, see things that are not there, or are skipped."""
    side, overlap = raster
    ids = ids[:31, :48]
    every = list(Windows(ids.shape[1], ids.shape[0], side, overlap))
    skipped = data.draw(st.sets(st.integers(0, len(every) - 1), max_size=2))

    def confused(ids: np.ndarray, window: Window) -> dict[int, np.ndarray]:
        rng = np.random.default_rng((seed, window.top, window.left))
        gone = gaussian_filter(rng.normal(size=(2, side, side)), (0, 1.5, 1.5)) > 0.25
        right = perfect(ids, window)
        seen = {id: mask & ~gone[0] for id, mask in right.items() if rng.random() >= missed}
        part = np.zeros((side, side), bool)
        part[: ids.shape[0] - window.top, : ids.shape[1] - window.left] = True
        ghost = gone[1] & part & ~np.logical_or.reduce([part & False, *seen.values()])
        return {id: mask for id, mask in {**seen, ids.max() + 1: ghost}.items() if mask.any()}

    pieces, views, cores = [], {}, {}
    for number, window in enumerate(every):
        if number not in skipped:
            view = np.s_[window.top : window.top + side, window.left : window.left + side]
            views[number] = placed(np.ones((side, side), bool), view, ids)
            cores[number] = np.zeros(ids.shape, bool)
            cores[number][window.core.slices()] = True
            for id, mask in confused(ids, window).items():
                pieces.append(reference.Piece(number, placed(mask, view, ids), 1 / (1 + id)))
    expected = reference.stitched(pieces, views, cores)
    merged = stitched(ids, side, overlap, confused, skipped)
    assert len(merged) == len(expected)
    assert as_sets(drawn(one, ids) for one in merged) == as_sets(mask for mask, _ in expected)
    assert sorted(one.score for one in merged) == pytest.approx(sorted(score for _, score in expected))


def placed(mask: np.ndarray, where: tuple[slice, slice], like: np.ndarray) -> np.ndarray:
    whole = np.zeros(like.shape, bool)
    part = whole[where]
    part |= mask[: part.shape[0], : part.shape[1]]
    return whole


@given(st.integers(0, 1000), rasters())
@settings(max_examples=15)
def test_whatever_windows_say_objects_are_apart(seed: int, raster: tuple[int, int]) -> None:
    """Windows that agree on nothing: valid objects without shared pixels, each of pixels that some window saw."""
    ids = np.zeros((40, 50), int)
    seen = np.zeros(ids.shape, bool)

    def dreaming(ids: np.ndarray, window: Window) -> dict[int, np.ndarray]:
        rng = np.random.default_rng((seed, window.top, window.left))
        blobs = label(gaussian_filter(rng.normal(size=(window.side, window.side)), 2) > 0)
        part = seen[window.top : window.top + window.side, window.left : window.left + window.side]
        part |= (blobs > 0)[: part.shape[0], : part.shape[1]]
        return {id: blobs == id for id in range(1, blobs.max() + 1)}

    assert not (assert_apart(stitched(ids, *raster, dreaming), ids) & ~seen).any()
