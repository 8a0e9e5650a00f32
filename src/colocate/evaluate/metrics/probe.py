"""Dice of a probe's cells, image by image and pooled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from .family import Packed, Record, ratio


def record(truth: Bool[Tensor, "g f"], found: Bool[Tensor, "g f"]) -> Record:
    """Compare the cells of one image that are positive in truth with those that were found to be.

    A record has the image's `dice` (a fraction; 1 where no cell is positive in either), its `shared` positive cells,
    and `positives`, the true ones plus the found ones.
    """
    shared, positives = int((truth & found).sum()), int(truth.sum() + found.sum())
    return {"dice": 2 * shared / positives if positives else 1.0, "shared": shared, "positives": positives}


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
