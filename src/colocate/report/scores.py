"""Scores of backbones as dots with intervals, one chart a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from colocate.base.files import write_atomically
from colocate.evaluate.metrics import LOWER_IS_BETTER
from colocate.evaluate.table import Table, settings, title
from colocate.report.style import COLOURS, INK, RULE, SMALL, SOFT, TEXT, Page, columns, plot

WIDTH, MARGIN, GAP = 12.0, 0.5, 0.75  # inches
ROW, LABELS, NUMBERS = 0.3, 1.75, 0.45  # a backbone's height, the room for labels and for numbers
HEAD, FOOT, BELOW, LINE = 0.72, 0.72, 0.1, 0.195  # above charts, below a row of them, below all, a line of words
LETTERS = 22  # of a label
FOOTNOTE = (
    "Large dot: mean over seeds; line: 95 % interval over test images; small dots: seeds; dashed: the reference. "
    "Bold: better than the next best by their paired interval."
)


def scores(tables: Sequence[Table], out: Path) -> None:
    """Draw the tables' headline scores over all test images as the picture `out`."""
    packed = draw(tables).png()
    write_atomically(out, lambda file: file.write(packed))


def draw(tables: Sequence[Table]) -> Page:
    """The page: for each table its title and what it is of, and a chart for each headline score."""
    heights = [_height(table) for table in tables]
    page = Page(WIDTH, 0.35 + sum(heights) + 0.35)
    top = 0.35
    for table, height in zip(tables, heights, strict=True):
        _section(page, table, top)
        top += height
    page.text(MARGIN, top, FOOTNOTE, SMALL, color=SOFT)
    return page


def _across(table: Table) -> int:
    """Charts beside each other."""
    count = len(table.headlines)
    return count if count in (1, 2, 4) else 3


def _height(table: Table) -> float:
    deep = -(-len(table.headlines) // _across(table))
    return HEAD + LINE * len(_facts(table)) + deep * (len(table.rows) * ROW + FOOT) + BELOW


def _facts(table: Table) -> list[str]:
    """What the intervals are over, what the split shares, and settings that are not the defaults."""
    data = table.first.dataset
    seeds = sorted({len(row.seeds) for row in table.rows})
    words = f"{seeds[0]} seed{'s' if seeds[-1] > 1 else ''}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    shared = data.shared_sources
    sharing = f" {len(shared)} of {data.test_sources} test cases are in training too." if shared else ""
    line = f"{data.train} training images, {words}; intervals over {table.scores[0].over}.{sharing}"
    return wrap(f"{line} {settings(table.first)}", 150)


def _section(page: Page, table: Table, top: float) -> None:
    lines = _facts(table)
    page.heading(MARGIN, top, title(table), "\n".join(lines))
    top += HEAD + LINE * len(lines)
    deep = len(table.rows) * ROW
    across = _across(table)
    inner = WIDTH - 2 * MARGIN - LABELS - NUMBERS
    places = list(columns(MARGIN + LABELS, inner if across > 2 else inner * across / 3, across, GAP))
    for number, name in enumerate(table.headlines):
        left, width = places[number % across]
        axes = page.axes(left, top + number // across * (deep + FOOT), width, deep)
        _chart(axes, table, name)
        for place, row in enumerate(table.rows if number % across == 0 else ()):
            _beside(axes, place, -72 * LABELS, _short(row.label))


def _chart(axes: Axes, table: Table, name: str) -> None:
    """A row a backbone, the reference on top."""
    scores = table.scores[0]
    plot(axes, f"{name}, px (lower is better)" if name in LOWER_IS_BETTER else f"{name}, %", "")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    for place, row in enumerate(table.rows):
        found, colour = scores.intervals[row.label][name], COLOURS[place % len(COLOURS)]
        best = scores.best.get(name) == row.label
        words = "undefined" if math.isnan(found.mean) else f"{found.mean:.1f}"
        _beside(axes, place, 7, words, at=1, weight="bold" if best else "normal")
        if math.isnan(found.mean):
            continue
        axes.plot([found.low, found.high], [place, place], color=colour, lw=2, solid_capstyle="round", zorder=2)
        values = found.values
        if len(values) > 1:
            axes.plot(values, [place + 0.27] * len(values), ".", color=colour, ms=5, alpha=0.55, mew=0, zorder=3)
        axes.plot([found.mean], [place], "o", color=colour, ms=7, mec="white", mew=1, zorder=4)
    reference = scores.intervals[table.against][name].mean
    if len(table.rows) > 1 and not math.isnan(reference):
        axes.axvline(reference, color=SOFT, lw=0.9, ls=(0, (4, 3)), zorder=1)
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    if high - low < 1e-6:  # one and the same score: matplotlib would show its rounding errors
        axes.set_xlim(low - 1, high + 1)


def _beside(axes: Axes, place: int, points: float, words: str, at: float = 0, weight: str = "normal") -> None:
    """Words in line with a backbone's dot, so many points from the left (0) or right (1) edge of the chart."""
    axes.annotate(words, (at, place), xycoords=("axes fraction", "data"), xytext=(points, 0), annotation_clip=False,
                  textcoords="offset points", va="center_baseline", fontsize=TEXT, color=INK,
                  fontweight=weight)  # fmt: skip


def _short(label: str) -> str:
    return label if len(label) <= LETTERS else f"{label[: LETTERS - 3]}..."
