"""Charts as SVG that tells its values under the pointer, without a script; and as the table beside it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.ticker import EngFormatter, MaxNLocator

from colocate.pages.curves import Chart

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 24, 32
MOST_POINTS, MOST_STOPS = 400, 100  # of a line; where the pointer finds values
READABLE = 3  # lines whose values fit above the chart

Tick = tuple[float, str]


class Stop(NamedTuple):
    """A strip of the chart under the pointer."""

    x: float
    left: float
    width: float
    words: str
    dots: list[tuple[float, str]]
    """y and colour of each line's value."""


class Drawn(NamedTuple):
    """A chart as templates/parts.html draws it; lengths in units of the viewBox."""

    across: list[Tick]
    up: list[Tick]
    lines: list[dict[str, object]]
    shaded: float
    """Where the shaded part ends; LEFT where there is none."""
    stops: list[Stop]
    read: bool
    """Whether a stop's words fit above the chart."""
    table: list[list[str]]
    """The values at the stops, heads first."""
    some: bool
    """Whether there are more rows than stops."""


def draw(chart: Chart) -> Drawn:
    """Lay out a chart with values: round numbers at its axes, lines of some hundred points, values to point at."""
    levels = [one.level for one in chart.lines if math.isfinite(one.level)]
    values = np.concatenate([*(one.y for one in chart.lines), levels])
    most = max(float(one.x.max()) for one in chart.lines if len(one.x))
    margin = 0.08 * float(np.ptp(values)) or max(0.05 * abs(float(values[0])), 1e-6)
    low, high = float(values.min()) - margin, float(values.max()) + margin
    x = Scale(0, most, LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    lines = [
        {
            "colour": one.colour,
            "style": one.style,
            "values": _path(x(one.x[some]), y(one.y[some])),
            "mean": _path(x(one.x[some]), y(one.smooth[some])),
            "level": y(one.level) if math.isfinite(one.level) else None,
        }
        for one in chart.lines
        for some in [_thinned(one.y)]
    ]
    stops, table = _stops(chart, x, y)
    formatter = EngFormatter(sep="")
    return Drawn(
        [(x(tick), formatter(tick)) for tick in ticks(0, most)],
        [(y(tick), f"{tick:.6g}") for tick in ticks(low, high)],
        lines,
        x(min(chart.filling, most)),
        stops,
        len(chart.lines) <= READABLE,
        table,
        len(stops) < max(len(one.x) for one in chart.lines),
    )


class Scale(NamedTuple):
    """A linear scale from values to places."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: Any) -> Any:
        """The place of a number, or of an array of them."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float) -> list[float]:
    """Some round numbers between two."""
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]


def _thinned(values: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """Places of at most MOST_POINTS values that look as all do: the least and the largest of each stretch."""
    if len(values) <= MOST_POINTS:
        return np.arange(len(values))
    parts = np.array_split(np.arange(len(values)), MOST_POINTS // 2)
    return np.unique([part[pick(values[part])] for part in parts for pick in (np.argmin, np.argmax)])


def _path(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> str:
    """A line through points; of a single one a dot, which a round cap makes of it."""
    points = [f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    return f"M{'L'.join(points * 2 if len(points) == 1 else points)}" if points else ""


def _stops(chart: Chart, x: Scale, y: Scale) -> tuple[list[Stop], list[list[str]]]:
    """Where the pointer finds values, evenly spaced rows of the journals, and the table of the same values."""
    every = np.unique(np.concatenate([one.x for one in chart.lines]))
    places = every[np.unique(np.linspace(0, len(every) - 1, min(len(every), MOST_STOPS)).round().astype(int))]
    edges = np.concatenate([[x.low], (places[1:] + places[:-1]) / 2, [x.high]])
    stops, table = [], [[chart.xlabel, *(one.label for one in chart.lines)]]
    for place, left, right in zip(places, edges[:-1], edges[1:], strict=True):
        found = [_nearest(one.x, one.y, place, left, right) for one in chart.lines]
        told = [f"{one.label} {value:.4g}" for one, value in zip(chart.lines, found, strict=True) if value is not None]
        start, end = float(x(left)), float(x(right))
        dots = [
            (float(y(value)), one.colour) for one, value in zip(chart.lines, found, strict=True) if value is not None
        ]
        stops.append(Stop(float(x(place)), start, end - start, f"{chart.xlabel} {place:,.0f}: {', '.join(told)}", dots))
        table.append([f"{place:,.0f}", *("" if value is None else f"{value:.4g}" for value in found)])
    return stops, table


def _nearest(
    x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"], place: float, left: float, right: float
) -> float | None:
    """The value of the row next to a place, unless that is beyond its strip."""
    nearest = int(np.abs(x - place).argmin())
    return float(y[nearest]) if left <= x[nearest] <= right else None
