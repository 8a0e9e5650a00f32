"""Curves of journals: the value of each row, thin, and its running mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.ndimage import uniform_filter1d

from colocate.pages.style import INK, SMALL, plot

Rows = Sequence[dict[str, float]]


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


def draw_line(
    axes: Axes, rows: Rows, column: str, colour: str, label: str, *, style: str = "-", pairs: int = 1
) -> None:
    """Draw a column over the steps, and its running mean over a tenth of the rows.

    label: the legend's; style: of the running mean's line; pairs: units of the x axis a step.
    """
    known = [row for row in rows if math.isfinite(row.get(column, math.nan))]
    steps = [row["step"] * pairs for row in known]
    values = np.array([row[column] for row in known], np.float64)
    axes.plot(steps, values, color=colour, lw=0.7, alpha=0.3)
    smooth = uniform_filter1d(values, max(1, len(values) // 10), mode="nearest")
    axes.plot(steps, smooth, color=colour, lw=1.8, ls=style, label=label, marker="o" if len(values) == 1 else None)


def draw_chart(axes: Axes, rows: Rows, title: str, lines: dict[str, tuple[str, str]], filling: float = 0) -> None:
    """Draw some columns of one run with their late means in the legend; columns without values are left out.

    lines: label and colour by column; filling: steps in which a queue fills, which are shaded.
    """
    plot(axes, title, "step")
    for column, (label, colour) in lines.items():
        end = late_mean(rows, column)
        if math.isfinite(end):
            draw_line(axes, rows, column, colour, f"{label} {end:.3g}")
    if filling > 0.02 * rows[-1]["step"]:
        axes.axvspan(0, filling, color=INK, alpha=0.1, lw=0, label="queue fills: more negatives")
    axes.set_xlim(0, rows[-1]["step"])
    axes.margins(y=0.12)
    axes.legend(fontsize=SMALL, frameon=False)
