"""The GlaS challenge's scores, read word by word from section 4 of arXiv:1603.00275, distances by k-d trees.

No package has them, and the challenge's own code is MATLAB: colocate's are held against these. Where the paper says
nothing, as colocate does: in an image with objects on one side only the distance is the diagonal, and of two objects
that share equally many pixels with a third its match is the one that a reader meets first.
"""

from __future__ import annotations

import numpy as np
from case import maps, report
from scipy.spatial import KDTree


def match(one: np.ndarray, others: np.ndarray) -> int:
    """The id of the object that shares most pixels with `one`; 0 if none does."""
    shared = np.bincount(others[one])
    return int(shared[1:].argmax()) + 1 if shared[1:].any() else 0


def hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    """The larger of the two directed distances; a pixel that both have is at 0."""
    farthest = 0.0
    for here, there in ((a, b), (b, a)):
        if (here & ~there).any():
            distance, _ = KDTree(np.argwhere(there)).query(np.argwhere(here & ~there))
            farthest = max(farthest, float(distance.max()))
    return farthest


def in_reading_order(ids: np.ndarray) -> np.ndarray:
    """Objects numbered 1, 2, ... by their first pixels."""
    present, first = np.unique(ids[ids > 0], return_index=True)
    number = np.zeros(ids.max() + 1, int)
    number[present[first.argsort()]] = np.arange(1, len(present) + 1)
    return number[ids]


def glas() -> dict[str, float]:
    hits = objects = 0
    areas: list[list[int]] = [[], []]
    dice: list[list[float]] = [[], []]
    distance: list[list[float]] = [[], []]
    for pair in images:
        hit = set()
        for side, (ids, others) in enumerate((pair, pair[::-1])):
            for number in range(1, ids.max() + 1):
                one = ids == number
                other = match(one, others)
                partner = others == other
                areas[side].append(int(one.sum()))
                dice[side].append(2 * (one & partner).sum() / (one.sum() + partner.sum()) if other else 0)
                candidates = [other] if other else range(1, others.max() + 1)
                diagonal = float(np.hypot(ids.shape[0] - 1, ids.shape[1] - 1))
                distance[side].append(min((hausdorff(one, others == k) for k in candidates), default=diagonal))
                if side == 1 and other and 2 * (one & partner).sum() >= partner.sum():
                    hit.add(other)
            objects += ids.max()
        hits += len(hit)
    weights = [np.array(of) / sum(of) for of in areas]
    figures = {"object Dice": dice, "object Hausdorff": distance}
    means = {
        name: float(sum(w @ np.array(v) for w, v in zip(weights, of, strict=True)) / 2) for name, of in figures.items()
    }
    return {"object F1": float(2 * hits / objects)} | means


images = [(in_reading_order(truth), in_reading_order(found)) for truth, found in maps()]
report("scipy", glas)
