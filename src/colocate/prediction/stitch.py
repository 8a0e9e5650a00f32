"""Objects found in overlapping windows become objects of the whole picture, each once.

A window sees poorly near its border, for want of what lies around. So it is believed in its core: the window less half
of the overlap on inner sides. Cores cover the picture and share no pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, final

import numpy as np
import shapely
from jaxtyping import Int64
from scipy.ndimage import find_objects
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely.geometry.base import BaseGeometry

from colocate.base.shapes import bevelled, outline
from colocate.evaluation.metrics.objects import Found
from colocate.prediction.outputs import Outlined
from colocate.prediction.settings import STRIDE_PX

SAME = 0.5  # pieces that agree on more of what both their windows saw are one object: so each has one partner at most
BELIEVED = 0.5  # least share of an object in the cores of the windows that saw it


class Box(NamedTuple):
    """Pixels of the picture: rows `top` up to `bottom` and columns `left` up to `right`, themselves left out."""

    top: int
    left: int
    bottom: int
    right: int

    def slices(self, top: int = 0, left: int = 0) -> tuple[slice, slice]:
        """Its rows and columns in an array whose first pixel is at row `top`, column `left` of the picture."""
        return slice(self.top - top, self.bottom - top), slice(self.left - left, self.right - left)

    @property
    def polygon(self) -> shapely.Polygon:
        """The same in coordinates x, y."""
        return shapely.box(self.left, self.top, self.right, self.bottom)


class Window(NamedTuple):
    """A square of `side` pixels whose first is at row `top`, column `left`; it may reach beyond the picture."""

    top: int
    left: int
    side: int
    view: Box
    """What it sees of the picture."""
    core: Box
    """Where it is believed."""


@final
@dataclass(frozen=True)
class Windows:
    """Square windows over a picture of `width` x `height` pixels, neighbours sharing `overlap`, at most half a side.

    They come row by row; the last of a row or column may reach beyond the picture.

    >>> [window.left for window in Windows(100, 40, side=40, overlap=10)]
    [0, 30, 60]
    """

    width: int
    height: int
    side: int
    overlap: int

    def __iter__(self) -> Iterator[Window]:
        step, half = self.side - self.overlap, self.overlap // 2
        rows, columns = (max(1, math.ceil((length - self.overlap) / step)) for length in (self.height, self.width))
        for row, column in product(range(rows), range(columns)):
            top, left = row * step, column * step
            view = Box(top, left, min(top + self.side, self.height), min(left + self.side, self.width))
            core = Box(
                top + half if row > 0 else 0,
                left + half if column > 0 else 0,
                top + step + half if row < rows - 1 else view.bottom,
                left + step + half if column < columns - 1 else view.right,
            )
            yield Window(top, left, self.side, view, core)


def windows_over(width: float, height: float, side: int, overlap: int) -> Windows:
    """Windows over a picture, whose last pixels may be in part beyond it (`width` and `height` are then no whole ones).

    Where one window would show all of it and more, it is just as large as it needs to be.

    >>> windows_over(200, 90, side=1024, overlap=256).side
    224
    """
    width, height = (max(1, math.ceil(round(length, 6))) for length in (width, height))
    whole = max(64, -(-max(width, height) // STRIDE_PX) * STRIDE_PX)
    return Windows(width, height, whole, 0) if whole < side else Windows(width, height, side, overlap)


class Piece(NamedTuple):
    """An object as one window saw it."""

    window: Window
    shape: BaseGeometry
    """Exactly its pixels, in the picture's."""
    class_: int
    score: float


def pieces(window: Window, found: Found) -> list[Piece]:
    """Outline what was found in a window, as far as it lies in the picture."""
    ids = found.ids.numpy()[window.view.slices(window.top, window.left)]
    boxes = zip(find_objects(ids), found.classes, found.scores, strict=False)  # the last may lie beyond the picture
    return [
        Piece(window, outline(ids[box] == id, window.top + box[0].start, window.left + box[1].start), class_, score)
        for id, (box, class_, score) in enumerate(boxes, start=1)
        if box is not None
    ]


