"""Outlines become the pixels whose centres they enclose; what is broken is named, what overlaps is settled."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from colocate.base.errors import UserError
from colocate.base.shapes import Patch, rasterise, region
from colocate.datasets import outlines as polygons
from colocate.datasets.outlines import Canvas, Remarks
from tests.reference import inside

FIFTH = 0.2 * math.sqrt(2)  # pycocotools rounds corners to fifths of a pixel
SQUARE = [(2, 3), (12, 3), (12, 13), (2, 13)]
BOW_TIE = [(0, 0), (10, 10), (10, 0), (0, 10)]
LINE = [(1, 1), (9, 1), (5, 1)]


def star(seed: int, centre: float = 12, reach: float = 11) -> list[tuple[float, float]]:
    """A polygon that does not cross itself: corners round a centre, at any distance."""
    dice = random.Random(seed)
    count = dice.randint(5, 16)
    turns = [2 * math.pi * (number + dice.random()) / count for number in range(count)]
    return [
        (centre + (r := dice.uniform(0.2, 1) * reach) * math.cos(turn), centre + r * math.sin(turn)) for turn in turns
    ]


def filled(patch: Patch, height: int = 40, width: int = 40) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    high, wide = patch.mask.shape
    mask[patch.top : patch.top + high, patch.left : patch.left + wide] = patch.mask
    return mask


def drawn(*rings: list, height: int = 40, width: int = 40) -> np.ndarray:
    return filled(rasterise(region([list(rings)], "test")[0], height, width), height, width)


@pytest.fixture
def remarks() -> Remarks:
    return Remarks()


@pytest.fixture
def canvas(remarks: Remarks) -> Canvas:
    return Canvas(40, 40, Path("some/a.xml"), remarks, skip=False)


@given(st.integers(0, 10**6))
def test_pixels_are_those_whose_centres_lie_inside(seed: int) -> None:
    ring = star(seed)
    found = {(row, column) for row, column in zip(*(axis.tolist() for axis in drawn(ring).nonzero()), strict=True)}
    edge = shapely.LinearRing(ring)
    for row, column in found ^ inside.pixels([ring], 24, 24):
        assert edge.distance(shapely.Point(column + 0.5, row + 0.5)) < FIFTH


def test_area_is_right_on_average() -> None:
    """A rasteriser that sets every pixel it touches, as Pillow's does, is a third of a pixel too fat all round."""
    shapes = [shapely.Polygon(star(seed)) for seed in range(200)]
    errors = [(rasterise(shape, 40, 40).mask.sum() - shape.area) / shape.length for shape in shapes]
    assert abs(np.mean(errors)) < 0.01
    assert np.abs(errors).max() < 0.25


def test_whole_numbers_are_corners_of_pixels() -> None:
    expected = np.zeros((40, 40), bool)
    expected[3:13, 2:12] = True
    assert (drawn(SQUARE) == expected).all()
    assert (drawn(SQUARE[::-1]) == expected).all()
    assert (drawn([*SQUARE, SQUARE[0]]) == expected).all()


@given(st.integers(0, 10**6))
def test_neighbours_share_no_pixel_and_leave_none(seed: int) -> None:
    dice = random.Random(seed)
    cut = [(dice.uniform(5, 35), y) for y in sorted(dice.uniform(0, 40) for _ in range(4))]
    cut = [(cut[0][0], 0), *cut, (cut[-1][0], 40)]
    left, right = drawn([(0, 0), *cut, (0, 40)]), drawn([(40, 0), *cut, (40, 40)])
    assert (left ^ right).all()


def test_holes_and_what_stands_in_them() -> None:
    hole, island = [(4, 5), (10, 5), (10, 11), (4, 11)], [(6, 7), (8, 7), (8, 9), (6, 9)]
    ring = drawn(SQUARE, hole)
    assert (ring == (drawn(SQUARE) & ~drawn(hole))).all()
    both = filled(rasterise(region([[SQUARE, hole], [island]], "test")[0], 40, 40))
    assert (both == (ring | drawn(island))).all()
    assert both.sum() == 100 - 36 + 4


@given(st.integers(0, 10**6), st.integers(-30, 30), st.integers(-30, 30))
def test_an_image_is_a_window(seed: int, right: int, down: int) -> None:
    ring = star(seed)
    moved = drawn([(x + right, y + down) for x, y in ring])
    whole = drawn([(x + 40, y + 40) for x, y in ring], height=120, width=120)
    difference = moved ^ whole[40 - down : 80 - down, 40 - right : 80 - right]
    assert difference.sum() <= 2  # a corner that the frame made is rounded anew


def test_far_corners_cost_nothing() -> None:
    for far in (1e9, 1e12):
        assert drawn([(-far, -far), (far, -far), (far, far), (-far, far)]).all()
        assert not drawn([(100, 100), (far, 100), (100, far)]).any()


