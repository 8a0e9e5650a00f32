"""Turn outlines into masks and masks into outlines: exactly along the edges of pixels, then with their corners cut."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import shapely
from jaxtyping import Bool, Float64
from pycocotools import mask as coco
from shapely.geometry.base import BaseGeometry


class Patch(NamedTuple):
    """Some pixels of an image: those set in `mask`, whose first lies at row `top`, column `left`."""

    top: int
    left: int
    mask: Bool[np.ndarray, "h w"]


def rasterise(shape: BaseGeometry, height: int, width: int) -> Patch:
    """The pixels of an image of `height` x `width` whose centres lie in a valid shape."""
    frame = shapely.box(0, 0, width, height)
    inside = shape if frame.covers(shape) else shape.intersection(frame)  # pycocotools walks every far-off pixel
    polygons = [part for part in shapely.get_parts(inside) if isinstance(part, shapely.Polygon) and part.area]
    if not polygons:
        return Patch(0, 0, np.zeros((0, 0), bool))
    left, top = (math.floor(low) for low in inside.bounds[:2])
    high, wide = math.ceil(inside.bounds[3]) - top, math.ceil(inside.bounds[2]) - left
    mask = np.zeros((high, wide), bool)
    for polygon in polygons:
        part = _drawn([polygon.exterior], top, left, high, wide)
        if polygon.interiors:
            part &= ~_drawn(polygon.interiors, top, left, high, wide)
        mask |= part
    return Patch(top, left, mask)


def _drawn(rings: Iterable[Any], top: int, left: int, high: int, wide: int) -> Bool[np.ndarray, "h w"]:
    # pycocotools rounds to fifths; without what subtraction left behind 9 decimals, it does as in the whole image
    corners: Any = [(shapely.get_coordinates(ring) - (left, top)).round(9).ravel().tolist() for ring in rings]
    return coco.decode(coco.merge(coco.frPyObjects(corners, high, wide))).astype(bool)


def outline(mask: Bool[np.ndarray, "h w"], top: int = 0, left: int = 0) -> BaseGeometry:
    """The pixels of a mask whose first one lies at row `top`, column `left`: exactly, as a valid (Multi)Polygon.

    A pixel is a unit square whose corners are whole numbers. Holes stay; pixels that touch at a corner only are parts
    of their own, unless they are joined elsewhere. Empty if no pixel is set.

    >>> shape = outline(np.ones((2, 3), bool), top=10)
    >>> shape.area, shape.bounds
    (6.0, (0.0, 10.0, 3.0, 12.0))
    """
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)  # each row's runs of pixels
    ends = np.nonzero(steps == -1)[1]
    return shapely.union_all(shapely.box(left + starts, top + rows, left + ends, top + rows + 1)).simplify(0)


def bevelled(shape: BaseGeometry) -> BaseGeometry:
    """An outline along the edges of pixels with each corner cut, from the middle of its one pixel's side to the other.

    The centres of the same pixels lie inside. Cuts at corners that point outwards and inwards make up for each other
    but for half a pixel, by which each outer ring and each hole gets smaller. Borders that slant are at most 8 % too
    long, 5 % on average (along the pixels: 41 % and 27 %). Outlines that do not overlap do not afterwards.

    >>> bevelled(outline(np.ones((2, 3), bool))).area
    5.5
    """
    polygons = [
        shapely.Polygon(_middles(polygon.exterior), [_middles(hole) for hole in polygon.interiors])
        for polygon in shapely.get_parts(shape)
    ]
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)


def _middles(ring: shapely.LinearRing) -> Float64[np.ndarray, "n 2"]:
    """The middles of the first and the last pixel side along each of a ring's edges, where it turns."""
    corners = shapely.get_coordinates(ring)
    half = np.sign(np.diff(corners, axis=0)) / 2
    points = np.stack([corners[:-1] + half, corners[1:] - half], 1).reshape(-1, 2)
    points = points[(points != np.roll(points, 1, axis=0)).any(1)]  # an edge of one pixel has one middle
    x, y = (points - np.roll(points, 1, axis=0)).T
    return points[x * np.roll(y, -1) != y * np.roll(x, -1)]
