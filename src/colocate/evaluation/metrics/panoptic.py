"""Panoptic quality of things (Kirillov et al., "Panoptic segmentation", CVPR 2019, arXiv:1801.00868)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from colocate.evaluation.metrics.family import Packed, Record, mean_of_defined, ratio
from colocate.evaluation.metrics.objects import Objects, check_size, label_map, shared_pixels


def record(truth: Objects, found: Objects, threshold: float = 0.5) -> Record:
    """Match one image's objects of each class: those whose intersection is more than half of their union.

    Objects are disjoint (`label_map`): found ones whose score is below `threshold`, or that others hide wholly, do not
    count. A record has one entry a class: the matches (`tp`), the found (`fp`) and true (`fn`) objects without one, and
    the sum of the matches' `iou`.

    Raises ValueError: as `check_size`.
    """
    check_size(truth.size, found.size)
    shared = shared_pixels(label_map(truth), label_map(found, threshold))
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    visible = [np.flatnonzero(shared[1:].sum(1)), np.flatnonzero(shared[:, 1:].sum(0))]
    kept: Record = {}
    true_class, found_class = np.array(truth.classes, np.int64), np.array(found.classes, np.int64)
    for number in sorted({*true_class[visible[0]].tolist(), *found_class[visible[1]].tolist()}):
        rows = visible[0][true_class[visible[0]] == number]
        columns = visible[1][found_class[visible[1]] == number]
        here = np.ix_(rows + 1, columns + 1)
        iou = shared[here] / union[here]
        match = iou[2 * shared[here] > union[here]]  # which an object can have but once, its rivals being disjoint
        kept[str(number)] = {
            "tp": len(match),
            "fp": len(columns) - len(match),
            "fn": len(rows) - len(match),
            "iou": float(match.sum()),
        }
    return kept


def pack(records: Sequence[Record]) -> Packed:
    """Scores in percent: "PQ", "SQ" and "RQ", the means over the classes that a set of images has in truth or found.

    A class without any match has SQ 0, as in the authors' code.
    """
    numbers = sorted({number for record in records for number in record})

    def table(name: str) -> Float64[np.ndarray, "n c"]:
        rows = [[record[number][name] if number in record else 0 for number in numbers] for record in records]
        return np.array(rows, np.float64).reshape(len(records), len(numbers))

    iou, tp, fp, fn = (table(name) for name in ("iou", "tp", "fp", "fn"))
    half = tp + (fp + fn) / 2

    def scores(counts: Int64[np.ndarray, "d n"]) -> dict[str, Float64[np.ndarray, " d"]]:
        objects, matches, overlap = counts @ half, counts @ tp, counts @ iou
        quality = {
            "PQ": ratio(overlap, objects),
            "SQ": np.where(objects > 0, overlap / np.maximum(matches, 1), np.nan),
            "RQ": ratio(matches, objects),
        }
        return {name: 100 * mean_of_defined(each) for name, each in quality.items()}

    return scores
