"""Dice of what a probe calls, image by image and pooled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from colocate.evaluate.metrics.family import Packed, Record, ratio


def record(truth: Int[Tensor, "g f"], found: Int[Tensor, "g f"], ignored: int | None = None) -> Record:
    """Compare the class of each cell or pixel of one image with what was found; class 0 is background.

    A record has the image's `dice` (a fraction: the mean over the classes but background that are there in truth or
    found; 1 where none is), the `shared` cells of all those classes, and `positives`, the true plus the found ones.
    Cells whose truth is the class `ignored` do not count.
    """
    counted = torch.ones_like(truth, dtype=torch.bool) if ignored is None else truth != ignored
    each: list[float] = []
    shared = positives = 0
    for number in sorted({*truth[counted].unique().tolist(), *found[counted].unique().tolist()} - {0}):
        true, called = counted & (truth == number), counted & (found == number)
        both, sides = int((true & called).sum()), int(true.sum() + called.sum())
        each.append(2 * both / sides)
        shared, positives = shared + both, positives + sides
    return {"dice": sum(each) / len(each) if each else 1.0, "shared": shared, "positives": positives}


def pack(records: Sequence[Record]) -> Packed:
    """Scores in percent: "image Dice", the mean over images, and "pooled Dice", that of all cells together.

    Pooled Dice of cells none of which is positive is nan.
    """
    each, shared, positives = (
        np.array([record[name] for record in records], np.float64) for name in ("dice", "shared", "positives")
    )

    def scores(counts: Int64[np.ndarray, "d n"]) -> dict[str, Float64[np.ndarray, " d"]]:
        return {
            "image Dice": 100 * ratio(counts @ each, counts.sum(1).astype(np.float64)),
            "pooled Dice": 200 * ratio(counts @ shared, counts @ positives),
        }

    return scores
