"""Curves of journals: the value of each row, thin, and its running mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter
from scipy.ndimage import uniform_filter1d

from colocate.pages.style import COLOURS, INK, SMALL, plot

Rows = Sequence[dict[str, float]]
STYLES = ("-", "--", ":", "-.")


def late_mean(rows: Rows, column: str) -> float:
    """The mean of a column over the last tenth of the rows, at least one; nan where none of them has a value.

    >>> late_mean([{"cells": 9.0}] * 15 + [{"cells": math.nan}], "cells")
    nan
    >>> late_mean([{"cells": 2.0}, {"cells": 4.0}], "cells")
    4.0
    """
    values = [row.get(column, math.nan) for row in rows[-max(1, len(rows) // 10) :]]
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


class Line(NamedTuple):
    """A column of a journal, where it has values."""

    label: str
    colour: str
    """A name of COLOURS."""
    x: Float64[np.ndarray, " n"]
    y: Float64[np.ndarray, " n"]
    late: float
    """The mean over the last tenth of the journal's rows; nan where none of them has a value."""
    style: int = 0
    """Of the running mean: a place in STYLES."""
    level: float = math.nan
    """A level to compare with, such as that of chance; nan where there is none."""

    @property
    def smooth(self) -> Float64[np.ndarray, " n"]:
        """The running mean over a tenth of the values."""
        return uniform_filter1d(self.y, max(1, len(self.y) // 10), mode="nearest")


class Chart(NamedTuple):
    """Lines over one axis."""

    title: str
    xlabel: str
    lines: list[Line]
    filling: float = 0
    """How much of the x axis, from 0, is shaded: there a queue fills."""


def line(rows: Rows, column: str, label: str, colour: str, *, style: int = 0, pairs: int = 1) -> Line:
    """A column over the steps, or over `pairs` a step; with the level of its chance where the journal has that."""
    known = [row for row in rows if math.isfinite(row.get(column, math.nan))]
    x, y = (np.array([row[name] for row in known], np.float64) for name in ("step", column))
    return Line(label, colour, x * pairs, y, late_mean(rows, column), style, late_mean(rows, f"{column}_chance"))


def draw_chart(axes: Axes, chart: Chart, *, legend: bool = True) -> None:
    """Draw values, their running means and levels; the legend, if there is one here, tells the late means."""
    plot(axes, chart.title, chart.xlabel)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for one in chart.lines:
        colour = COLOURS[one.colour]
        axes.plot(one.x, one.y, color=colour, lw=0.7, alpha=0.3)
        label = f"{one.label} {one.late:.3g}" if legend else one.label
        label = f" {label}" if label.startswith("_") else label  # which matplotlib would leave out
        marker = "o" if len(one.y) == 1 else None
        axes.plot(one.x, one.smooth, color=colour, lw=1.8, ls=STYLES[one.style], label=label, marker=marker)
        if math.isfinite(one.level):
            axes.axhline(one.level, color=colour, lw=1, ls=":")
    if chart.filling:
        axes.axvspan(0, chart.filling, color=INK, alpha=0.1, lw=0, label="queue fills: more negatives")
    axes.set_xlim(0, max((one.x.max() for one in chart.lines if len(one.x)), default=1))
    axes.margins(y=0.12)
    if legend:
        axes.legend(fontsize=SMALL, frameon=False)
