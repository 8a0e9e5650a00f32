"""Compare runs on what means the same in every method: a table, settings that differ, and curves, on one page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.base.text import counted, grid
from colocate.data.index import Index
from colocate.pages import svg
from colocate.pages.curves import STYLES, Chart, Rows, draw_chart, late_mean, line
from colocate.pages.html import check_ending, write_page
from colocate.pages.sample import read_recipe_of
from colocate.pages.style import NAMES, SMALL, png
from colocate.training.journal import loss_terms, read_journal
from colocate.training.recipe import Recipe, differences

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
NOTE = (
    "Values are means over the last tenth of each journal's rows. Losses of different methods are on different scales. "
    "Effective rank cannot exceed the batch: compare it between equal batches only."
)
WORDS = {
    "whole": "the part of the loss that comes from whole views, already weighted",
    "displaced": "correspondence of cells whose tissue lies elsewhere in the other view; 0: it knows only places",
    "crowded": "share of the time in which other processes used the cores; above 10 %, measured speeds are too low",
}
"""What the columns measure whose names do not say it."""


class Run(NamedTuple):
    """A run as `compare` needs it."""

    name: str
    recipe: Recipe
    rows: Rows
    tiles: str
    """The same for the same tiles, wherever they lie; without tiles.arrow their path."""


def compare(runs: Sequence[Path], out: Path = Path("compare.html"), picture: Path | None = None) -> str:
    """Write a page of the runs as `out`, and draw their curves as a PNG too; returns their tables in Markdown.

    Raises UserError: fewer than two runs, one given twice, no run there, or one that has logged nothing.
    """
    check_ending(out)
    compared = read_runs(runs)
    names = [run.name for run in compared]
    charts, table, settings = charts_of(compared), rows_of(compared), different_settings(compared)
    different = [["setting", *names], *([name, *values] for name, values in settings.items())] if settings else []
    words = {name: meaning for name, meaning in WORDS.items() if name in table[0]}
    write_page(
        out,
        "runs.html",
        heading=f"{counted(len(compared), 'run')} compared",
        runs=names,
        table=[list(column) for column in zip(*table, strict=True)],
        different=different,
        note=NOTE,
        words=words,
        charts=charts,
        svg=svg,
    )
    if picture is not None:
        write_atomically(picture, png(draw(charts)))
    listed = "\n".join(f"- {name}: {meaning}" for name, meaning in words.items())
    said = grid(different, left=1) if different else "All settings are the same."
    return "\n\n".join([grid(table, left=2), NOTE, listed, said])


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
    """Every setting that differs, with its value in each run; of other methods only which they are."""
    found = {"tiles": [run.tiles for run in runs]} if len({run.tiles for run in runs}) > 1 else {}
    one_method = len({type(run.recipe.method) for run in runs}) == 1
    for number, run in enumerate(runs):
        for name, (value, first) in differences(run.recipe, runs[0].recipe).items():
            if one_method or name == "method.kind" or not name.startswith("method."):
                found.setdefault(name, [str(first)] * len(runs))[number] = str(value)
    return found


def rows_of(runs: Sequence[Run]) -> list[list[str]]:
    """Heads, then a row a run; a cell is empty where a method has no such term."""
    columns = dict.fromkeys(["loss", *(term for run in runs for term in loss_terms(run.rows))], "#.3g") | COLUMNS
    rows = [["run", "recipe", "steps", *(column.replace("_", " ") for column in columns)]]
    for run in runs:
        late = {column: late_mean(run.rows, column) for column in columns}
        values = [f"{late[name]:{form}}" if math.isfinite(late[name]) else "" for name, form in columns.items()]
        rows.append([run.name, run.recipe.name, f"{run.rows[-1]['step']:,.0f}", *values])
    return rows


def charts_of(runs: Sequence[Run]) -> list[Chart]:
    """The curves over the pairs of views seen, with the level of chance; what no run has logged is left out."""
    charts = []
    for column, title in CHARTS.items():
        lines = [
            line(
                run.rows,
                column,
                run.name,
                NAMES[number % len(NAMES)],
                style=number // len(NAMES) % len(STYLES),
                pairs=run.recipe.batch * run.recipe.accumulate,
            )
            for number, run in enumerate(runs)
        ]
        charts.append(Chart(title, "pairs of views seen", [one for one in lines if len(one.x)]))
    return [chart for chart in charts if chart.lines]


def draw(charts: Sequence[Chart]) -> Figure:
    """The charts on one sheet, a legend below."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    boxes = figure.subplots(2, 2).ravel()
    for axes, chart in zip(boxes, charts, strict=False):
        shortened = [one._replace(label=one.label[-40:]) for one in chart.lines]
        draw_chart(axes, chart._replace(lines=shortened), legend=False)
    for axes in boxes[len(charts) :]:
        axes.set_axis_off()
    # Not all methods have every curve, but all have some of these.
    handles = max((axes.get_legend_handles_labels() for axes in boxes), key=lambda its: len(its[0]))
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=SMALL, frameon=False)
    return figure
