"""Dense distillation along the overlap, in plain loops.

Sources: cosine distance; pair-wise distillation, arXiv:1903.04197, equation 1; S as in tests/reference/overlap.py.
"""

from __future__ import annotations

import math

Rows = list[list[float]]


def cosine(a: list[float], b: list[float]) -> float:
    """Of two vectors."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def standardised(tiles: list[Rows]) -> list[Rows]:
    """Each channel of all cells of all tiles with mean 0 and variance 1."""
    cells = [cell for tile in tiles for cell in tile]
    channels = range(len(cells[0]))
    mean = [sum(cell[c] for cell in cells) / len(cells) for c in channels]
    spread = [sum((cell[c] - mean[c]) ** 2 for cell in cells) / len(cells) for c in channels]
    return [[[(cell[c] - mean[c]) / math.sqrt(spread[c] + 1e-5) for c in channels] for cell in tile] for tile in tiles]


def distance(shared: Rows, predicted: Rows, own: Rows, teacher: Rows, relations: float) -> float:
    """The loss of one tile: n x m shares, n predictions, n own (standardised) and m teacher cells (standardised)."""
    n, weight = len(shared), [sum(shares) for shares in shared]
    pooled = [
        [sum(s * t[c] for s, t in zip(shares, teacher, strict=True)) for c in range(len(teacher[0]))]
        for shares in shared
    ]
    seen = [i for i in range(n) if weight[i] > 0]
    cells = sum(weight[i] * (1 - cosine(predicted[i], pooled[i])) for i in seen) / n
    pairs = sum(
        weight[i] * weight[j] * (cosine(own[i], own[j]) - cosine(pooled[i], pooled[j])) ** 2 for i in seen for j in seen
    )
    return cells + relations * pairs / n**2
