"""Read results, and compute the uncertainty of scores over seeds and over images.

Two things vary. *Seeds*: the standard deviation over them. *Images*: a percentile bootstrap. The
test images are drawn anew with replacement, the same draw for every seed (and for both sides of a comparison), the
scores of the drawn set are computed from the images' records and averaged over seeds; `low` and `high` are percentiles
of that mean over many draws. So the interval says what other images of this kind would have given these trained
networks; it does not hold what other seeds would have given. Draws in which a score is undefined are left out.

Images of one case are alike, and drawing them one by one takes them for more evidence than they are. Where cases are
known, `groups`, whole cases are drawn (a cluster bootstrap), each with all of its images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, final

import numpy as np
import pydantic
from jaxtyping import Float64, Int64

from colocate.base.errors import UserError
from colocate.base.files import read_json
from colocate.base.text import counted, reason
from colocate.evaluation.metrics import FAMILIES
from colocate.evaluation.settings import MOST, VERSION

LEVEL = 0.95  # of intervals


@dataclass(frozen=True)
class DataFacts:
    """The data of a result; as in result.json."""

    name: str
    fingerprint: str
    split: str
    train: int
    test: int
    train_sources: int
    test_sources: int
    shared_sources: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class BackboneFacts:
    """The evaluated backbone; as in result.json."""

    label: str
    architecture: str
    fingerprint: str
    origin: str
    steps: int | None
    recipe: str | None


@final
@dataclass(frozen=True)
class Findings:
    """Sentences about what was checked, what could not be checked, and what was found."""

    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    forced: bool = False
    """The evaluation went on in spite of what was found."""


@dataclass(frozen=True)
class Result:
    """One seed of one backbone, as in result.json."""

    version: int
    task: Literal["instances", "contours", "semantics", "probe"]
    dataset: DataFacts
    backbone: BackboneFacts
    settings: dict[str, Any]
    fraction: float
    seed: int
    leakage: Findings
    metrics: tuple[str, ...]
    records: list[dict[str, Any]]
    versions: dict[str, str]
    machine: str
    date: str
    path: str
    counted: int = MOST
    """Most detections of a class in an image that average precision counts."""

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"it is of version {self.version}, this colocate makes and reads {VERSION}")
        if unknown := [name for name in self.metrics if name not in FAMILIES]:
            raise ValueError(f"scores of a kind that is not known, {unknown[0]}")
        names = {"image", "part", *self.metrics}
        if not self.records or not all(names <= record.keys() for record in self.records):
            raise ValueError("it lacks records of images, from which scores are computed")

    @property
    def table(self) -> tuple[str, ...]:
        """Key of the table that a result belongs to."""
        data = self.dataset
        share = f"{self.fraction:.6f}"
        return self.task, data.name, data.fingerprint, data.split, share, self.how, f"{self.counted}", *self.metrics

    @property
    def images(self) -> list[tuple[str, str]]:
        """Part and name of each test image."""
        return [(str(record["part"]), str(record["image"])) for record in self.records]

    @property
    def how(self) -> str:
        """A hash of all settings."""
        return blake2b(json.dumps(self.settings, sort_keys=True).encode(), digest_size=4).hexdigest()


@final
@dataclass(frozen=True)
class Row:
    """A backbone with the results of its seeds, in ascending order."""

    label: str
    results: tuple[Result, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(result.seed for result in self.results)

    @property
    def backbone(self) -> BackboneFacts:
        return self.results[0].backbone


def read_results(places: Sequence[Path]) -> list[Result]:
    """Read all results in and below these files and folders, each once.

    Raises UserError: there is none in one of them, or one is damaged, of another version or not a result.
    """
    remedy = "give folders of results that `colocate evaluate` wrote"
    if not places:
        raise UserError(f"no results were given: {remedy}")
    found: dict[Path, Path] = {}
    for place in places:
        files = sorted(place.rglob("result.json")) if place.is_dir() else [place]
        if not files:
            raise UserError(f"{place} holds no result.json: {remedy}")
        found |= {file.resolve(): file for file in files if file.resolve() not in found}
    return [read_result(file) for file in found.values()]


def read_result(path: Path) -> Result:
    """Read the result in a file. Raises UserError if it is missing, damaged, of another version or something else."""
    plain = read_json(path, "result of `colocate evaluate`")
    try:
        return _RESULT.validate_python(plain | {"path": str(path)})
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged or no result ({reason(error)}): evaluate again, or leave it out") from error


def grouped(results: Sequence[Result]) -> list[list[Row]]:
    """Group results by table, and in a table by backbone, in the order of labels.

    A label that several backbones of one table have is told apart by the beginning of their fingerprints.

    Raises UserError: two different results of one backbone and seed, or results of other images than the rest.
    """
    tables: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        tables.setdefault(result.table, []).append(result)
    return [_rows(tables[key]) for key in sorted(tables)]


def _rows(results: Sequence[Result]) -> list[Row]:
    backbones: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        if sorted(result.images) != sorted(results[0].images):
            raise UserError(
                f"{results[0].path} and {result.path} should have the same test images, but do not: remove the one "
                "that was changed, and evaluate again"
            )
        if result.images != results[0].images:  # the data set's table was sorted anew
            places = {image: place for place, image in enumerate(results[0].images)}
            records = zip(result.images, result.records, strict=True)
            result = replace(result, records=[one for _, one in sorted(records, key=lambda its: places[its[0]])])
        seeds = backbones.setdefault((result.backbone.label, result.backbone.fingerprint), {})
        other = seeds.setdefault(result.seed, result)
        if other.records != result.records:
            raise UserError(
                f"{other.path} and {result.path} are both {result.backbone.label}, seed {result.seed}, "
                "with different scores: leave one out"
            )
    labels = [label for label, _ in backbones]
    rows = []
    for (label, its), seeds in sorted(backbones.items()):
        # Of random weights the fingerprint is "random" and the architecture; of others, hexadecimal.
        known = its.removeprefix("random ") if its.startswith("random ") else its[:8]
        name = label if labels.count(label) == 1 else f"{label} {known}"
        rows.append(Row(name, tuple(seeds[seed] for seed in sorted(seeds))))
    return rows


_RESULT = pydantic.TypeAdapter(Result)


Run: TypeAlias = Sequence[dict[str, Any]]
"""One seed's images as `result.json` lists them: {"image": name, family: record, ...}."""
Drawn: TypeAlias = Sequence[Float64[np.ndarray, " d"]]
"""A score of each seed, in each set of images; the first set is the images as they are."""


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
    """What was drawn: "80 images" or "16 cases (80 images)"; of a single one `low` and `high` are nan."""
    values: tuple[float, ...]
    """The score of each seed."""


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
    """Of the draws, those in which the first is better; a tie is half a draw."""
    over: str


