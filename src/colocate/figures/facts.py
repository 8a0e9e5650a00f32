"""What a page says of runs in words: recipes, data, counts of things, and what several have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data import Index
from ..errors import UserError
from ..journal import read_journal
from ..recipe import Recipe, differences, read_recipe
from ..run import planned_steps
from .curves import Rows, mean, tenth
from .style import listed

SAID = {"encoder.backbone", "views.size", "batch", "accumulate", "seed", "steps", "epochs"}  # by `_facts`
OWN = ("method.", "views.reference")  # what makes a method the one that it is
REMARK = {"batch": ". Effective rank cannot exceed the batch: compare that of equal batches only."}


@dataclass(frozen=True)
class Run:
    """What is compared of a run."""

    name: str
    recipe: Recipe
    rows: Rows
    tiles: int | None
    """How many there are in its data; None where tiles.arrow is missing."""
    fingerprint: str
    """The same for the same tiles; without tiles.arrow their path."""
    data: str
    """What its tiles are called: the name of a folder or file."""

    @property
    def pairs(self) -> int:
        """Pairs of views an optimiser step."""
        return self.recipe.batch * self.recipe.accumulate

    @property
    def steps(self) -> str:
        """How far it has come, and of how many steps if it has not ended."""
        done = int(self.rows[-1]["step"])
        planned = self.recipe.steps if self.tiles is None else planned_steps(self.recipe, self.tiles)
        return f"{done:,} of {planned:,}" if planned and planned > done else f"{done:,}"

    def late(self, column: str) -> float:
        """A column's mean over the last tenth of the journal's rows."""
        return mean(self.rows[-tenth(len(self.rows)) :], column)


def recipe_of(run: Path) -> Recipe:
    """The recipe that a run folder keeps.

    Raises:
        UserError: no folder of a run, or see `read_recipe`.
    """
    if not (run / "recipe.json").is_file():
        raise UserError(f"{run} is not the folder of a run (it has no recipe.json): give the --out of a pretraining")
    return read_recipe(run / "recipe.json")


def data_name(recipe: Recipe, kind: str) -> str:
    """The data's name in a title; of a list or table (its `kind`) the folder's that it lies in."""
    data = Path(recipe.data)
    return data.parent.name if kind in ("list", "table") and data.parent.name else data.name or recipe.data


def counted(number: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "tile"), counted(1200, "tile")
    ('1 tile', '1,200 tiles')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """What is to be compared of each run.

    Raises:
        UserError: fewer than two, one given twice, no run there, or one that has logged nothing.
    """
    if len(folders) < 2:
        alone = f"colocate report {folders[0]} draws one" if folders else "colocate compare RUN RUN ..."
        raise UserError(f"give two runs or more to compare; {alone}")
    known: set[Path] = set()
    for folder in folders:
        if folder.resolve() in known:
            raise UserError(f"{folder} is given twice: name each run once")
        known.add(folder.resolve())
    return [_read(folder, name) for folder, name in zip(folders, unique_names(folders), strict=True)]


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Each folder's name, with as many of its parents as tell it from the others.

    >>> unique_names([Path("a/run"), Path("b/run"), Path("b/plm")])
    ['a/run', 'b/run', 'plm']
    """
    places = [Path(os.path.abspath(folder)).parts for folder in folders]  # noqa: PTH100 (links keep their names)
    names = []
    for place in places:
        depth = 1
        while depth < len(place) and sum(other[-depth:] == place[-depth:] for other in places) > 1:
            depth += 1
        names.append(str(Path(*place[-depth:])))
    return names


def _read(folder: Path, name: str) -> Run:
    recipe, rows = recipe_of(folder), read_journal(folder)
    if not rows:
        raise UserError(f"{folder} has logged nothing yet: wait for the first row of its journal.csv, or leave it out")
    if not (folder / "tiles.arrow").exists():  # of a run fetched from elsewhere without it
        return Run(name, recipe, rows, None, recipe.data, data_name(recipe, ""))
    index = Index.open(folder / "tiles.arrow")
    return Run(name, recipe, rows, len(index), index.fingerprint, data_name(recipe, index.kind))


def same_and_different(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """What is the same in all runs, in a line; and a line for each thing that should be, or might matter, and is not.

    The method is what is compared. Its settings are listed only where all runs have the recipe's name in common.
    """
    facts = _facts(runs)
    same = [f"{name} {values[0]}" for name, values in facts.items() if len(set(values)) == 1]
    different = (facts | _settings(runs)).items()
    lines = [
        f"different {name}: {_told(values, [run.name for run in runs])}{REMARK.get(name, '')}"
        for name, values in different
        if len(set(values)) > 1
    ]
    return listed(same), lines


def _told(values: list[str], names: list[str]) -> str:
    """Each value with the runs that have it; that of most runs without their names.

    >>> _told(["1", "0", "0", "0"], ["plm", "concl", "densecl", "vicregl"])
    '1 (plm); 0 (the others)'
    """
    having = {value: [name for name, its in zip(names, values, strict=True) if its == value] for value in values}
    usual = [value for value, its in having.items() if len(its) > max(2, len(names) / 2)]
    told = [f"{value} ({', '.join(having[value])})" for value in having if value not in usual]
    return "; ".join([*told, *(f"{value} (the others)" for value in usual)])


def _facts(runs: Sequence[Run]) -> dict[str, list[str]]:
    """What ought to be the same in all runs, with its value in each."""
    data = [f"{run.data}, {'no tiles.arrow' if run.tiles is None else counted(run.tiles, 'tile')}" for run in runs]
    prints = [run.fingerprint for run in runs]
    if len(set(prints)) == 1:
        data = data[:1] * len(runs)  # the same tiles under another name
    elif len(set(data)) < len(set(prints)):
        data = [f"{name}, fingerprint {its[:8]}" for name, its in zip(data, prints, strict=True)]
    recipes = [run.recipe for run in runs]
    return {
        "data": data,
        "backbone": [recipe.encoder.backbone for recipe in recipes],
        "view size": [f"{recipe.views.size} px" for recipe in recipes],
        "batch": [f"{r.batch}" if r.accumulate == 1 else f"{r.accumulate} x {r.batch}" for r in recipes],
        "seed": [str(recipe.seed) for recipe in recipes],
        "steps": [run.steps for run in runs],
    }


def _settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Every other setting that differs, by its part of the recipe, with its value in each run."""
    fields: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        for line in differences(run.recipe, runs[0].recipe):
            name, _, both = line.partition(" is ")
            value, _, first = both.rpartition(", was ")
            fields.setdefault(name, [first] * len(runs))[number] = value
    variants = len({run.recipe.name for run in runs}) == 1
    settings: dict[str, list[str]] = {}
    for name, values in fields.items():
        if name in SAID or (name.startswith(OWN) and not variants):
            continue
        part, _, leaf = name.partition(".")
        named = [f"{leaf} {value}".strip() for value in values]
        before = settings.get(part)
        settings[part] = [f"{a}, {b}" for a, b in zip(before, named, strict=True)] if before else named
    return settings
