"""How a run went: its journal as three small charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from .style import BLUE, GREEN, INK, ORANGE, SMALL, SOFT, plot

Rows = Sequence[dict[str, float]]


def draw_losses(axes: Axes, rows: Rows) -> None:
    """The loss and its weighted terms."""
    plot(axes, "Loss", "step")
    terms = (("loss", "total", INK), ("whole", "views", BLUE), ("cells", "cells", ORANGE))
    ends = [(_line(axes, rows, name, colour), label, colour) for name, label, colour in terms]
    _fit(axes, rows)
    _name(axes, [(end, f"{label} {end:.2f}", colour) for end, label, colour in ends if math.isfinite(end)])


def draw_correspondence(axes: Axes, rows: Rows) -> None:
    """How often the most similar cell of the other view truly shares tissue, against picking one blindly."""
    plot(axes, "Correspondence accuracy", "step")
    end = _line(axes, rows, "correspondence", GREEN)
    chance = _values(rows, "correspondence_chance")
    if np.isfinite(chance).any():
        level = float(np.nanmean(chance))
        axes.axhline(level, color=SOFT, lw=1.1, ls=(0, (4, 3)))
        axes.annotate(f"chance {level:.2f}", (0, level), xycoords=("axes fraction", "data"), xytext=(4, -3),
                      textcoords="offset points", va="top", fontsize=SMALL, color=SOFT)  # fmt: skip
    _fit(axes, rows)
    axes.set_ylim(0, None)
    _name(axes, [(end, f"{end:.2f}", GREEN)])


def draw_spread(upper: Axes, lower: Axes, rows: Rows) -> None:
    """Have the features collapsed? Effective rank above, standard deviation (1: spread out) below."""
    for axes, name, title, colour in (
        (upper, "effective_rank", "Effective rank of whole views", BLUE),
        (lower, "feature_std", "Feature standard deviation", ORANGE),
    ):
        plot(axes, title, "step" if axes is lower else "")
        end = _line(axes, rows, name, colour)
        _fit(axes, rows)
        axes.set_ylim(0, None)
        _name(axes, [(end, f"{end:.3g}", colour)])
    upper.tick_params(labelbottom=False)


def _values(rows: Rows, name: str) -> Float[np.ndarray, "n"]:
    return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)


def _line(axes: Axes, rows: Rows, name: str, colour: str) -> float:
    """What was measured, thin, and its running mean over about a tenth of the run; returns where that ends."""
    steps, values = _values(rows, "step"), _values(rows, name)
    known = np.isfinite(values)
    if not known.any():
        return math.nan
    steps, values = steps[known], values[known]
    smooth = _running_mean(values, max(1, len(values) // 10))
    axes.plot(steps, values, color=colour, lw=0.7, alpha=0.35)
    axes.plot(steps, smooth, color=colour, lw=1.8, marker="o" if len(values) == 1 else None)
    return float(smooth[-1])


def _name(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names beside the lines' right ends, moved apart where they would touch."""
    low, high = axes.get_ylim()
    apart = (high - low) * 0.12
    last = -math.inf
    for end, words, colour in sorted(ends):
        if math.isfinite(end):
            last = max(end, last + apart)
            axes.annotate(words, (1, last), xycoords=("axes fraction", "data"), xytext=(4, 0), annotation_clip=False,
                          textcoords="offset points", va="center", fontsize=SMALL, color=colour)  # fmt: skip


def _running_mean(values: Float[np.ndarray, "n"], width: int) -> Float[np.ndarray, "n"]:
    """The mean of up to `width` values on either side; fewer, but as many on each side, at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(np.minimum(at, len(values) - 1 - at), width // 2)
    return (total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)


def _fit(axes: Axes, rows: Rows) -> None:
    last = rows[-1]["step"]
    axes.set_xlim(0, last)
    axes.margins(y=0.12)