def draw_images(
    images: int, groups: Sequence[str] | None = None, draws: int = 1000
) -> tuple[Int64[np.ndarray, "d n"], str]:
    """Counts of each image in the set as it is (first) and in each draw; and what was drawn, in words.

    `groups` is the case of each image: whole cases are drawn then, and an image whose case is unknown (empty) is one of
    its own.
    """
    over = counted(images, "image")
    cases = np.arange(images)
    if groups is not None and any(groups):
        known = [("case", case) if case else ("image", str(number)) for number, case in enumerate(groups)]
        place = {case: number for number, case in enumerate(dict.fromkeys(known))}
        cases = np.array([place[case] for case in known])
        over = f"{counted(len(place), 'case')} ({over})"
    size = int(cases.max()) + 1
    if size == 1:  # every draw would be the same
        draws, over = 0, f"{over}, which gives none"
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=draws)
    return np.concatenate([np.ones((1, images), np.int64), drawn[:, cases]]), over


def scored(family: str, runs: Sequence[Run], counts: Int64[np.ndarray, "d n"]) -> dict[str, Drawn]:
    """Every score of a family, of each run in each set of images; runs are of the same images in the same order."""
    each = [FAMILIES[family].pack([entry[family] for entry in run])(counts) for run in runs]
    return {name: [scores[name] for scores in each] for name in each[0]}


def interval(drawn: Drawn, over: str) -> Interval:
    """A score with its spread over seeds and its interval over what was drawn."""
    table = np.stack(drawn, 1)
    return Interval(*_spread(table), *_percentiles(table), over, tuple(table[0].tolist()))


def paired(first: Drawn, second: Drawn, over: str, lower: bool = False) -> Difference:
    """First less second, of the same seeds in the same order; `lower`: the lower one is better."""
    difference = np.stack(first, 1) - np.stack(second, 1)
    drawn = difference[1:].mean(1)
    better = np.sign(drawn[~np.isnan(drawn)]) * (-1 if lower else 1)
    share = float((better + 1).mean() / 2) if better.size else float("nan")
    return Difference(*_spread(difference), *_percentiles(difference), share, over)


def _spread(table: Float64[np.ndarray, "d s"]) -> tuple[float, float]:
    seeds = table[0]
    return float(seeds.mean()), float(seeds.std(ddof=1)) if len(seeds) > 1 else float("nan")


def _percentiles(table: Float64[np.ndarray, "d s"]) -> tuple[float, float]:
    drawn = table[1:].mean(1)
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
