"""Results as `colocate evaluate` leaves them: found below folders, checked, and grouped into what may share a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import pydantic

from ..errors import UserError
from .metrics import FAMILIES
from .protocol import VERSION

REMEDY = "give folders of results, or result.json files, that `colocate evaluate` wrote"


@dataclass(frozen=True)
class DataFacts:
    """On what a result was computed; as in result.json."""

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
    """What was judged."""

    label: str
    architecture: str
    fingerprint: str
    origin: str
    steps: int | None
    recipe: str | None


@dataclass(frozen=True)
class LeakageFacts:
    """What was sought of the test images in the data that the backbone or the decoder learned from."""

    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    found: tuple[str, ...]
    forced: bool


@dataclass(frozen=True)
class Result:
    """One seed of one backbone."""

    task: str
    dataset: DataFacts
    backbone: BackboneFacts
    settings: dict[str, Any]
    fraction: float
    seed: int
    leakage: LeakageFacts
    metrics: tuple[str, ...]
    records: list[dict[str, Any]]
    versions: dict[str, str]
    machine: str
    date: str
    path: str = ""

    @property
    def table(self) -> tuple[str, ...]:
        """What two results must have in common to share a table."""
        data = self.dataset
        return self.task, data.name, data.fingerprint, data.split, f"{self.fraction:.6f}", self.how, *self.metrics

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
    """All results in and below these files and folders, each once.

    Raises:
        UserError: there is none in one of them, or one is damaged, of another version or not a result.
    """
    if not places:
        raise UserError(f"no results: {REMEDY}")
    found: dict[Path, Path] = {}
    for place in places:
        files = sorted(place.rglob("result.json")) if place.is_dir() else [place]
        if not files:
            raise UserError(f"{place} holds no result.json: {REMEDY}")
        found |= {file.resolve(): file for file in files if file.resolve() not in found}
    return [read_result(file) for file in found.values()]


def read_result(path: Path) -> Result:
    """The result in a file. Raises UserError if it is missing, damaged, of another version, or something else."""
    try:
        plain = json.loads(path.read_text())
        if not isinstance(plain, dict) or not {"version", "task", "records"} <= plain.keys():
            raise UserError(f"{path} is not a result of colocate: {REMEDY}")
        if plain["version"] != VERSION:
            raise UserError(
                f"{path} is a result of version {plain['version']}, this colocate makes and reads {VERSION}: "
                "evaluate again, or leave it out"
            )
        result = _RESULT.validate_python(plain | {"path": str(path)})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is damaged or was changed ({where}: {first['msg']}): evaluate again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {REMEDY}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged or no JSON ({error}): evaluate again, or leave it out") from error
    if unknown := [name for name in result.metrics if name not in FAMILIES]:
        raise UserError(f"{path} has scores of a kind that is not known ({unknown[0]}): evaluate again")
    names = {"image", "part", *result.metrics}
    if not result.records or not all(names <= record.keys() for record in result.records):
        raise UserError(f"{path} lacks records of images, from which scores are computed: evaluate again")
    return result


def grouped(results: Sequence[Result]) -> list[list[Row]]:
    """Results that may share a table, by backbone: in the order of their labels.

    A label that several backbones of one table have is told apart by the beginning of their fingerprints.

    Raises:
        UserError: two different results of one backbone and seed, or results of other images than the rest.
    """
    tables: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        tables.setdefault(result.table, []).append(result)
    return [_rows(tables[key]) for key in sorted(tables)]


def _rows(results: Sequence[Result]) -> list[Row]:
    backbones: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        if result.images != results[0].images:
            raise UserError(
                f"{results[0].path} and {result.path} should have the same test images, and have not: evaluate again"
            )
        seeds = backbones.setdefault((result.backbone.label, result.backbone.fingerprint), {})
        other = seeds.setdefault(result.seed, result)
        if other.records != result.records:
            raise UserError(
                f"{other.path} and {result.path} are both {result.backbone.label}, seed {result.seed}, "
                "with other scores: leave one out"
            )
    labels = [label for label, _ in backbones]
    return [
        Row(label if labels.count(label) == 1 else f"{label} {its[:8]}", tuple(seeds[seed] for seed in sorted(seeds)))
        for (label, its), seeds in sorted(backbones.items())
    ]


_RESULT = pydantic.TypeAdapter(Result)
