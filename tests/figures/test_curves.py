"""Curves of a journal: values and running mean, and nothing where a method has no such term."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from colocate.pages.curves import draw_chart, draw_line

LINES = {"loss": ("total", "black"), "cells": ("cells", "blue")}


def rows(count: int, **fixed: float) -> list[dict[str, float]]:
    return [{"step": 10.0 * (i + 1), "loss": 1.0 + i, "cells": 2.0 + i} | fixed for i in range(count)]


def test_values_and_a_running_mean_over_a_tenth_of_the_rows() -> None:
    axes = Figure().subplots()
    values = np.random.default_rng(0).normal(size=30)
    draw_line(
        axes, [{"step": 5.0 * (i + 1), "loss": value} for i, value in enumerate(values)], "loss", "k", "", pairs=3
    )
    thin, thick = axes.lines
    assert list(thin.get_ydata()) == list(values)
    assert list(thick.get_xdata()) == [15.0 * step for step in range(1, 31)]
    assert thick.get_ydata()[1:-1] == pytest.approx([values[at - 1 : at + 2].mean() for at in range(1, 29)])


@pytest.mark.parametrize(("cells", "labels"), [(3.0, ["total 28", "cells 3"]), (math.nan, ["total 28"])])
def test_the_legend_has_late_means_of_the_columns_that_there_are(cells: float, labels: list[str]) -> None:
    axes = Figure().subplots()
    draw_chart(axes, rows(28, cells=cells) + rows(1, loss=28.0, cells=cells), "Loss", LINES)
    assert len(axes.lines) == 2 * len(labels)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == labels


@pytest.mark.parametrize(("filling", "shaded"), [(0, []), (0.4, []), (12, [(0, 12)])])
def test_the_filling_of_a_queue_is_shaded(filling: float, shaded: list[tuple[int, int]]) -> None:
    axes = Figure().subplots()
    draw_chart(axes, rows(30), "Loss", LINES, filling)
    boxes = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
    assert [(round(box.x0), round(box.x1)) for box in boxes] == shaded
