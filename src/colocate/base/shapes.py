"""Masks become outlines: along the edges of the pixels, exactly; then with their corners cut, as they are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import shapely
import torch
from jaxtyping import Bool, Float64, Int32
from pycocotools import mask as coco
from shapely.geometry.base import BaseGeometry
from torch import Tensor

from colocate.base.errors import UserError


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


MENDED = "Outlines that cross or touch themselves, mended"
EMPTY = "Objects without area, left out"
OUTSIDE = "Objects outside of their image, left out"
HIDDEN = "Objects wholly under smaller ones, left out"


@final
class Remarks:
    """What was done to the objects of a data set, and to which."""

    def __init__(self) -> None:
        self.objects: dict[str, list[str]] = {}
        self.shared = 0
        """Pixels that more than one object claims."""

    def add(self, what: str, where: str) -> None:
        self.objects.setdefault(what, []).append(where)

    def notes(self) -> tuple[str, ...]:
        """A sentence for each thing that was done.

        >>> remarks = Remarks()
        >>> remarks.add(MENDED, "a.xml, region 7")
        >>> remarks.notes()
        ('Outlines that cross or touch themselves, mended: 1 (a.xml, region 7).',)
        """
        notes = [
            f"{what}: {len(names):,} ({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})."
            for what, names in sorted(self.objects.items())
        ]
        if self.shared:
            notes.append(f"Objects overlap: {self.shared:,} pixels that several claim went to the smallest.")
        return tuple(notes)


@final
class Canvas:
    """The objects of one image of `height` x `width` pixels, drawn one by one."""

    def __init__(self, height: int, width: int, file: Path, remarks: Remarks, *, skip: bool) -> None:
        """`file` says what the objects are; `skip`: those without a pixel are left out and remarked, not refused."""
        self.height, self.width = height, width
        self.file = file
        self.remarks = remarks
        self.skip = skip
        self.drawn: list[tuple[str, int, Patch]] = []

    def outline(self, name: str, polygons: Any, label: int = 1) -> None:
        """Draw an object given by polygons: each a list of rings (points x, y), the first outside, the others holes.

        name: what it is called in the file.

        Raises:
            UserError: a coordinate is no number, or (unless `skip`) the object has no area or lies outside the image.
        """
        shape, mended = region(polygons, f"{self.file}, {name}")
        if mended and shape.area:
            self.remark(MENDED, name)
        if shape.area and not shape.intersects(shapely.box(0, 0, self.width, self.height)):
            self._leave_out(OUTSIDE, name, f"lies outside of its image ({self.width} x {self.height} px)")
        else:
            self.patch(name, rasterise(shape, self.height, self.width), label)

    def patch(self, name: str, patch: Patch, label: int = 1) -> None:
        """Draw an object given by its pixels. Raises UserError (unless `skip`) if there are none."""
        if patch.mask.any():
            self.drawn.append((name, label, patch))
        else:
            self._leave_out(EMPTY, name, "encloses no pixel")

    def remark(self, what: str, name: str) -> None:
        """Note what was done to an object."""
        self.remarks.add(what, f"{self.file.name}, {name}")

    def finish(self) -> tuple[Int32[Tensor, "h w"], dict[int, int]]:
        """The number of the object at each pixel (0 for none, the smallest of several), and the label of each."""
        ids = np.zeros((self.height, self.width), np.int32)
        claims = np.zeros((self.height, self.width), np.int32)
        for number in sorted(range(len(self.drawn)), key=lambda number: -int(self.drawn[number][2].mask.sum())):
            top, left, mask = self.drawn[number][2]
            here = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
            claims[here] += mask
            ids[here][mask] = number + 1
        self.remarks.shared += int((claims > 1).sum())
        seen = set(np.unique(ids).tolist())
        for number, (name, _, _) in enumerate(self.drawn, start=1):
            if number not in seen:
                self.remark(HIDDEN, name)
        return torch.from_numpy(ids), {id: self.drawn[id - 1][1] for id in sorted(seen - {0})}

    def _leave_out(self, what: str, name: str, how: str) -> None:
        if not self.skip:
            raise UserError(f"{self.file}, {name} {how}: mend it, or leave such objects out with --skip-broken")
        self.remark(what, name)


def region(polygons: Any, where: str) -> tuple[BaseGeometry, bool]:
    """What polygons enclose together, and whether one had to be mended; empty if they enclose nothing.

    Where an outline crosses itself, all that it goes round counts.

    Raises:
        UserError: a coordinate is no number.
    """
    parts, mended = [], False
    try:
        for rings in polygons:
            if len(rings) == 0:
                continue
            shell, *holes = [_points(ring) for ring in rings]
            if all(len(ring) >= 3 for ring in (shell, *holes)) and (part := shapely.Polygon(shell, holes)).is_valid:
                parts.append(part)
            else:
                mended = True
                parts.append(_filled(shell).difference(shapely.union_all([_filled(hole) for hole in holes])))
    except (TypeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where} is no outline of points x, y ({reason}): get the file again, or mend it") from error
    return parts[0] if len(parts) == 1 else shapely.union_all(parts), mended


def _points(ring: Any) -> Float64[np.ndarray, "n 2"]:
    points = np.array([(float(point[0]), float(point[1])) for point in ring]).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is infinite or no number")
    return points


def _filled(ring: Float64[np.ndarray, "n 2"]) -> BaseGeometry:
    if len(ring) < 3:
        return shapely.Polygon()
    return shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False)


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
