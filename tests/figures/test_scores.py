"""The picture of scores: dots where the means are, intervals as long as they are, and words that stay apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from colocate.evaluate.table import Table, collect
from colocate.report.scores import draw, scores
from tests.evaluate.made import write_result


@pytest.fixture
def tables(tmp_path: Path) -> list[Table]:
    """Of instances (six charts), of a probe with a quarter of the labels (two), and of semantics (four)."""
    for label, skill in (("random", 0.4), ("moco-v2", 0.55), ("a-long-name-of-a-backbone-indeed", 0.6)):
        write_result(tmp_path, "instances", label, 0, skill, images=12)
        write_result(tmp_path, "semantics", label, 0, skill)
        for seed in range(3):
            write_result(tmp_path, "probe", label, seed, skill, fraction=0.25, settings={"stride": 8})
    return collect([tmp_path], draws=40)


def charts(page: Any) -> list[Axes]:
    return page.figure.axes


def test_dots_and_lines_are_means_and_intervals(tables: Sequence[Table]) -> None:
    drawn = iter(charts(draw(tables)))
    for table in tables:
        for name in table.headlines:
            axes = next(drawn)
            assert axes.get_title("left").startswith(f"{name}, ")
            found = [table.scores[0].intervals[row.label][name] for row in table.rows]
            dots = [line for line in axes.lines if line.get_marker() == "o"]
            assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots] == [
                (its.mean, place) for place, its in enumerate(found)
            ]
            lines = [line for line in axes.lines if line.get_linewidth() == 2]
            assert [list(line.get_xdata()) for line in lines] == [[its.low, its.high] for its in found]
            seeds = [line for line in axes.lines if line.get_marker() == "."]
            assert len(seeds) == (3 if table.first.task == "probe" else 0)
            assert all(len(line.get_xdata()) == 3 for line in seeds)
            low, high = axes.get_xlim()
            assert low < min(its.low for its in found) and max(its.high for its in found) < high
            words = [text for text in axes.texts if text.xyann[0] > 0]
            assert [text.get_text() for text in words] == [f"{its.mean:.1f}" for its in found]
            bold = [row.label for row, text in zip(table.rows, words, strict=True) if text.get_fontweight() == "bold"]
            assert bold == ([table.scores[0].best[name]] if name in table.scores[0].best else [])
    assert next(drawn, None) is None


def test_a_score_that_is_undefined_has_no_dot(tmp_path: Path) -> None:
    for label in ("plm", "random"):
        made = write_result(tmp_path, label=label)
        for entry in made["records"]:
            entry["probe"] = {"dice": 1.0, "shared": 0, "positives": 0}
        write_result(tmp_path, label=label, records=made["records"])
    _, pooled = charts(draw(collect([tmp_path])))
    assert not pooled.lines
    assert [text.get_text() for text in pooled.texts] == ["undefined", "undefined"]


def test_scores_that_differ_by_rounding_have_a_plain_axis(tmp_path: Path) -> None:
    for label, dice in (("plm", 1e-19), ("random", 0.0)):
        made = write_result(tmp_path, label=label)
        for entry in made["records"]:
            entry["probe"] = {"dice": dice, "shared": 0, "positives": 10}
        write_result(tmp_path, label=label, records=made["records"])
    page = draw(collect([tmp_path]))
    FigureCanvasAgg(page.figure).draw()
    axes, _ = charts(page)
    assert axes.get_xlim() == pytest.approx((-1, 1))
    assert axes.xaxis.get_offset_text().get_text() == ""


def test_one_backbone_alone_has_no_reference(tmp_path: Path) -> None:
    write_result(tmp_path)
    assert all(line.get_linestyle() == "-" or line.get_marker() == "o" for axes in charts(draw(collect([tmp_path])))
               for line in axes.lines)  # fmt: skip


def test_no_words_touch_and_none_leave_the_page(tables: Sequence[Table], tmp_path: Path) -> None:
    page = draw(tables)
    FigureCanvasAgg(page.figure).draw()
    figure = page.figure
    words = [text for axes in figure.axes for text in axes.texts] + figure.texts
    boxes = [(text.get_text(), text.get_window_extent()) for text in words]
    boxes += [(axes.get_title("left"), axes._left_title.get_window_extent()) for axes in figure.axes]  # type: ignore[attr-defined]
    assert {"a-long-name-of-a-ba...", "glas: probe, split official, 25 % of the labels"} <= {name for name, _ in boxes}
    for name, box in boxes:
        assert box.x0 > 0 and box.x1 < figure.bbox.width and box.y0 > 0 and box.y1 < figure.bbox.height, name
    touching = [
        (name, other)
        for number, (name, box) in enumerate(boxes)
        for other, its in boxes[:number]
        if min(box.x1, its.x1) - max(box.x0, its.x0) > 1 and min(box.y1, its.y1) - max(box.y0, its.y0) > 1
    ]
    assert touching == []
    assert any("stride 8 (default 16)" in name and "2 of 6 test cases" in name for name, _ in boxes)
    scores(tables, tmp_path / "new" / "table.png")
    assert (tmp_path / "new" / "table.png").stat().st_size < 300_000
    with Image.open(tmp_path / "new" / "table.png") as picture:
        assert picture.width > 900
