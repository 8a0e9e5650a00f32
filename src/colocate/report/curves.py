"""Curves from journals: what was measured and its running mean; of one run, as three small charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from colocate.report.style import BLUE, GREEN, INK, ORANGE, SMALL, SOFT, halo, plot

Rows = Sequence[dict[str, float]]
Dashes = str | tuple[int, tuple[float, ...]]  # as matplotlib says it
CHANCE: Dashes = (0, (4, 3))
LABEL_INCHES = 0.165  # from one name beside the lines to the next


def draw_losses(axes: Axes, rows: Rows, filling: float = 0) -> None:
    """The loss and its weighted terms; shaded are the steps in which the queue fills and the loss rises for that."""
    plot(axes, "Loss", "step")
    terms = (("loss", "total", INK), ("whole", "views", BLUE), ("cells", "cells", ORANGE))
    terms += (("concepts", "concepts", GREEN),)
    ends = [(draw_line(axes, rows, name, colour), label, colour) for name, label, colour in terms]
    fit(axes, rows[-1]["step"])
    if filling > 0.02 * rows[-1]["step"]:
        axes.axvspan(0, filling, color=SOFT, alpha=0.15, lw=0)
        words = "queue fills: more negatives,\nso a larger loss"
        axes.annotate(words, (0, 0), xycoords="axes fraction", xytext=(4, 4), textcoords="offset points",
                      fontsize=SMALL, color=SOFT, path_effects=halo(2.5, "white"))  # fmt: skip
    name_ends(axes, [(end, f"{label} {end:.2f}", colour) for end, label, colour in ends])


def draw_correspondence(axes: Axes, rows: Rows) -> None:
    """How often the most similar cell of the other view truly shares tissue, against picking one blindly."""
    plot(axes, "Correspondence accuracy", "step")
    end = draw_line(axes, rows, "correspondence", GREEN)
    level = mean(rows, "correspondence_chance")
    if math.isfinite(level):
        axes.axhline(level, color=SOFT, lw=1.1, ls=CHANCE)
        name_level(axes, level, f"chance {level:.2f}")
    fit(axes, rows[-1]["step"])
    axes.set_ylim(0, None)
    name_ends(axes, [(end, f"{end:.2f}", GREEN)])


def draw_spread(upper: Axes, lower: Axes, rows: Rows) -> None:
    """Have the features collapsed? Effective rank above, standard deviation (1: spread out) below."""
    for axes, name, title, colour in (
        (upper, "effective_rank", "Effective rank of whole views", BLUE),
        (lower, "feature_std", "Feature standard deviation", ORANGE),
    ):
        plot(axes, title, "step" if axes is lower else "")
        end = draw_line(axes, rows, name, colour)
        fit(axes, rows[-1]["step"])
        axes.set_ylim(0, None)
        name_ends(axes, [(end, f"{end:.3g}", colour)])
    upper.tick_params(labelbottom=False)


def tenth(count: int) -> int:
    """How many of `count` rows are a tenth: at least one."""
    return max(1, count // 10)


def mean(rows: Rows, name: str) -> float:
    """The mean of a column's known values; nan where there are none.

    >>> mean([{"cells": math.nan}, {"cells": 2.0}, {"cells": 4.0}], "cells")
    3.0
    """
    known = _values(rows, name)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else math.nan


def draw_line(
    axes: Axes,
    rows: Rows,
    name: str,
    colour: str,
    *,
    dashes: Dashes = "-",
    faint: float = 0.35,
    pairs: int = 1,
    full: bool = False,
) -> float:
    """What was measured, thin, and its running mean over about a tenth of the run; returns where that ends.

    dashes: the running mean's style; faint: how opaque the thin line is; pairs: units of the x axis a step; full: draw
    the running mean only where it is one of a whole tenth, so that its end says no less than its middle.
    """
    steps, values = _values(rows, "step") * pairs, _values(rows, name)
    known = np.isfinite(values)
    if not known.any():
        return math.nan
    steps, values = steps[known], values[known]
    axes.plot(steps, values, color=colour, lw=0.7, alpha=faint, zorder=2)
    smooth = _running_mean(values, tenth(len(values)))
    if full and (reach := tenth(len(values)) // 2):
        steps, smooth = steps[reach:-reach], smooth[reach:-reach]
    axes.plot(steps, smooth, color=colour, lw=1.8, ls=dashes, marker="o" if len(values) == 1 else None, zorder=3)
    return float(smooth[-1])


def name_level(axes: Axes, level: float, words: str) -> None:
    """Small words at the left below a horizontal line."""
    axes.annotate(words, (0, level), xycoords=("axes fraction", "data"), xytext=(4, -3), textcoords="offset points",
                  va="top", fontsize=SMALL, color=SOFT, path_effects=halo(2.5, "white"))  # fmt: skip


def name_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names beside the lines' right ends, moved apart where they would touch; none where an end is nan."""
    ends = sorted(end for end in ends if math.isfinite(end[0]))
    low, high = axes.get_ylim()
    inches = axes.get_window_extent().height / axes.figure.dpi
    gap = (high - low) * LABEL_INCHES / inches
    places = _apart(np.array([end for end, _, _ in ends]), gap, (low, high))
    for place, (_, words, colour) in zip(places, ends, strict=True):
        axes.annotate(words, (1, place), xycoords=("axes fraction", "data"), xytext=(4, 0), annotation_clip=False,
                      textcoords="offset points", va="center", fontsize=SMALL, color=colour)  # fmt: skip


def fit(axes: Axes, last: float) -> None:
    """From the start of training to its end, with room above and below the lines."""
    axes.set_xlim(0, last)
    axes.margins(y=0.12)


def _apart(places: Float[np.ndarray, "n"], gap: float, limits: tuple[float, float]) -> Float[np.ndarray, "n"]:
    """Ascending places moved, as little as may be, until they are `gap` apart and (if they can be) within limits."""
    order = gap * np.arange(len(places))
    blocks: list[tuple[float, int]] = []  # places that touch stand around their mean
    for place in places - order:
        middle, count = float(place), 1
        while blocks and blocks[-1][0] >= middle:
            before, more = blocks.pop()
            middle, count = (middle * count + before * more) / (count + more), count + more
        blocks.append((middle, count))
    moved = np.array([middle for middle, count in blocks for _ in range(count)])
    return np.clip(moved, limits[0], limits[1] - order[-1:].sum()) + order


def _values(rows: Rows, name: str) -> Float[np.ndarray, "n"]:
    return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)


def _running_mean(values: Float[np.ndarray, "n"], width: int) -> Float[np.ndarray, "n"]:
    """The mean of up to `width` values on either side; fewer, but as many on each side, at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(np.minimum(at, len(values) - 1 - at), width // 2)
    return (total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)
