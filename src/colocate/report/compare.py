"""Several runs laid over each other, on what means the same in every method: a table and one picture page."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.base.text import escaped, grid
from colocate.data.index import Index
from colocate.pretrain.journal import read_journal
from colocate.pretrain.recipe import Recipe, differences, read_recipe
from colocate.pretrain.run import planned_steps
from colocate.report.curves import CHANCE, Dashes, Rows, draw_line, fit, mean, name_ends, name_level, tenth
from colocate.report.style import COLOURS, INK, SMALL, SOFT, TEXT, TITLE, Page, columns, listed, plot

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


WIDTH, MARGIN, LINE = 12.0, 0.5, 0.24  # inches
INNER = WIDTH - 2 * MARGIN
CHART, TOP, ROW = 2.05, 0.72, 3.5  # inches: a chart's height, its heading above, the whole
LETTERS = 13.5  # an inch, at least, in the size of text
STYLES: tuple[Dashes, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))  # when colours run out
CHARTS = (
    ("correspondence", "Correspondence accuracy", "How often a cell's most similar cell shows the same tissue."),
    ("effective_rank", "Effective rank", "In how many directions tiles differ. 1: collapsed."),
    ("feature_std", "Feature standard deviation", "Of projected whole views. About 1: spread out, 0: collapsed."),
    ("within_tile", "Within-tile share of variance", "Of the cells' features. 0: the cells of a tile are all alike."),
)


def compare(runs: Sequence[Path], out: Path = Path("compare.png")) -> str:
    """Draw the runs' page as `out`; returns in Markdown what they share, where they differ, and a row a run.

    Raises:
        UserError: fewer than two runs, one given twice, no run there, or one that has logged nothing.
    """
    compared = read_runs(runs)
    packed = draw(compared).png()
    write_atomically(Path(out), lambda file: file.write(packed))
    return markdown(compared)


def markdown(runs: Sequence[Run]) -> str:
    """What the runs share, where they differ, and their table."""
    same, different = same_and_different(runs)
    note = (
        "Values are means over the last tenth of each journal's rows. Correspondence stands with its chance level. "
        "Losses of different methods are on different scales."
    )
    parts = [f"The same in all: {same}" if same else "", "\n".join(f"- {line}" for line in different), note]
    return "\n\n".join([*filter(None, parts), table(runs)])


def table(runs: Sequence[Run]) -> str:
    """A row a run, in Markdown; a cell is empty where the method has no such term."""
    cells = [_cells(run) for run in runs]
    return grid([list(cells[0]), *([escaped(text) for text in row.values()] for row in cells)], left=2)


def _cells(run: Run) -> dict[str, str]:
    def number(column: str, form: str) -> str:
        value = run.late(column)
        return f"{value:{form}}" if math.isfinite(value) else ""

    def share(column: str) -> str:
        chance = number(f"{column}_chance", ".3f")
        return number(column, ".3f") + (f" ({chance})" if chance else "")

    return {
        "run": run.name,
        "recipe": run.recipe.name,
        "steps": run.steps,
        **{name: number(name, "#.3g") for name in ("loss", "whole", "cells", "concepts")},
        "correspondence": share("correspondence"),
        "displaced": share("displaced"),
        "effective rank": number("effective_rank", ".1f"),
        "feature std": number("feature_std", ".3f"),
        "within tile": number("within_tile", ".3f"),
        "pairs/s": number("pairs_per_s", ".1f"),
        "waiting": number("waiting", ".1%"),
    }


def draw(runs: Sequence[Run]) -> Page:
    """The page: what the runs share, where they differ, which line is whose, and four charts."""
    same, different = same_and_different(runs)
    shared = _wrapped(same or "Nothing is the same in all runs.")
    others = [part for line in different for part in _wrapped(line)]
    labels = [_label(run) for run in runs]
    each = max(len(label) for label in labels) / LETTERS + 0.9
    across = max(1, min(len(runs), int(INNER / each)))
    deep = -(-len(runs) // across)
    key_top = 0.95 + LINE * (len(shared) + len(others)) + 0.1 * bool(others)
    charts = key_top + LINE * deep + 0.4
    page = Page(WIDTH, charts + 2 * ROW + 0.25)

    page.text(MARGIN, 0.4, _title(runs), TITLE, fontweight="bold")
    for number, line in enumerate(shared + others):
        below = number >= len(shared)
        page.text(MARGIN, 0.8 + LINE * number + 0.06 * below, line, color=INK if below else SOFT)
    looks = [(COLOURS[n % len(COLOURS)], STYLES[n // len(COLOURS) % len(STYLES)]) for n in range(len(runs))]
    key = page.axes(MARGIN, key_top, INNER, LINE * deep)
    key.set(xlim=(0, INNER), ylim=(deep, 0))
    key.set_axis_off()
    for number, (label, (colour, dashes)) in enumerate(zip(labels, looks, strict=True)):
        x, y = number % across * each, number // across + 0.5
        key.plot([x, x + 0.4], [y, y], color=colour, ls=dashes, lw=2.4, solid_capstyle="butt")
        key.text(x + 0.5, y, label, fontsize=TEXT, color=INK, va="center_baseline")
    for number, (column, title, explanation) in enumerate(CHARTS):
        left, width = list(columns(MARGIN + 0.4, INNER - 0.8, 2, 1.0))[number % 2]
        top = charts + number // 2 * ROW
        page.heading(left - 0.4, top, title, explanation)
        _chart(page.axes(left, top + TOP, width, CHART), runs, column, looks)
    numbers = (
        " The numbers at the right are means over the last tenth of the rows." if len(runs) <= len(COLOURS) else ""
    )
    foot = f"Thin: each row of the journal. Thick: its running mean over a tenth of the run.{numbers}"
    page.text(MARGIN, charts + 2 * ROW - 0.2, foot, SMALL, color=SOFT)
    return page


def _wrapped(line: str) -> list[str]:
    return wrap(line, int(INNER * LETTERS), subsequent_indent="    ")


def _label(run: Run) -> str:
    """The run's name, with its recipe's where that says more; of a very long one the end."""
    label = run.name if run.recipe.name in ("", Path(run.name).name) else f"{run.name} ({run.recipe.name})"
    most = int((INNER - 0.9) * LETTERS)
    return label if len(label) <= most else f"...{label[3 - most :]}"


def _title(runs: Sequence[Run]) -> str:
    """Recipes and data, as far as a line has room for them."""
    recipes = list(dict.fromkeys(run.recipe.name or "own" for run in runs))
    data = f" on {runs[0].data}" if len({run.data for run in runs}) == 1 else ""
    count = f": {len(runs)} runs" if len(recipes) < len(runs) else ""
    whole = f"{', '.join(recipes)}{count}{data}"
    return next((words for words in (whole, f"{len(runs)} runs{data}") if len(words) <= 75), f"{len(runs)} runs")


def _chart(axes: Axes, runs: Sequence[Run], column: str, looks: list[tuple[str, Dashes]]) -> None:
    """One column's curves, with its late means beside them."""
    pairs = [run.pairs if len({run.pairs for run in runs}) > 1 else 1 for run in runs]
    plot(axes, "", "step" if set(pairs) == {1} else "pairs seen")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for run, units, (colour, dashes) in zip(runs, pairs, looks, strict=True):
        draw_line(axes, run.rows, column, colour, dashes=dashes, faint=0.25, pairs=units, full=True)
    fit(axes, max(run.rows[-1]["step"] * units for run, units in zip(runs, pairs, strict=True)))
    if not axes.lines:
        axes.text(0.5, 0.5, "not in these journals", transform=axes.transAxes, color=SOFT, fontsize=SMALL, ha="center")
        axes.set_yticks([])
        return
    if column == "correspondence":
        _chance(axes, runs, [colour for colour, _ in looks])
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    low, high = axes.dataLim.intervaly
    axes.set_ylim(0 if low < high / 2 else high / 2, None)
    if len(runs) <= len(COLOURS):
        late = [run.late(column) for run in runs]
        name_ends(axes, [(end, f"{end:#.3g}", colour) for end, (colour, _) in zip(late, looks, strict=True)])


def _chance(axes: Axes, runs: Sequence[Run], colours: list[str]) -> None:
    """The level of chance: one line where it is the same for all, else one of each run's colour."""
    levels = {run.name: mean(run.rows, "correspondence_chance") for run in runs}
    known = [level for level in levels.values() if math.isfinite(level)]
    if not known:
        return
    if max(known) - min(known) < 0.01:
        level = sum(known) / len(known)
        axes.axhline(level, color=SOFT, lw=1.1, ls=CHANCE)
        name_level(axes, level, f"chance {level:.2f}")
        return
    for level, colour in zip(levels.values(), colours, strict=True):
        if math.isfinite(level):
            axes.axhline(level, color=colour, lw=1.1, ls=CHANCE)
    name_level(axes, min(known), "chance (dashed)")
