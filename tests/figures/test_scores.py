"""The picture of scores: dots where the means are, and intervals as long as they are."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from colocate.evaluation.table import collect
from colocate.pages.scores import draw, scores
from tests.evaluate.made import write_result


def test_dots_and_lines_are_means_and_intervals(tmp_path: Path) -> None:
    for label, skill in (("random", 0.4), ("moco-v2", 0.55), ("a-long-name-of-a-backbone-indeed", 0.6)):
        write_result(tmp_path, "instances", label, 0, skill, images=12)
        for seed in range(3):
            write_result(tmp_path, "probe", label, seed, skill, fraction=0.25, settings={"stride": 8})
    tables = collect([tmp_path], draws=40)
    drawn = [axes for axes in draw(tables).get_axes() if axes.get_title("left")]
    names = [(table, name) for table in tables for name in table.headlines]
    for axes, (table, name) in zip(drawn, names, strict=True):
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
        assert [text.get_text() for text in axes.texts] == [f"{its.mean:.1f}" for its in found]
        bold = [row.label for row, text in zip(table.rows, axes.texts, strict=True) if text.get_weight() == "bold"]
        assert bold == ([table.scores[0].best[name]] if name in table.scores[0].best else [])
    scores(tables, tmp_path / "new" / "table.png")
    assert (tmp_path / "new" / "table.png").stat().st_size < 300_000
    with Image.open(tmp_path / "new" / "table.png") as picture:
        assert picture.width > 900


def test_a_score_that_is_undefined_is_a_word(tmp_path: Path) -> None:
    for label in ("plm", "random"):
        made = write_result(tmp_path, label=label)
        for entry in made["records"]:
            entry["probe"] = {"dice": 1.0, "shared": 0, "positives": 0}
        write_result(tmp_path, label=label, records=made["records"])
    pooled = draw(collect([tmp_path])).get_axes()[1]
    assert [text.get_text() for text in pooled.texts] == ["undefined", "undefined"]
