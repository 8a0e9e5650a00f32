"""VICReg's three terms and VICRegL's matching, one vector after another.

Sources: VICReg, arXiv:2105.04906, equations 1 to 5 (epsilon 1e-4); VICRegL, arXiv:2210.01571, section 3: the terms of
each cell's vectors over the batch, cells matched by nearest feature and by nearest centre, the best of them kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from colocate.core.geometry import Crop
from tests.reference.overlap import crop_to_tile


def invariance(x: Tensor, y: Tensor) -> Tensor:
    """Mean over samples and dimensions of squared differences."""
    return torch.stack([((a - b) ** 2).sum() / len(a) for a, b in zip(x, y, strict=True)]).mean()


def variance(x: Tensor) -> Tensor:
    """x: samples x dimensions."""
    total = x.new_zeros(())
    for column in x.T:
        mean = column.sum() / len(column)
        deviation = (((column - mean) ** 2).sum() / (len(column) - 1) + 1e-4).sqrt()
        total = total + (1 - deviation).clamp_min(0)
    return total / x.shape[1]


def covariance(x: Tensor) -> Tensor:
    """x: samples x dimensions."""
    total = x.new_zeros(())
    for i in range(x.shape[1]):
        for j in range(x.shape[1]):
            if i != j:
                a, b = x[:, i] - x[:, i].mean(), x[:, j] - x[:, j].mean()
                total = total + ((a * b).sum() / (len(x) - 1)) ** 2
    return total / x.shape[1]


def centres(crop: Crop, view: int, cells: tuple[int, int]) -> list[tuple[float, float]]:
    """Where the middle of each cell lies on the tile, by mapping it back through what made the view."""
    (a, b, c), (d, e, f), _ = crop_to_tile(crop, view)
    middles = [((col + 0.5) / cells[1], (row + 0.5) / cells[0]) for row in range(cells[0]) for col in range(cells[1])]
    return [(a * x + b * y + c, d * x + e * y + f) for x, y in middles]


def nearest(own: list[Tensor], other: list[Tensor]) -> tuple[list[int], list[float]]:
    """For each point the number of the nearest other one, and how far it is."""
    distances = [[((p - q) ** 2).sum().sqrt().item() for q in other] for p in own]
    return [row.index(min(row)) for row in distances], [min(row) for row in distances]
