"""Average precision as the COCO library defines it, of boxes and of masks.

A record keeps what came of matching the objects of one image, as the library does it, but among those that overlap
alone: it walks all pairs. Scores from records are the library's own accumulation (101 points of recall, classes
averaged, objects of every size), written so that images can be drawn again and again. As there, the surest 100
detections of a class in an image count, or more where a detector may find more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from pycocotools.cocoeval import Params

from colocate.evaluation.metrics.family import Packed, Record, mean_of_defined
from colocate.evaluation.metrics.objects import Objects, check_size, coco_mask
from colocate.evaluation.settings import MOST

KINDS = ("box", "mask")
OVERLAPS, RECALLS = Params().iouThrs, Params().recThrs
"""The library's thresholds of overlap, .50 to .95, and the points of recall at which it takes precision."""
AT_ONCE = 100_000
"""Detections in sets that are looked at together: in arrays of 800 kB, which caches hold."""
AP50, AP75 = 0, 5
"""Places among the library's thresholds of overlap: .50, .55, ... .95."""


def record(truth: Objects, found: Objects, most: int = MOST) -> Record:
    """Match one image's objects; of each class the `most` surest detections count.

    A record has one entry a class, and in it `positives`, the number of true objects, `scores`, those of the
    detections from the highest down, and for `box` and `mask` a word of 0 (false) and 1 (true positive) for each
    threshold of overlap, one letter a detection.

    Raises ValueError: as `check_size`.
    """
    check_size(truth.size, found.size)
    kept: Record = {}
    shapes = {"box": (found.xywh, truth.xywh), "mask": (found.rles, truth.rles)}
    for number in sorted({*truth.classes, *found.classes}):
        true = [i for i, class_ in enumerate(truth.classes) if class_ == number]
        sure = sorted((i for i, class_ in enumerate(found.classes) if class_ == number), key=lambda i: -found.scores[i])
        sure = sure[:most]
        kept[str(number)] = {"positives": len(true), "scores": [found.scores[i] for i in sure]}
        for kind, (of_found, of_truth) in shapes.items():
            kept[str(number)][kind] = _words([of_found[i] for i in sure], [of_truth[i] for i in true])
    return kept


def _words(found: list[Any], true: list[Any]) -> list[str]:
    """For each threshold whether each detection, from the surest down, takes a true object that none took before.

    It takes the one that it overlaps most, of equals the last, as in the library.
    """
    near: list[list[tuple[float, int]]] = [[] for _ in found]
    if found and true:
        plain = (np.array(found), np.array(true)) if isinstance(found[0], list) else (found, true)
        overlaps = coco_mask.iou(*plain, [0] * len(true))
        for one, other in np.argwhere(overlaps >= OVERLAPS[0]).tolist():
            near[one].append((float(overlaps[one, other]), other))
    words = []
    for threshold in OVERLAPS:
        taken: set[int] = set()
        word = ""
        for candidates in near:
            free = [one for one in candidates if one[0] >= threshold and one[1] not in taken]
            taken |= {max(free)[1]} if free else set()
            word += "1" if free else "0"
        words.append(word)
    return words


def pack(records: Sequence[Record]) -> Packed:
    """Scores in percent: "box AP", "box AP50", "box AP75" and the same of "mask".

    A class without a true object in a set is left out of the set's mean, as the library does; where it would say -1
    for want of any class, these are nan. An image that stands in a set more than once has its equally sure detections
    in the order a, a, b, b, where the library would have a, b, a, b.
    """
    numbers = sorted({int(number) for record in records for number in record})
    classes = [_pack_class([record.get(str(number)) for record in records]) for number in numbers]

    def scores(counts: Int64[np.ndarray, "d n"]) -> dict[str, Float64[np.ndarray, " d"]]:
        each = np.empty((len(counts), len(classes), len(KINDS), len(OVERLAPS)))
        for column, of_class in enumerate(classes):
            each[:, column] = 100 * _precisions(of_class, counts)
        named: dict[str, Float64[np.ndarray, " d"]] = {}
        for number, kind in enumerate(KINDS):
            named[f"{kind} AP"] = mean_of_defined(each[:, :, number].mean(2))
            named[f"{kind} AP50"] = mean_of_defined(each[:, :, number, AP50])
            named[f"{kind} AP75"] = mean_of_defined(each[:, :, number, AP75])
        return named

    return scores


class _Class(NamedTuple):
    """All images' detections of one class, from the surest down."""

    positives: Int64[np.ndarray, " n"]
    image: Int64[np.ndarray, " m"]
    true: list[list[Int64[np.ndarray, " _"]]]
    """For box and mask, for each threshold of overlap: the places of the true positives among the m detections."""


def _pack_class(entries: Sequence[dict[str, Any] | None]) -> _Class:
    some = [(number, entry) for number, entry in enumerate(entries) if entry is not None]
    positives = np.array([0 if entry is None else entry["positives"] for entry in entries], np.int64)
    sure = np.array([score for _, entry in some for score in entry["scores"]], np.float64)
    image = np.array([number for number, entry in some for _ in entry["scores"]], np.int64)
    order = np.argsort(-sure, kind="mergesort")  # the library's; of equals the earlier image comes first
    true = []
    for kind in KINDS:
        words = ("".join(words) for words in zip(*(entry[kind] for _, entry in some), strict=True))
        letters = (np.frombuffer(word.encode(), np.uint8)[order] for word in words)
        true.append([np.flatnonzero(word == ord("1")) for word in letters])
    return _Class(positives, image[order], true)


def _precisions(of_class: _Class, counts: Int64[np.ndarray, "d n"]) -> Float64[np.ndarray, "d k t"]:
    """Average precision of one class in each set, for box and mask and each threshold of overlap; nan without a true
    object.

    Only true positives are looked at: recall grows nowhere else, and precision has its maxima there. Each stands for
    the points of recall that are reached with it.
    """
    positives = counts @ of_class.positives
    found = np.full((len(counts), len(KINDS), len(OVERLAPS)), np.nan)
    defined = np.flatnonzero(positives)
    for rows in np.array_split(defined, 1 + len(defined) * len(of_class.image) // AT_ONCE):
        times = counts[rows][:, of_class.image]
        so_far = times.cumsum(1)
        for kind, each in enumerate(of_class.true):
            for threshold, places in enumerate(each):
                true = times[:, places].cumsum(1)
                precision = true / (so_far[:, places] + np.spacing(1))
                best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
                reached = RECALLS.searchsorted(true / positives[rows, None], "right")
                points = np.diff(reached, axis=1, prepend=0)
                found[rows, kind, threshold] = (best * points).sum(1) / len(RECALLS)
    return found
