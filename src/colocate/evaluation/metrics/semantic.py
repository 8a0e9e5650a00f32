"""Dice and Jaccard of classes of pixels, over all images together; and Dice of what a probe calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int, Int64, Integer

from colocate.evaluation.metrics.family import Packed, Record, mean_of_defined, ratio
from colocate.evaluation.metrics.objects import check_size

if TYPE_CHECKING:
    from torch import Tensor


def record(
    truth: Integer[Tensor, "h w"], found: Integer[Tensor, "h w"], classes: Sequence[str], ignored: int | None = None
) -> Record:
    """Count one image's pixels: for each class, as what its pixels were found, such as {"tumour": {"stroma": 12}}.

    Pixels whose truth is `ignored`, a class or a number beside the classes, do not count, and it has no entry; a pixel
    that counts may still be found as that class, which is wrong.

    Raises ValueError: as `check_size`, or a pixel that counts has, in truth or found, a number that is none of the
    classes'.
    """
    check_size(truth.shape, found.shape)
    truth, found = truth.long(), found.long()
    if ignored is not None:
        counting = truth != ignored
        truth, found = truth[counting], found[counting]
    count = len(classes)
    for name, numbers in (("truth", truth), ("finding", found)):
        if numbers.numel() and not 0 <= numbers.min() <= numbers.max() < count:
            raise ValueError(f"the {name} has numbers beyond those of the {count} classes")
    pairs = truth.flatten() * count + found.flatten()
    table = pairs.bincount(minlength=count**2).view(count, count).tolist()
    return {
        name: {other: pixels for other, pixels in zip(classes, row, strict=True) if pixels}
        for number, (name, row) in enumerate(zip(classes, table, strict=True))
        if number != ignored
    }


def pack(records: Sequence[Record]) -> Packed:
    """Scores in percent: "micro Dice", "macro Dice", "Dice CLASS", and the same of "Jaccard".

    A class that a set of images has neither in truth nor found is nan, and left out of macro, the mean over classes.
    Micro adds up all classes: of pixels that count, c right and w wrong, Dice is c / (c + w), which is their accuracy,
    and Jaccard c / (c + 2 w).
    """
    names = list(dict.fromkeys(name for record in records for name in record))

    def table(of: list[dict[str, float]]) -> Float64[np.ndarray, "n c"]:
        return np.array([[row.get(name, 0) for name in names] for row in of], np.float64).reshape(len(of), len(names))

    true = table([{name: sum(row.values()) for name, row in record.items()} for record in records])
    right = table([{name: row.get(name, 0) for name, row in record.items()} for record in records])
    found = table([{name: sum(row.get(name, 0) for row in record.values()) for name in names} for record in records])
    pixels = true.sum(1)

    def scores(counts: Int64[np.ndarray, "d n"]) -> dict[str, Float64[np.ndarray, " d"]]:
        shared, both = counts @ right, counts @ (true + found)
        all_shared, all_pixels = shared.sum(1), counts @ pixels
        dice, jaccard = 100 * ratio(2 * shared, both), 100 * ratio(shared, both - shared)
        return {
            "micro Dice": 100 * ratio(all_shared, all_pixels),
            "macro Dice": mean_of_defined(dice),
            "micro Jaccard": 100 * ratio(all_shared, 2 * all_pixels - all_shared),
            "macro Jaccard": mean_of_defined(jaccard),
            **{f"Dice {name}": values for name, values in zip(names, dice.T, strict=True)},
            **{f"Jaccard {name}": values for name, values in zip(names, jaccard.T, strict=True)},
        }

    return scores


def record_probe(truth: Int[Tensor, "g f"], found: Int[Tensor, "g f"], ignored: int | None = None) -> Record:
    """Compare the class of each cell or pixel of one image with what was found: `training.probes.agreement`."""
    from colocate.training.probes import agreement

    return agreement(truth, found, ignored)._asdict()


def pack_probe(records: Sequence[Record]) -> Packed:
    """Scores in percent: "image Dice", the mean over images, and "pooled Dice", that of all cells together.

    Images of which nothing counts are left out; of them alone image Dice is nan. Pooled Dice of cells none of which is
    positive is nan.
    """
    each, shared, positives = (
        np.array([record[name] for record in records], np.float64) for name in ("dice", "shared", "positives")
    )  # None is nan
    defined = ~np.isnan(each)
    each = np.where(defined, each, 0)

    def scores(counts: Int64[np.ndarray, "d n"]) -> dict[str, Float64[np.ndarray, " d"]]:
        return {
            "image Dice": 100 * ratio(counts @ each, (counts @ defined).astype(np.float64)),
            "pooled Dice": 200 * ratio(counts @ shared, counts @ positives),
        }

    return scores
