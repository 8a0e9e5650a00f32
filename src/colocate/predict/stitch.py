"""Objects found in overlapping windows become objects of the whole picture, each once.

A window sees poorly near its border, for want of what lies around. So where two windows disagree about pixels that both
saw, each is believed in its core (see `windows.Windows`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple, final

import numpy as np
import shapely
from jaxtyping import Bool, Int32, Int64
from scipy.ndimage import find_objects
from shapely.geometry.base import BaseGeometry
from torch import Tensor

from colocate.base.shapes import bevelled, outline


class Window(NamedTuple):
    """A square of `side` pixels whose first is at row `top`, column `left`; and its place among the windows."""

    row: int
    column: int
    top: int
    left: int
    side: int


class Place(NamedTuple):
    """Of a window among the windows; those that are looked at later come later."""

    row: int
    column: int


class Box(NamedTuple):
    """Pixels of the picture: rows `top` up to `bottom` and columns `left` up to `right`, themselves left out."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width; zero if there is nothing in it."""
        return max(0, self.bottom - self.top), max(0, self.right - self.left)

    def shared(self, other: Box) -> Box:
        """What lies in both."""
        return Box(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def around(self, other: Box) -> Box:
        """The smallest that holds both."""
        return Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def within(self, other: Box) -> tuple[slice, slice]:
        """Where its pixels are in an array of those of `other`."""
        rows = slice(self.top - other.top, self.bottom - other.top)
        return rows, slice(self.left - other.left, self.right - other.left)


@final
class Windows:
    """Square windows over a picture of `width` x `height` pixels, neighbours sharing `overlap` pixels.

    They come row by row; the last of a row or column may reach beyond the picture.

    >>> [window.left for window in Windows(100, 40, side=40, overlap=10)]
    [0, 30, 60]

    A window's core is the window less half of the overlap on inner sides: cores cover the picture and share no pixel.

    Raises:
        ValueError: windows further apart than next to each other would overlap.
    """

    def __init__(self, width: int, height: int, side: int, overlap: int) -> None:
        if not 0 <= 2 * overlap <= side:
            raise ValueError(f"windows of {side} px cannot overlap by {overlap} px, only by half their side at most")
        self.width, self.height, self.side, self.overlap = width, height, side, overlap
        self.step = side - overlap
        self.rows, self.columns = (max(1, math.ceil((length - overlap) / self.step)) for length in (height, width))

    def __iter__(self) -> Iterator[Window]:
        for row, column in product(range(self.rows), range(self.columns)):
            yield Window(row, column, row * self.step, column * self.step, self.side)

    def view(self, place: Place) -> Box:
        """What a window sees of the picture."""
        top, left = place.row * self.step, place.column * self.step
        return Box(top, left, min(top + self.side, self.height), min(left + self.side, self.width))

    def last(self, box: Box) -> Place:
        """The last window that sees some of a box."""
        rows, columns = (box.bottom - 1) // self.step, (box.right - 1) // self.step
        return Place(min(rows, self.rows - 1), min(columns, self.columns - 1))

    def cores(self, box: Box) -> tuple[Int64[np.ndarray, " h"], Int64[np.ndarray, " w"]]:
        """The window in whose core each pixel of a box lies: the windows' row for its rows, column for its columns."""
        half = self.overlap // 2
        rows = (np.arange(box.top, box.bottom) - half) // self.step
        columns = (np.arange(box.left, box.right) - half) // self.step
        return rows.clip(0, self.rows - 1), columns.clip(0, self.columns - 1)

    def core(self, place: Place, box: Box) -> Bool[np.ndarray, "h w"]:
        """The pixels of a box that lie in a window's core."""
        rows, columns = self.cores(box)
        return (rows == place.row)[:, None] & (columns == place.column)

    def spread(self, box: Box, pixels: Bool[np.ndarray, "h w"]) -> dict[Place, int]:
        """How many of the pixels that are set in a box lie in the core of each window."""
        rows, columns = self.cores(box)
        if rows[0] == rows[-1] and columns[0] == columns[-1]:
            return {Place(int(rows[0]), int(columns[0])): int(pixels.sum())}
        ids = (rows * self.columns)[:, None] + columns
        places, counts = np.unique(ids[pixels], return_counts=True)
        return {
            Place(*divmod(place, self.columns)): count
            for place, count in zip(places.tolist(), counts.tolist(), strict=True)
        }


@final
class Piece:
    """An object as one window saw it: the pixels of `box` that are set in `seen`."""

    def __init__(
        self, windows: Windows, place: Place, box: Box, seen: Bool[np.ndarray, "h w"], class_: int, score: float
    ) -> None:
        """class_, score: what its window says of it."""
        self.place, self.box, self.seen = place, box, seen
        self.class_, self.score = class_, score
        self.last = windows.last(box)
        """The last window that sees some of its box."""
        self.spread = windows.spread(box, seen)
        """How many of its pixels lie in the core of each window."""
        self.inside = 2 * self.spread.get(place, 0) >= sum(self.spread.values())
        """Half of it or more lies in its own window's core."""
        self.kept = seen.copy()
        """Its pixels that no other window took away."""
        self.shape: BaseGeometry = shapely.Polygon()
        """Those pixels, once it is closed."""

    def seen_in(self, box: Box) -> Bool[np.ndarray, "high wide"]:
        """The pixels of another box that it was seen in."""
        seen = np.zeros(box.shape, bool)
        part = self.box.shared(box)
        if all(part.shape):
            seen[part.within(box)] = self.seen[part.within(self.box)]
        return seen

    def lose(self, taken: Bool[np.ndarray, "h w"], box: Box) -> None:
        """Take away the pixels of a box that are set."""
        part = self.box.shared(box)
        self.kept[part.within(self.box)] &= ~taken[part.within(box)]

    def close(self) -> None:
        """No window sees it any more: its outline is kept, its pixels are let go."""
        self.shape = outline(self.kept, self.box.top, self.box.left)
        self.seen = self.kept = np.zeros((0, 0), bool)


class Found(NamedTuple):
    """What was found in a window."""

    ids: Int32[Tensor, "h w"]
    """i + 1 where object i lies, 0 where none does."""
    classes: list[int]
    scores: list[float]


class Merged(NamedTuple):
    """An object of the picture."""

    shape: BaseGeometry
    """Polygon or MultiPolygon in the picture's pixels, its corners cut (see `trace.bevelled`)."""
    class_: int
    score: float
    area_px: float
    """Its pixels; the shape's own area differs by half a pixel a ring."""


@final
class _Object:
    """Pieces that are the same object; a piece alone at first."""

    def __init__(self, number: int, piece: Piece) -> None:
        self.number = number
        """In the order in which objects were first seen."""
        self.pieces = [piece]
        self.places = {piece.place}
        """The windows that saw it."""
        self.spread = Counter(piece.spread)
        """How many of its pixels lie in the core of each window, counted for each window that saw them."""
        self.last = piece.last
        """The last window that sees some of it."""

    def join(self, other: _Object) -> None:
        self.pieces += other.pieces
        self.places |= other.places
        self.spread += other.spread
        self.last = max(self.last, other.last)

    def doubtful(self, looked: Bool[np.ndarray, "rows columns"]) -> bool:
        """Most of it lies in cores of windows that were looked at and did not see it."""
        elsewhere = sum(count for place, count in self.spread.items() if place not in self.places and looked[place])
        return 2 * elsewhere > self.spread.total()

    def merged(self) -> Merged | None:
        """The whole object once its pieces are closed; None if all of it went to others."""
        shapes = [piece.shape for piece in self.pieces]
        shape = shapes[0] if len(shapes) == 1 else shapely.union_all(shapes)
        if not shape.area:
            return None
        areas = [part.area for part in shapes]
        votes: dict[int, float] = {}
        for piece, area in zip(self.pieces, areas, strict=True):
            votes[piece.class_] = votes.get(piece.class_, 0) + area
        score = float(np.average([piece.score for piece in self.pieces], weights=areas))
        return Merged(bevelled(shape), max(sorted(votes), key=votes.__getitem__), score, shape.area)


@final
class Stitcher:
    """Merges the objects of windows that are added row by row, from left to right; some may be left out.

    Objects of two windows are the same if, of the pixels that both windows saw, more than the share `least` of those
    of either belong to both (so that each has one partner at most); and so on from window to window. Then:

    - A pixel that a window gave to an object is its, unless the window in whose core it lies saw it end before.
    - A pixel that different objects claim goes to the one of whose piece half or more lies in its window's core; of two
      such, or none, to that of the window in whose core the pixel lies, else to the earlier.
    - An object is dropped if most of what was seen of it lies in cores of windows that were looked at and did not see
      it: they see better there.
    - An object's class is that of most of its area (of equals the smaller), its score the mean weighted by area.

    Pixels are held of objects that a later window sees as well, so of those in the overlaps of a row of windows.
    """

    def __init__(self, side: int, overlap: int, width: int, height: int, least: float = 0.5) -> None:
        """Raises ValueError if windows overlap by more than half, or `least` is not in [0.5, 1)."""
        if not 0.5 <= least < 1:
            raise ValueError(f"objects that share {least} are not told apart: at least 0.5, below 1")
        self.windows = Windows(width, height, side, overlap)
        self.least = least
        self.looked = np.zeros((self.windows.rows, self.windows.columns), bool)
        self.place = Place(-1, -1)
        self.count = 0
        self.objects: dict[int, _Object] = {}
        """Those that are not complete, by number."""
        self.open: dict[Piece, _Object] = {}
        """The pieces of which pixels are held."""

    def add(self, window: Window, found: Found) -> list[Merged]:
        """The objects that no later window sees, in the order in which they were first seen.

        Raises:
            ValueError: the window does not come after the one before.
        """
        place = Place(window.row, window.column)
        if place <= self.place:
            raise ValueError(f"{place} after {self.place}: windows are added row by row, from left to right")
        self.place = place
        self.looked[place] = True
        view = self.windows.view(place)
        ids = found.ids.numpy()[: view.shape[0], : view.shape[1]]
        near = [piece for piece in self.open if all(piece.box.shared(view).shape)]
        new = self._begin(place, view, ids, found)
        partners = self._partners(near, view, ids)
        for piece, partner in zip(near, partners, strict=True):
            if partner:
                self._join(self.open[piece], self.open[new[partner]])
        self._settle(near, partners, new, view, ids)
        return self._release()

    def finish(self) -> list[Merged]:
        """The objects that are left."""
        self.place = Place(self.windows.rows, 0)
        return self._release()

    def _begin(self, place: Place, view: Box, ids: Int32[np.ndarray, "h w"], found: Found) -> dict[int, Piece]:
        """The objects of a window, by id, each an object of its own for now."""
        new = {}
        for id, where in enumerate(find_objects(ids), start=1):
            if where is None:
                continue
            rows, columns = where
            box = Box(view.top + rows.start, view.left + columns.start, view.top + rows.stop, view.left + columns.stop)
            seen = ids[where] == id
            piece = new[id] = Piece(self.windows, place, box, seen, found.classes[id - 1], found.scores[id - 1])
            self.open[piece] = self.objects[self.count] = _Object(self.count, piece)
            self.count += 1
        return new

    def _partners(self, near: list[Piece], view: Box, ids: Int32[np.ndarray, "h w"]) -> list[int]:
        """For each piece of earlier windows the id of the object in a window that is the same, 0 if none is."""
        most = int(ids.max(initial=0))
        areas: dict[Place, np.ndarray] = {}
        partners = []
        for piece in near:
            if piece.place not in areas:
                both = ids[self.windows.view(piece.place).shared(view).within(view)]
                areas[piece.place] = np.bincount(both.ravel(), minlength=most + 1)
            part = piece.box.shared(view)
            seen = piece.seen[part.within(piece.box)]
            shared = np.bincount(ids[part.within(view)][seen], minlength=most + 1)
            id = int(shared.argmax())  # 0 if it is mostly none: then no object has more than half
            either = int(seen.sum()) + int(areas[piece.place][id]) - int(shared[id])
            partners.append(id if shared[id] > self.least * either else 0)
        return partners

    def _join(self, one: _Object, other: _Object) -> None:
        """Two objects become one, under the lower number."""
        if one is other:
            return
        one, other = sorted((one, other), key=lambda object: object.number)
        one.join(other)
        del self.objects[other.number]
        self.open.update((piece, one) for piece in other.pieces if piece in self.open)

    def _settle(
        self, near: list[Piece], partners: list[int], new: dict[int, Piece], view: Box, ids: Int32[np.ndarray, "h w"]
    ) -> None:
        """Take pixels from pieces of a window and of earlier ones, so that different objects share none."""
        inside = np.array([id in new and new[id].inside for id in range(max(new, default=0) + 1)])
        taken = np.zeros(view.shape, bool)
        for piece, partner in zip(near, partners, strict=True):
            box = piece.box.shared(view)
            if partner:
                box = box.around(new[partner].box.shared(self.windows.view(piece.place)))
            seen, theirs = piece.seen_in(box), ids[box.within(view)]
            core = self.windows.core(self.place, box)
            claimed = seen & (theirs > 0) & (theirs != partner)
            loses = claimed & np.where(inside[theirs] == piece.inside, core, inside[theirs])
            wins = claimed & ~loses
            if partner:
                loses |= core & (theirs != partner)
                wins |= self.windows.core(piece.place, box) & (theirs == partner) & ~seen
            taken[box.within(view)] |= wins
            piece.lose(loses, box)
        for piece in new.values():
            piece.lose(taken, view)

    def _release(self) -> list[Merged]:
        """The objects that no window sees after the last one that was added."""
        for piece in [piece for piece in self.open if piece.last <= self.place]:
            piece.close()
            del self.open[piece]
        complete = [object for object in self.objects.values() if object.last <= self.place]
        for object in complete:
            del self.objects[object.number]
        kept = [object for object in complete if not object.doubtful(self.looked)]
        return [merged for object in kept if (merged := object.merged())]
