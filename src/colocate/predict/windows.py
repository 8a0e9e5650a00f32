"""Where windows lie in a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Bool, Int64


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