def test_crossings_are_mended_and_nothing_is_lost() -> None:
    shape, mended = region([[BOW_TIE]], "test")
    assert (shape.is_valid, shape.area, mended) == (True, 50, True)
    pentagram = [(10 * math.cos(0.8 * math.pi * n), 10 * math.sin(0.8 * math.pi * n)) for n in range(5)]
    shape, mended = region([[pentagram]], "test")
    assert mended
    assert shape.contains(shapely.Point(0, 0).buffer(3.8))  # the middle, which the outline goes round twice
    crossing_hole = [(8, 5), (20, 5), (20, 7), (8, 7)]
    shape, mended = region([[SQUARE, crossing_hole]], "test")
    assert (shape.area, mended) == (100 - 8, True)
    apart = [(30, 30), (32, 30), (32, 32)]
    shape, mended = region([[SQUARE, apart]], "test")
    assert (shape.area, mended) == (100, True)


def test_parts_that_touch_are_whole() -> None:
    shape, mended = region([[SQUARE], [[(12, 3), (22, 3), (22, 13), (12, 13)]], [SQUARE]], "test")
    assert (shape.area, mended) == (200, False)


@pytest.mark.parametrize(
    "shapes",
    [[[[(0, 0), (1, math.nan), (1, 1)]]], [[[(0, 0), (1, "x"), (1, 1)]]], [[[(0, 0), (1,), (2, 2)]]], [None], 7,
     [[[(0, 0), (None, None), (1, 1)]]], [[[(0, 0), (math.inf, 0), (1, 1)]]], [[[(0, 0), (1e308, 1e308), (1, 1)]]],
     [[[(0, 0), (-1e155, 0), (1, 1)]]]],
)  # fmt: skip
def test_what_is_no_outline_is_named(canvas: Canvas, shapes: object) -> None:
    with pytest.raises(UserError, match=r"^some/a\.xml, region 7 is no outline of points x, y \(.*\): get"):
        canvas.outline("region 7", shapes)


@pytest.mark.parametrize("ring", [[], [(5, 5)], [(5, 5), (8, 8)], LINE, [(5, 5), (5.1, 5), (5, 5.1)]])
def test_no_area_is_refused_or_left_out(canvas: Canvas, remarks: Remarks, ring: list) -> None:
    with pytest.raises(UserError, match=r"^some/a\.xml, region 7 encloses no pixel: mend it, or .*--skip-broken$"):
        canvas.outline("region 7", [[ring]])
    canvas.skip = True
    canvas.outline("region 7", [[ring]])
    canvas.outline("region 8", [[]])
    canvas.outline("region 9", [])
    assert remarks.notes() == (f"{polygons.EMPTY}: 3 (a.xml, region 7; a.xml, region 8; a.xml, region 9).",)
    assert not canvas.finish()[0].any()


def test_outside_is_refused_or_left_out(canvas: Canvas, remarks: Remarks) -> None:
    away = [(50, 50), (60, 50), (60, 60)]
    with pytest.raises(UserError, match=r"region 7 lies outside of its image \(40 x 40 px\): mend it, or"):
        canvas.outline("region 7", [[away]])
    canvas.skip = True
    canvas.outline("region 7", [[away]])
    canvas.outline("region 8", [[[(-5, -5), (5, -5), (5, 5), (-5, 5)]]])
    assert remarks.notes() == (f"{polygons.OUTSIDE}: 1 (a.xml, region 7).",)
    assert canvas.finish()[0].sum() == 25


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6))
def test_the_smallest_is_on_top(seeds: list[int]) -> None:
    remarks = Remarks()
    canvas = Canvas(40, 40, Path("a.xml"), remarks, skip=True)
    masks = []
    for number, seed in enumerate(seeds):
        ring = star(seed, centre=9 + seed % 7, reach=3 + seed % 6)
        canvas.outline(f"region {number}", [[ring]], class_=str(number))
        masks.append(drawn(ring))
    ids, labels = canvas.finish()
    names = [canvas.drawn[id - 1][0] for id in range(1, len(canvas.drawn) + 1)]
    for row in range(24):
        for column in range(24):
            claims = [number for number, mask in enumerate(masks) if mask[row, column]]
            if not claims:
                assert ids[row, column] == 0
            else:
                number = int(names[int(ids[row, column]) - 1].removeprefix("region "))
                assert masks[number].sum() == min(masks[claim].sum() for claim in claims)
                assert labels[int(ids[row, column])] == str(number)
    assert remarks.shared == int((np.sum(masks, 0) > 1).sum())
    assert set(labels) == set(ids.unique().tolist()) - {0}


def test_what_is_wholly_hidden_is_said(canvas: Canvas, remarks: Remarks) -> None:
    canvas.outline("region 1", [[SQUARE]])
    canvas.outline("region 2", [[SQUARE]], "gland")
    ids, labels = canvas.finish()
    assert labels == {2: "gland"}
    assert ids.unique().tolist() == [0, 2]
    assert remarks.notes() == (
        f"{polygons.HIDDEN}: 1 (a.xml, region 1).",
        "Objects overlap: 100 pixels that several claim went to the smallest.",
    )


def test_notes_name_three_and_count_all(remarks: Remarks) -> None:
    assert remarks.notes() == ()
    for number in range(1234):
        remarks.add(polygons.MENDED, f"a, {number}")
    assert remarks.notes() == (f"{polygons.MENDED}: 1,234 (a, 0; a, 1; a, 2; ...).",)
