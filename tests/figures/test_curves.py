"""Curves from a journal: what was measured, its running mean, and gaps where a method has no such term."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as some
from matplotlib.figure import Figure

from colocate.report.curves import _apart, _running_mean, draw_correspondence, draw_line, draw_losses, draw_spread


def rows(count: int, **fixed: float) -> list[dict[str, float]]:
    names = ("loss", "whole", "cells", "effective_rank", "feature_std", "correspondence", "correspondence_chance")
    return [{"step": 10.0 * (i + 1)} | dict.fromkeys(names, 1.0 + i) | fixed for i in range(count)]


def test_running_mean_equals_a_plain_one_and_keeps_straight_lines() -> None:
    values = np.random.default_rng(0).normal(size=23)
    plain = []
    for at in range(23):
        reach = min(at, 22 - at, 2)
        plain.append(values[at - reach : at + reach + 1].mean())
    assert _running_mean(values, 5) == pytest.approx(plain)
    line = np.arange(9.0)
    assert _running_mean(line, 5) == pytest.approx(line)


def test_each_loss_term_is_a_line_and_absent_ones_are_not() -> None:
    axes = Figure().subplots()
    draw_losses(axes, rows(30))
    assert len(axes.lines) == 6  # measured and running mean, for the total and two terms
    assert axes.lines[0].get_ydata()[-1] == 30
    axes = Figure().subplots()
    draw_losses(axes, rows(30, cells=math.nan))
    assert len(axes.lines) == 4
    assert not any("cells" in text.get_text() for text in axes.texts)


@pytest.mark.parametrize(("filling", "said"), [(0, False), (0.4, False), (12, True)])
def test_a_loss_that_rises_while_the_queue_fills_says_so(filling: float, said: bool) -> None:
    axes = Figure().subplots()
    draw_losses(axes, rows(30), filling)
    shaded = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
    assert [(round(box.x0), round(box.x1)) for box in shaded] == ([(0, 12)] if said else [])
    assert said == any("queue fills" in text.get_text() for text in axes.texts)


def test_chance_is_a_level_of_its_own() -> None:
    axes = Figure().subplots()
    draw_correspondence(axes, rows(30, correspondence_chance=0.25))
    level = axes.lines[-1].get_ydata()
    assert list(level) == [0.25, 0.25]
    assert any(text.get_text() == "chance 0.25" for text in axes.texts)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_short_runs_are_drawn(count: int) -> None:
    upper, lower = Figure().subplots(2)
    draw_spread(upper, lower, rows(count))
    assert upper.lines and lower.lines
    draw_correspondence(Figure().subplots(), rows(count, correspondence=math.nan, correspondence_chance=math.nan))


def test_a_full_running_mean_is_drawn_where_all_its_rows_are() -> None:
    axes = Figure().subplots()
    values = np.random.default_rng(0).normal(size=40)
    journal = [{"step": 5.0 * (i + 1), "loss": float(value)} for i, value in enumerate(values)]
    end = draw_line(axes, journal, "loss", "black", pairs=3, full=True)
    thin, thick = axes.lines
    assert list(thin.get_ydata()) == list(values)
    assert list(thick.get_xdata()) == [15.0 * step for step in range(3, 39)]
    assert thick.get_ydata() == pytest.approx([values[at - 2 : at + 3].mean() for at in range(2, 38)])
    assert end == pytest.approx(values[-5:].mean())


@example([1.0, 1.0, 1.0], 0.1)
@example([0.0, 0.0], 0.1)
@given(some.lists(some.floats(0, 1), max_size=8).map(sorted), some.floats(0, 0.12))
def test_names_are_moved_apart_in_order_within_the_chart_and_no_further_than_need_be(
    ends: list[float], gap: float
) -> None:
    places = _apart(np.array(ends), gap, (0.0, 1.0))
    assert (np.diff(places) >= gap - 1e-9).all()
    assert ((places >= -1e-9) & (places <= 1 + 1e-9)).all()
    assert _apart(places, gap, (0.0, 1.0)) == pytest.approx(places)
    if len(ends) == 2 and 0.1 < sum(ends) / 2 < 0.9:
        assert places.mean() == pytest.approx(np.mean(ends))  # both make way
