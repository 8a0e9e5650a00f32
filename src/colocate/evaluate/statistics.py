"""How sure a score is: several seeds, and images that could have been others.

Two things vary and are told apart. *Seeds*: the standard deviation over them. *Images*: a percentile bootstrap. The
test images are drawn anew with replacement, the same draw for every seed (and for both sides of a comparison), the
scores of the drawn set are computed from the images' records and averaged over seeds; `low` and `high` are percentiles
of that mean over many draws. So the interval says what other images of this kind would have given these trained
networks; it does not hold what other seeds would have given. Draws in which a score is undefined are left out.

Images of one case are alike, and drawing them one by one takes them for more evidence than they are. Where cases are
known, `groups`, whole cases are drawn (a cluster bootstrap), each with all of its images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
from jaxtyping import Float64, Int64

from .metrics import FAMILIES, LOWER_IS_BETTER

Run: TypeAlias = Sequence[dict[str, Any]]
"""One seed's images as `result.json` lists them: {"image": name, family: record, ...}."""


@final
class Interval(NamedTuple):
    """A score over seeds and images."""

    mean: float
    """Over seeds; nan where it is undefined for one."""
    std: float
    """Over seeds (divided by their number less 1); nan for a single seed."""
    low: float
    high: float
    over: str
    """What was drawn: "80 images" or "16 cases (80 images)"."""


@final
class Difference(NamedTuple):
    """First less second in a score, seed against seed and image against image."""

    mean: float
    """Over pairs of seeds."""
    std: float
    """Of the pairs' differences."""
    low: float
    high: float
    share: float
    """Of the draws, those in which the first is better (lower in `LOWER_IS_BETTER`); a tie is half a draw."""
    over: str


def interval(
    family: str,
    runs: Sequence[Run],
    groups: Sequence[str] | None = None,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Every score of a family with its spread over seeds (one run each) and its interval over images.

    `groups` is the case of each image, in the runs' order; an image whose case is unknown (empty) is one of its own.

    Raises:
        ValueError: no run or no image, or the runs' images differ, or there are not as many groups as images.
    """
    scores, over = _drawn(family, [runs], groups, draws, seed)
    return {name: Interval(*_spread(first), *_percentiles(first, level), over) for name, (first,) in scores.items()}


def paired(
    family: str,
    first: Sequence[Run],
    second: Sequence[Run],
    groups: Sequence[str] | None = None,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Every score of a family, of the first less the second: runs of the same seeds, in the same order.

    Raises:
        ValueError: as in `interval`, or one has other images or another number of seeds than the other.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} seeds cannot be paired with {len(second)}: compare runs of the same seeds")
    scores, over = _drawn(family, [first, second], groups, draws, seed)
    compared: dict[str, Difference] = {}
    for name, (one, other) in scores.items():
        difference = one - other
        drawn = difference[1:].mean(1)
        better = np.sign(drawn[~np.isnan(drawn)]) * (-1 if name in LOWER_IS_BETTER else 1)
        share = float((better + 1).mean() / 2) if better.size else float("nan")
        compared[name] = Difference(*_spread(difference), *_percentiles(difference, level), share, over)
    return compared


Table: TypeAlias = Float64[np.ndarray, "d s"]
"""A score of each set of images (the first one is the images as they are) and each seed."""


def _drawn(
    family: str, sides: Sequence[Sequence[Run]], groups: Sequence[str] | None, draws: int, seed: int
) -> tuple[dict[str, list[Table]], str]:
    """Each score's table for each side, and what was drawn in words."""
    runs = [run for side in sides for run in side]
    images = _same_images(runs)
    counts, over = _counts(images, groups, draws, seed)
    each = [FAMILIES[family].pack([entry[family] for entry in run])(counts) for run in runs]
    names = list(dict.fromkeys(name for scores in each for name in scores))
    if lacking := {name for name in names for scores in each if name not in scores}:
        raise ValueError(f"not every run has {', '.join(sorted(lacking))}: compare runs of the same classes")
    tables = {name: np.stack([scores[name] for scores in each], 1) for name in names}
    edges = np.cumsum([len(side) for side in sides])[:-1]
    return {name: np.split(table, edges, axis=1) for name, table in tables.items()}, over


def _same_images(runs: Sequence[Run]) -> list[str]:
    if not runs or not runs[0]:
        raise ValueError("no run, or one without images: there is nothing to draw from")
    names = [[str(entry["image"]) for entry in run] for run in runs]
    for number, other in enumerate(names):
        if len(other) != len(names[0]):
            raise ValueError(f"run {number + 1} has {len(other)} images and run 1 has {len(names[0])}")
        for mine, yours in zip(names[0], other, strict=True):
            if mine != yours:
                raise ValueError(f"run {number + 1} has image {yours!r} where run 1 has {mine!r}: order both alike")
    return names[0]


def _counts(
    images: Sequence[str], groups: Sequence[str] | None, draws: int, seed: int
) -> tuple[Int64[np.ndarray, "d n"], str]:
    """How often each image stands in the set as it is and in each draw."""
    over = f"{len(images)} images"
    cases = np.arange(len(images))
    if groups is not None and len(groups) != len(images):
        raise ValueError(f"{len(groups)} groups for {len(images)} images: give each image its case")
    if groups is not None and any(groups):
        known = [("case", case) if case else ("image", str(number)) for number, case in enumerate(groups)]
        place = {case: number for number, case in enumerate(dict.fromkeys(known))}
        cases = np.array([place[case] for case in known])
        over = f"{len(place)} cases ({over})"
    size = int(cases.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=draws)
    return np.concatenate([np.ones((1, len(images)), np.int64), drawn[:, cases]]), over


def _spread(table: Table) -> tuple[float, float]:
    seeds = table[0]
    return float(seeds.mean()), float(seeds.std(ddof=1)) if len(seeds) > 1 else float("nan")


def _percentiles(table: Table, level: float) -> tuple[float, float]:
    drawn = table[1:].mean(1)
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
