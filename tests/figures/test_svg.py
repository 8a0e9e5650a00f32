"""Charts as SVG: what is drawn, pointed at and listed is what the journal says, whatever its length."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest

from colocate.pages.curves import Chart, Line, line
from colocate.pages.svg import BOTTOM, HEIGHT, LEFT, MOST_POINTS, MOST_STOPS, RIGHT, TOP, WIDTH, draw


def journal(count: int, every: int = 10) -> list[dict[str, float]]:
    values = np.random.default_rng(count).normal(size=count)
    return [{"step": every * (n + 1.0), "loss": value, "loss_chance": 0.5} for n, value in enumerate(values.tolist())]


def points(path: str) -> np.ndarray:
    return np.array([float(word) for word in re.findall(r"-?[\d.]+", path)]).reshape(-1, 2)


@pytest.mark.parametrize("count", [1, 2, 30, MOST_POINTS, MOST_POINTS + 1, 20_000])
def test_a_line_goes_through_its_values_and_keeps_the_extremes(count: int) -> None:
    rows = journal(count)
    own = line(rows, "loss", "total", "blue")
    drawn = draw(Chart("Loss", "step", [own]))
    through = points(str(drawn.lines[0]["values"]))
    assert len(through) <= max(MOST_POINTS, 2)
    assert through[:, 0].min() >= LEFT and through[:, 0].max() <= WIDTH - RIGHT + 0.05
    assert through[:, 1].min() >= TOP and through[:, 1].max() <= HEIGHT - BOTTOM
    x, y = (np.array([place for place, _ in ticks]) for ticks in (drawn.across, drawn.up))
    values = np.array([float(words) for _, words in drawn.up])
    slope, start = np.polyfit(y, values, 1)  # the scale as a reader sees it, at the ticks
    read = slope * through[:, 1] + start
    step = 0.06 * abs(slope)  # places are rounded to a tenth
    assert abs(read.max() - own.y.max()) < step and abs(read.min() - own.y.min()) < step
    if 1 < count <= MOST_POINTS:
        assert read == pytest.approx(own.y, abs=step)
    assert (np.diff(x) > 0).all()


@pytest.mark.parametrize("count", [1, 30, 20_000])
def test_the_pointer_and_the_table_tell_values_of_the_journal(count: int) -> None:
    rows = journal(count)
    by_step = {row["step"]: row["loss"] for row in rows}
    drawn = draw(Chart("Loss", "step", [line(rows, "loss", "total", "blue")]))
    assert len(drawn.stops) == min(count, MOST_STOPS) == len(drawn.table) - 1 and drawn.some == (count > MOST_STOPS)
    for stop, (step, value) in zip(drawn.stops, drawn.table[1:], strict=True):
        assert stop.words == f"step {step}: total {value}"
        assert float(value) == pytest.approx(by_step[float(step.replace(",", ""))], rel=1e-3)
    edges = [(stop.left, stop.left + stop.width) for stop in drawn.stops]
    assert edges[0][0] == LEFT and edges[-1][1] == pytest.approx(WIDTH - RIGHT)
    assert all(one[1] == pytest.approx(other[0]) for one, other in pairwise(edges))


def test_lines_of_other_lengths_share_an_axis() -> None:
    lines = [line(journal(8), "loss", "a", "blue"), line(journal(3, every=25), "loss", "b", "green")]
    drawn = draw(Chart("Loss", "pairs", lines))
    assert drawn.table[0] == ["pairs", "a", "b"]
    assert [bool(cell) for cell in drawn.table[-1]] == [True, True, False]  # b has ended
    assert drawn.lines[0]["level"] is not None and drawn.read


def test_equal_values_and_a_shaded_part_have_a_place() -> None:
    flat = Line("flat", "blue", np.array([10.0, 20.0]), np.zeros(2), 0.0)
    drawn = draw(Chart("Flat", "step", [flat], filling=500))
    assert drawn.shaded == WIDTH - RIGHT  # all of it, and no more
    assert math.isclose(points(str(drawn.lines[0]["mean"]))[0, 1], (TOP + HEIGHT - BOTTOM) / 2, abs_tol=0.1)
