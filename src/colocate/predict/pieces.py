"""What one window saw of an object."""

from __future__ import annotations

from typing import final

import numpy as np
import shapely
from jaxtyping import Bool
from shapely.geometry.base import BaseGeometry

from .trace import outline
from .windows import Box, Place, Windows


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
