"""Results as a page: tables, scores as dots with intervals, the worst and best images; and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colocate.base.files import write_atomically
from colocate.base.text import counted
from colocate.evaluation.metrics import FAMILIES, LOWER_IS_BETTER
from colocate.evaluation.table import Table, facts, numbers, settings, title
from colocate.pages import svg
from colocate.pages.html import embedded, write_page
from colocate.pages.style import COLOURS, RULE, SMALL, SOFT, TEXT, heading, plot, png
from colocate.pages.style import NAMES as COLOUR_NAMES

ACROSS = 3  # charts beside each other
LETTERS = 22  # of a label
NAMES_PX, SCALE_PX, WIDE_PX, ROW_PX = 150, 430, 480, 30  # of the SVG: where names and the scale end, width, a row
MOST_SHEETS, MOST_IMAGES = 8, 5
JUDGED = {
    "instances": ("glas", "object Dice"),
    "contours": ("glas", "object Dice"),
    "semantics": ("semantic", "micro Dice"),
    "probe": ("probe", "image Dice"),
}
"""The score by which single images are compared: its family and name."""
FOOTNOTE = (
    "Large dot: mean over seeds; line: 95 % interval; small dots: seeds; dashed: the reference. "
    "Bold: better than the next best by their paired interval."
)


class Interval(NamedTuple):
    """A backbone in the chart of a score, in its units; nan where it is undefined."""

    label: str
    colour: str
    low: float
    high: float
    mean: float
    seeds: list[float]
    """Empty where there is a single one."""
    value: str
    best: bool
    words: str
    """What the pointer is told."""


class Dots(NamedTuple):
    """The chart of a score."""

    title: str
    x: svg.Scale
    """Places in the SVG."""
    across: list[tuple[float, str]]
    rows: list[Interval]
    reference: float | None


def write_scores(tables: Sequence[Table], out: Path) -> None:
    """Write the page OUT/index.html of the tables, and draw their headline scores as OUT/table.png."""
    write_page(
        out / "index.html",
        "scores.html",
        heading=title(tables[0]) if len(tables) == 1 else f"Results: {counted(len(tables), 'table')}",
        tables=[
            {
                "title": title(table),
                "numbers": list(numbers(table)),
                "facts": facts(table),
                "dots": [dots(table, name) for name in table.headlines],
                "sheets": list(_sheets(table)),
                "images": images(table),
            }
            for table in tables
        ],
        footnote=FOOTNOTE,
        short=_short,
        wide=WIDE_PX,
        row_px=ROW_PX,
    )
    write_atomically(out / "table.png", png(draw(tables)))


def dots(table: Table, name: str) -> Dots:
    """Lay out a headline score over all test images: a line a backbone, the reference on top."""
    intervals = {row.label: table.scores[0].intervals[row.label][name] for row in table.rows}
    known = [value for its in intervals.values() for value in (its.low, its.high, its.mean, *its.values)]
    known = [value for value in known if math.isfinite(value)] or [0.0]
    margin = 0.05 * (max(known) - min(known)) or 1
    x = svg.Scale(min(known) - margin, max(known) + margin, NAMES_PX, SCALE_PX)
    rows = []
    for place, (label, its) in enumerate(intervals.items()):
        value = "undefined" if math.isnan(its.mean) else f"{its.mean:.1f}"
        told = f"{label}: {value}"
        if not math.isnan(its.mean):
            told += "" if math.isnan(its.low) else f" [{its.low:.1f}, {its.high:.1f}]"
            told += f"; seeds {', '.join(f'{one:.1f}' for one in its.values)}"
        best = table.scores[0].best.get(name) == label
        seeds = list(its.values) if len(its.values) > 1 else []
        low, high = (its.mean if math.isnan(end) else end for end in (its.low, its.high))
        colour = COLOUR_NAMES[place % len(COLOUR_NAMES)]
        rows.append(Interval(label, colour, low, high, its.mean, seeds, value, best, told))
    reference = intervals[table.against].mean
    shown = len(rows) > 1 and not math.isnan(reference)
    unit = "px (lower is better)" if name in LOWER_IS_BETTER else "%"
    ticks = [(x(tick), f"{tick:g}") for tick in svg.ticks(x.low, x.high)]
    return Dots(f"{name}, {unit}", x, ticks, rows, reference if shown else None)


def _short(label: str) -> str:
    """Both ends of a long label: either may tell it from others."""
    return label if len(label) <= LETTERS else f"{label[: LETTERS // 2]}…{label[1 - LETTERS // 2 :]}"


def _sheets(table: Table) -> Iterator[tuple[str, str]]:
    """Words and the sheet of worst and best images of the first seed of each backbone, where the evaluation kept it.

    Of an evaluation that kept none: its overlays, evenly spaced.
    """
    for row in table.rows[:MOST_SHEETS]:
        folder = Path(row.results[0].path).parent
        for name, what in (("worst-best.png", "the worst and the best"), ("overlays.png", "some, evenly spaced")):
            if (folder / name).is_file():
                yield f"{row.label}, seed {row.seeds[0]}: {what}", embedded((folder / name).read_bytes())
                break


def images(table: Table) -> list[list[str]]:
    """Heads, then the worst and the best test images by their mean score over backbones and seeds."""
    family, score = JUDGED[table.first.task]
    found = {
        row.label: [
            [FAMILIES[family].scores([record[family]]).get(score, math.nan) for record in result.records]
            for result in row.results
        ]
        for row in table.rows
    }
    means = {label: np.mean(values, 0) for label, values in found.items()}
    over = np.mean(list(means.values()), 0)
    order = [int(place) for place in np.argsort(over, kind="stable") if not math.isnan(over[place])]
    few = min(MOST_IMAGES, len(order) // 2)
    chosen = [("worst", place) for place in order[:few]] + [("best", place) for place in order[::-1][:few]]
    names = [name for _, name in table.first.images]
    rows = [["image", "", *(f"{label}: {score}" for label in means)]]
    return rows + [[names[place], what, *(f"{its[place]:.1f}" for its in means.values())] for what, place in chosen]


def draw(tables: Sequence[Table]) -> Figure:
    """Draw for each table its title, what it is of, and a chart for each headline score."""
    deep = [-(-len(table.headlines) // ACROSS) for table in tables]
    heights = [1.0 + rows * (0.9 + 0.3 * len(table.rows)) for rows, table in zip(deep, tables, strict=True)]
    figure = Figure(figsize=(12, 0.4 + sum(heights)), layout="constrained", facecolor="white")
    figure.supxlabel(FOOTNOTE, fontsize=SMALL, color=SOFT)
    parts = figure.subfigures(len(tables), 1, height_ratios=heights, squeeze=False).ravel()
    for part, rows, table in zip(parts, deep, tables, strict=True):
        over = f"{table.first.dataset.train} training images; intervals over {table.scores[0].over}"
        heading(part, title(table), fill(f"{over}. {settings(table.first)}", 150))
        charts = part.subplots(rows, ACROSS, squeeze=False).ravel()
        for axes in charts[len(table.headlines) :]:
            axes.set_axis_off()
        for axes, name in zip(charts, table.headlines, strict=False):
            _chart(axes, dots(table, name))
    return figure


def _chart(axes: Axes, its: Dots) -> None:
    """Draw a row a backbone, the reference on top."""
    plot(axes, its.title, "")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_ylim(len(its.rows) - 0.5, -0.5)
    axes.set_yticks(range(len(its.rows)), [_short(row.label) for row in its.rows])
    axes.margins(x=0.08)
    beside = axes.get_yaxis_transform()
    for place, row in enumerate(its.rows):
        colour, weight = COLOURS[row.colour], "bold" if row.best else "normal"
        axes.text(1.02, place, row.value, transform=beside, va="center", fontsize=TEXT, weight=weight)
        axes.plot([row.low, row.high], [place, place], color=colour, lw=2, solid_capstyle="round", zorder=2)
        if row.seeds:
            axes.plot(row.seeds, [place + 0.27] * len(row.seeds), ".", color=colour, ms=5, alpha=0.55, mew=0)
        axes.plot([row.mean], [place], "o", color=colour, ms=7, mec="white", mew=1, zorder=4)
    if its.reference is not None:
        axes.axvline(its.reference, color=SOFT, lw=0.9, ls="--", zorder=1)
