"""The GlaS challenge's scores by loops over objects and pixels.

Source: Sirinukunwattana et al., Medical Image Analysis 35, 2017 (arXiv:1603.00275), section 4:
F1 = 2 PR / (P + R); object-level Dice = 1/2 [sum_i w_i D(G_i, S_i) + sum_j w~_j D(G~_j, S~_j)] with
w_i = |S_i| / sum of |S| over all objects of all images, and w~_j likewise of the truth; object-level Hausdorff distance
the same way, an object without any overlap against the one at the smallest distance. Where the paper is
silent, as the docstring of colocate's own module says.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, nan

Pixels = set[tuple[int, int]]
Map = Sequence[Sequence[int]]


def glas(images: Sequence[tuple[Map, Map]]) -> dict[str, float]:
    """All three of (truth, found) maps of ids, F1 and Dice in percent."""
    true_positives = false_positives = false_negatives = 0
    dices: dict[str, list[tuple[int, float]]] = {"truth": [], "found": []}
    distances: dict[str, list[tuple[int, float]]] = {"truth": [], "found": []}
    for truth_map, found_map in images:
        truth, found = objects(truth_map), objects(found_map)
        claimed = set()
        for segmented in found:
            match = most_overlapping(segmented, truth)
            if match is not None and match not in claimed and len(segmented & truth[match]) >= len(truth[match]) / 2:
                claimed.add(match)
                true_positives += 1
            else:
                false_positives += 1
        false_negatives += len(truth) - len(claimed)
        diagonal = hypot(len(truth_map) - 1, len(truth_map[0]) - 1)
        for side, mine, others in (("truth", truth, found), ("found", found, truth)):
            for one in mine:
                match = most_overlapping(one, others)
                dice = 0.0 if match is None else 2 * len(one & others[match]) / (len(one) + len(others[match]))
                if not others:
                    distance = diagonal
                elif match is None:
                    distance = min(hausdorff(one, other) for other in others)
                else:
                    distance = hausdorff(one, others[match])
                dices[side].append((len(one), dice))
                distances[side].append((len(one), distance))
    recall = divide(true_positives, true_positives + false_negatives)
    precision = divide(true_positives, true_positives + false_positives)
    if true_positives == 0:
        f1 = 0.0 if false_positives + false_negatives else nan
    else:
        f1 = 2 * precision * recall / (precision + recall)
    return {
        "object F1": 100 * f1,
        "object Dice": 100 * both_sides(dices),
        "object Hausdorff": both_sides(distances),
    }


def objects(ids: Map) -> list[Pixels]:
    """Each object's pixels, in the order in which a reader meets them."""
    found: dict[int, Pixels] = {}
    for y, row in enumerate(ids):
        for x, number in enumerate(row):
            if number:
                found.setdefault(number, set()).add((y, x))
    return list(found.values())


def most_overlapping(one: Pixels, others: list[Pixels]) -> int | None:
    best, most = None, 0
    for number, other in enumerate(others):
        if len(one & other) > most:
            best, most = number, len(one & other)
    return best


def hausdorff(a: Pixels, b: Pixels) -> float:
    def farthest(here: Pixels, there: Pixels) -> float:
        return max(min(hypot(y - v, x - u) for v, u in there) for y, x in here)

    return max(farthest(a, b), farthest(b, a))


def both_sides(values: dict[str, list[tuple[int, float]]]) -> float:
    means = []
    for of_side in values.values():
        if of_side:
            total = sum(area for area, _ in of_side)
            means.append(sum(area / total * value for area, value in of_side))
    return divide(sum(means), len(means))


def divide(above: float, below: float) -> float:
    return above / below if below else nan
