"""Outlines are the pixels and nothing else: the same ones, with their holes, and apart from their neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from colocate.base.shapes import bevelled, outline, rasterise


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Anything from dust, whose pixels touch at corners, to smooth blobs with holes."""
    noise = np.random.default_rng(draw(st.integers(0, 1000))).normal(size=(draw(st.integers(1, 24)), 19))
    return gaussian_filter(noise, draw(st.sampled_from([0, 0, 0.7, 1.5]))) > draw(st.sampled_from([-0.3, 0, 0.2, 0.9]))


def drawn(shape: shapely.Geometry, like: np.ndarray, top: int = 0, left: int = 0) -> np.ndarray:
    height, width = like.shape
    patch = rasterise(shape, top + height, left + width)
    whole = np.zeros((top + height, left + width), bool)
    whole[patch.place] = patch.mask
    assert not whole[:top].any() and not whole[:, :left].any()
    return whole[top:, left:]


def disc(radius: float) -> np.ndarray:
    y, x = np.mgrid[-60:61, -60:61]
    return x**2 + y**2 <= radius**2


@given(masks(), st.integers(0, 50), st.integers(0, 50))
def test_an_outline_is_the_pixels_and_their_sides(mask: np.ndarray, top: int, left: int) -> None:
    shape = outline(mask, top, left)
    padded = np.pad(mask, 1).astype(int)
    assert shape.is_valid
    assert shape.area == mask.sum()
    assert shape.length == sum(np.abs(np.diff(padded, axis=axis)).sum() for axis in (0, 1))
    assert (drawn(shape, mask, top, left) == mask).all()


@given(masks())
def test_cut_corners_leave_each_pixel_its_centre_and_half_a_pixel_a_ring(mask: np.ndarray) -> None:
    exact = outline(mask)
    shape = bevelled(exact)
    rings = sum(1 + len(part.interiors) for part in shapely.get_parts(exact))
    holes = rings - len(shapely.get_parts(exact))
    y, x = np.indices(mask.shape)
    assert shape.is_valid
    assert shape.area == mask.sum() - 0.5 * (rings - holes) + 0.5 * holes
    assert (shapely.contains_xy(shape, x + 0.5, y + 0.5) == mask).all()
    assert (drawn(shape, mask) == mask).all()


@given(st.integers(0, 1000), st.integers(2, 5))
@settings(max_examples=20)
def test_neighbours_with_cut_corners_do_not_overlap(seed: int, count: int) -> None:
    ids = np.random.default_rng(seed).integers(0, count, (9, 12))
    shapes = [bevelled(outline(ids == id)) for id in range(count)]
    assert shapely.union_all(shapes).area == pytest.approx(sum(shape.area for shape in shapes), abs=1e-9)


def test_parts_and_holes() -> None:
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    assert len(outline(ring).interiors) == 1  # type: ignore[attr-defined]
    assert isinstance(outline(np.eye(2, dtype=bool)), shapely.MultiPolygon)
    assert isinstance(bevelled(outline(np.eye(2, dtype=bool))), shapely.MultiPolygon)
    assert bevelled(outline(np.ones((1, 1), bool))).equals(shapely.box(0, 0, 1, 1).buffer(0).centroid.buffer(0.5, 1))
    assert outline(np.zeros((3, 4), bool)).is_empty and bevelled(outline(np.zeros((3, 4), bool))).is_empty


def test_no_corner_stands_on_a_straight_line() -> None:
    stairs = np.tri(40, dtype=bool)  # a triangle: three sides, two of its corners cut
    assert len(shapely.get_coordinates(bevelled(outline(stairs)))) <= 7


@pytest.mark.parametrize("radius", [10.3, 20.4, 30.5, 55.2])
def test_the_border_of_a_disc_is_hardly_too_long(radius: float) -> None:
    true = 2 * math.pi * radius
    assert 1.2 < outline(disc(radius)).length / true < 1.3
    assert 1.03 < bevelled(outline(disc(radius))).length / true < 1.07
