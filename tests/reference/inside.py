"""Which pixels lie in a polygon, one pixel and one edge at a time."""

from __future__ import annotations

from collections.abc import Sequence

Ring = Sequence[tuple[float, float]]


def inside(x: float, y: float, rings: Sequence[Ring]) -> bool:
    """Whether a ray from the point to the right meets the rings an odd number of times."""
    odd = False
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
            if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
                odd = not odd
    return odd


def pixels(rings: Sequence[Ring], height: int, width: int) -> set[tuple[int, int]]:
    """Row and column of each pixel whose centre lies in a polygon with holes."""
    return {(row, column) for row in range(height) for column in range(width) if inside(column + 0.5, row + 0.5, rings)}
