"""Curves of a journal: values and running mean, and nothing where a method has no such term."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from colocate.pages.curves import Chart, draw_chart, line


def rows(count: int, **fixed: float) -> list[dict[str, float]]:
    return [{"step": 10.0 * (i + 1), "loss": 1.0 + i, "cells": 2.0 + i} | fixed for i in range(count)]


def test_values_and_a_running_mean_over_a_tenth_of_the_rows() -> None:
    axes = Figure().subplots()
    values = np.random.default_rng(0).normal(size=30)
    journal = [{"step": 5.0 * (i + 1), "loss": value} for i, value in enumerate(values)]
    draw_chart(axes, Chart("", "", [line(journal, "loss", "", "blue", pairs=3)]))
    thin, thick = axes.lines
    assert list(thin.get_ydata()) == list(values)
    assert list(thick.get_xdata()) == [15.0 * step for step in range(1, 31)]
    assert thick.get_ydata()[1:-1] == pytest.approx([values[at - 1 : at + 2].mean() for at in range(1, 29)])


def test_rows_without_a_value_are_left_out_and_chance_is_a_level() -> None:
    journal = [row | {"cells_chance": 0.25} for row in rows(5)] + rows(2, cells=math.nan)
    found = line(journal, "cells", "cells", "blue")
    assert found.x.tolist() == [10, 20, 30, 40, 50] and math.isnan(found.late) and math.isnan(found.level)
    assert line(journal[:5], "cells", "cells", "blue").level == 0.25
    assert len(line(journal, "concepts", "", "blue").x) == 0


def test_the_legend_has_late_means() -> None:
    axes = Figure().subplots()
    journal = rows(28) + rows(1, loss=28.0, cells=30.0)
    lines = [line(journal, "loss", "total", "ink"), line(journal, "cells", "cells", "blue")]
    draw_chart(axes, Chart("Loss", "step", lines))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["total 28", "cells 29.5"]


@pytest.mark.parametrize("filling", [0, 12])
def test_the_filling_of_a_queue_is_shaded(filling: int) -> None:
    axes = Figure().subplots()
    draw_chart(axes, Chart("Loss", "step", [line(rows(30), "loss", "total", "ink")], filling))
    boxes = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
    assert [(round(box.x0), round(box.x1)) for box in boxes] == ([(0, filling)] if filling else [])
