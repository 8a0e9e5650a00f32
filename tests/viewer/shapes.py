"""Made-up outlines on a slide: blobs with a score, some with a hole, some large, most small."""

from __future__ import annotations

import numpy as np
import shapely

from colocate.prediction.outputs import Outlined


def blob(dice: np.random.Generator, x: float, y: float, radius: float, corners: int = 24) -> shapely.Polygon:
    """A star-shaped outline around a place, all of it less than 1.3 radii away."""
    turns = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    far = radius * (1 + 0.15 * np.sin(3 * turns + dice.uniform(0, 6)) + dice.uniform(-0.1, 0.1, corners))
    return shapely.Polygon(np.stack([x + far * np.cos(turns), y + far * np.sin(turns)], 1))


def blobs(count: int, width: int, height: int, seed: int = 0) -> list[Outlined]:
    """Within the slide, of classes 1 and 2, in turn; every fifth has a hole. They may overlap."""
    dice = np.random.default_rng(seed)
    found = []
    for number in range(count):
        radius = dice.choice([3.0, 9.0, 40.0, 120.0], p=[0.3, 0.4, 0.2, 0.1])
        x, y = dice.uniform(1.4 * radius, (width - 1.4 * radius, height - 1.4 * radius))
        shape = blob(dice, x, y, radius)
        if number % 5 == 0:
            shape = shape.difference(blob(dice, x, y, radius / 3))
        found.append(Outlined(shape, 1 + number % 2, 0.5 + 0.5 * number / count))
    return found
