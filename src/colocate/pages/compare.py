"""Compare runs on what means the same in every method: a table, and one page of curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.base.text import counted, escaped, grid
from colocate.data.index import Index
from colocate.pages.curves import Rows, draw_line, late_mean
from colocate.pages.style import COLOURS, SMALL, plot, png
from colocate.training.journal import loss_terms, read_journal
from colocate.training.recipe import Recipe, differences, read_recipe

COLUMNS = {
    "correspondence": ".3f",
    "correspondence_chance": ".3f",
    "displaced": ".3f",
    "displaced_chance": ".3f",
    "effective_rank": ".1f",
    "feature_std": ".3f",
    "within_tile": ".3f",
    "pairs_per_s": ".1f",
    "waiting": ".1%",
    "crowded": ".1%",
}
"""Columns of the journal in the table after those of the loss, and their number formats."""
CHARTS = {
    "correspondence": "Correspondence accuracy: how often a cell's most similar cell shows the same tissue",
    "effective_rank": "Effective rank: in how many directions tiles differ (1: collapsed)",
    "feature_std": "Standard deviation of projected whole views (about 1: spread out, 0: collapsed)",
    "within_tile": "Share of variance within tiles (0: the cells of a tile are all alike)",
}
STYLES = ("-", "--", ":", "-.")  # when colours run out
NOTE = (
    "Values are means over the last tenth of each journal's rows. Losses of different methods are on different scales. "
    "Effective rank cannot exceed the batch: compare that of equal batches only."
)


class Run(NamedTuple):
    """A run as `compare` needs it."""

    name: str
    recipe: Recipe
    rows: Rows
    tiles: str
    """The same for the same tiles, wherever they lie; without tiles.arrow their path."""


def compare(runs: Sequence[Path], out: Path = Path("compare.png")) -> str:
    """Draw the curves of the runs as `out`; returns their table and the settings that differ, in Markdown.

    Raises:
        UserError: fewer than two runs, one given twice, no run there, or one that has logged nothing.
    """
    compared = read_runs(runs)
    packed = png(draw(compared))
    write_atomically(Path(out), packed)
    return markdown(compared)


def read_recipe_of(run: Path) -> Recipe:
    """The recipe that a run folder keeps. Raises UserError if it is not the folder of a run."""
    if not (run / "recipe.json").is_file():
        raise UserError(f"{run} is not the folder of a run (it has no recipe.json): give the --out of a pretraining")
    return read_recipe(run / "recipe.json")


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs to compare. Raises UserError as `compare`."""
    if len(folders) < 2:
        raise UserError("give two runs or more to compare")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{folder} is given twice: name each run once")
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> Run:
    recipe, rows = read_recipe_of(folder), read_journal(folder)
    if not rows:
        raise UserError(f"{folder} has logged nothing yet: wait for the first row of its journal.csv, or leave it out")
    tiles = recipe.data
    if (folder / "tiles.arrow").exists():  # not of a run fetched from elsewhere without it
        index = Index.open(folder / "tiles.arrow")
        tiles = f"{counted(len(index), 'tile')}, fingerprint {index.fingerprint[:8]}"
    return Run(name, recipe, rows, tiles)


def different_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Every setting that differs, with its value in each run; of the method where all have the same one."""
    found = {"tiles": [run.tiles for run in runs]} if len({run.tiles for run in runs}) > 1 else {}
    one_method = len({type(run.recipe.method) for run in runs}) == 1
    for number, run in enumerate(runs):
        for name, (value, first) in differences(run.recipe, runs[0].recipe).items():
            if one_method or not name.startswith("method."):
                found.setdefault(name, [str(first)] * len(runs))[number] = str(value)
    return found


def markdown(runs: Sequence[Run]) -> str:
    """A row a run, then a row a setting that differs; a cell is empty where a method has no such term."""
    columns = dict.fromkeys(["loss", *(term for run in runs for term in loss_terms(run.rows))], "#.3g") | COLUMNS
    rows = [["run", "recipe", "steps", *(column.replace("_", " ") for column in columns)]]
    for run in runs:
        late = {column: late_mean(run.rows, column) for column in columns}
        values = [f"{late[name]:{form}}" if math.isfinite(late[name]) else "" for name, form in columns.items()]
        rows.append([escaped(run.name), escaped(run.recipe.name), f"{run.rows[-1]['step']:,.0f}", *values])
    parts = [grid(rows, left=2), NOTE]
    if different := different_settings(runs):
        head = ["setting", *(escaped(run.name) for run in runs)]
        parts.append(grid([head, *([name, *map(escaped, values)] for name, values in different.items())], left=1))
    else:
        parts.append("All settings are the same.")
    return "\n\n".join(parts)


def draw(runs: Sequence[Run]) -> Figure:
    """Four charts over the pairs of views seen, the level of chance dotted, and a legend below."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    charts = figure.subplots(2, 2).ravel()
    for axes, (column, title) in zip(charts, CHARTS.items(), strict=True):
        plot(axes, title, "pairs of views seen")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        for number, run in enumerate(runs):
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
            pairs = run.recipe.batch * run.recipe.accumulate
            draw_line(axes, run.rows, column, colour, run.name[-40:], style=style, pairs=pairs)
            chance = late_mean(run.rows, f"{column}_chance")
            if math.isfinite(chance):
                axes.axhline(chance, color=colour, lw=1, ls=":")
        axes.set_xlim(0, None)
    handles = charts[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=SMALL, frameon=False)
    return figure
