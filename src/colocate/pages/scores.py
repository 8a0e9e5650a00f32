"""Draw scores of backbones as dots with intervals, one chart a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from colocate.base.files import write_atomically
from colocate.evaluation.metrics import LOWER_IS_BETTER
from colocate.evaluation.table import Table, settings, title
from colocate.pages.style import COLOURS, RULE, SMALL, SOFT, TEXT, heading, plot, png

ACROSS = 3  # charts beside each other
LETTERS = 22  # of a label
FOOTNOTE = (
    "Large dot: mean over seeds; line: 95 % interval over test images; small dots: seeds; dashed: the reference. "
    "Bold: better than the next best by their paired interval."
)


def scores(tables: Sequence[Table], out: Path) -> None:
    """Draw the headline scores of the tables over all test images as the picture `out`."""
    packed = png(draw(tables))
    write_atomically(out, packed)


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
            _chart(axes, table, name)
    return figure


def _chart(axes: Axes, table: Table, name: str) -> None:
    """Draw a row a backbone, the reference on top."""
    plot(axes, f"{name}, px (lower is better)" if name in LOWER_IS_BETTER else f"{name}, %", "")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.set_yticks(range(len(table.rows)), [row.label[:LETTERS] for row in table.rows])
    axes.margins(x=0.08)
    for place, row in enumerate(table.rows):
        found, colour = table.scores[0].intervals[row.label][name], COLOURS[place % len(COLOURS)]
        words = "undefined" if math.isnan(found.mean) else f"{found.mean:.1f}"
        weight = "bold" if table.scores[0].best.get(name) == row.label else "normal"
        axes.text(1.02, place, words, transform=axes.get_yaxis_transform(), va="center", fontsize=TEXT, weight=weight)
        axes.plot([found.low, found.high], [place, place], color=colour, lw=2, solid_capstyle="round", zorder=2)
        if len(found.values) > 1:
            axes.plot(found.values, [place + 0.27] * len(found.values), ".", color=colour, ms=5, alpha=0.55, mew=0)
        axes.plot([found.mean], [place], "o", color=colour, ms=7, mec="white", mew=1, zorder=4)
    reference = table.scores[0].intervals[table.against][name].mean
    if len(table.rows) > 1 and not math.isnan(reference):
        axes.axvline(reference, color=SOFT, lw=0.9, ls="--", zorder=1)