def merge(pieces: Sequence[Piece]) -> list[Outlined]:
    """Put together what windows saw of each object, in the order in which objects were first seen.

    Shapes are in the picture's pixels, with their corners cut (see `shapes.bevelled`).

    Pieces of two windows are the same object if they share more than half of those of their pixels that both windows
    saw; or if one shares so much with an arm of the other: a part of what both windows saw, which only what lies beyond
    joins to the rest. And so on from window to window. In the core of a window that saw the object, its piece alone
    counts. An object is dropped if less than half of it lies in the cores of the windows that saw it: other windows see
    better there. Pixels that two objects claim go to the one of which more lies in such cores. An object's class is
    that of most of its area (of equals the smaller), its score the mean weighted by area.
    """
    if not pieces:
        return []
    objects = [(whole, believed) for whole, believed in map(_whole, _groups(pieces)) if believed >= BELIEVED]
    shapes = [whole.shape for whole, _ in objects]
    for one, other in np.stack(_meeting(shapes), 1).tolist():
        winner, loser = (one, other) if objects[one][1] >= objects[other][1] else (other, one)
        shapes[loser] = shapes[loser].difference(objects[winner][0].shape)
    return [
        whole._replace(shape=bevelled(shape)) for (whole, _), shape in zip(objects, shapes, strict=True) if shape.area
    ]


def _groups(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces of each object."""
    one, other = _meeting([piece.shape for piece in pieces])
    shapes = np.array([piece.shape for piece in pieces])
    views = np.array([piece.window.view.polygon for piece in pieces])
    both = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    seen_twice = shapely.intersection(views[one], views[other])
    seen = [shapely.intersection(shapes[some], seen_twice) for some in (one, other)]
    same = both > SAME * (sum(map(shapely.area, seen)) - both)  # never of two pieces of one window, which share nothing
    for pair in np.flatnonzero(~same & (both > 0)):
        mine, theirs = seen[0][pair], seen[1][pair]
        same[pair] = _is_arm(mine, pieces[other[pair]].shape, theirs) or _is_arm(theirs, pieces[one[pair]].shape, mine)
    pairs = coo_array((same[same], (one[same], other[same])), shape=(len(pieces), len(pieces)))
    groups: dict[int, list[Piece]] = {}
    for piece, number in zip(pieces, connected_components(pairs, directed=False)[1].tolist(), strict=True):
        groups.setdefault(number, []).append(piece)
    return list(groups.values())


def _is_arm(piece: BaseGeometry, other: BaseGeometry, seen: BaseGeometry) -> bool:
    """Whether a piece agrees with an arm of another, `seen` of which is what both windows saw."""
    for whole in shapely.get_parts(other):
        arms = shapely.get_parts(shapely.intersection(whole, seen))
        arms = arms[shapely.area(arms) > 0]
        both = shapely.area(shapely.intersection(arms, piece))
        if len(arms) > 1 and (both > SAME * (shapely.area(arms) + piece.area - both)).any():
            return True
    return False


def _meeting(shapes: Sequence[BaseGeometry]) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
    """The numbers of all pairs of shapes that touch or overlap, the lower one first."""
    every = np.array(shapes, dtype=object)
    one, other = shapely.STRtree(every).query(every, predicate="intersects")
    return one[one < other], other[one < other]


def _whole(group: Sequence[Piece]) -> tuple[Outlined, float]:
    """An object before others take pixels from it, and the share of it in the cores of the windows that saw it."""
    cores = {piece.window: piece.window.core.polygon for piece in group}
    parts = []
    for piece in group:
        others = [core for window, core in cores.items() if window != piece.window]
        parts.append(piece.shape.difference(shapely.union_all(others)) if others else piece.shape)
    shape = shapely.union_all(parts) if len(parts) > 1 else parts[0]
    inside = shape.intersection(shapely.union_all(list(cores.values()))).area
    areas = [part.area for part in parts]
    votes: dict[int, float] = {}
    for piece, area in zip(group, areas, strict=True):
        votes[piece.class_] = votes.get(piece.class_, 0) + area
    class_ = max(sorted(votes), key=votes.__getitem__)
    score = float(np.average([piece.score for piece in group], weights=areas)) if shape.area else 0.0
    return Outlined(shape, class_, score), inside / shape.area if shape.area else 0.0
