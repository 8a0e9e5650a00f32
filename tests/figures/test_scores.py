"""The picture of scores: dots where the means are, and intervals as long as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markupsafe import escape
from PIL import Image

from colocate.evaluation.table import collect, facts, numbers
from colocate.pages.html import strong
from colocate.pages.scores import dots, draw, images, write_scores
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
        large = [line for line in axes.lines if line.get_marker() == "o"]
        assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in large] == [
            (its.mean, place) for place, its in enumerate(found)
        ]
        lines = [line for line in axes.lines if line.get_linewidth() == 2]
        assert [list(line.get_xdata()) for line in lines] == [[its.low, its.high] for its in found]
        seeds = [line for line in axes.lines if line.get_marker() == "."]
        assert len(seeds) == (3 if table.first.task == "probe" else 0)
        assert [text.get_text() for text in axes.texts] == [f"{its.mean:.1f}" for its in found]
        bold = [row.label for row, text in zip(table.rows, axes.texts, strict=True) if text.get_weight() == "bold"]
        assert bold == ([table.scores[0].best[name]] if name in table.scores[0].best else [])
        own = dots(table, name)
        assert [row.label for row in own.rows] == [row.label for row in table.rows]
        assert [row.label for row in own.rows if row.best] == bold
        for row, its in zip(own.rows, found, strict=True):
            assert (row.low, row.mean, row.high) == (its.low, its.mean, its.high)
            assert row.seeds == (list(its.values) if len(its.values) > 1 else [])
    write_scores(tables, tmp_path / "new")
    page = (tmp_path / "new" / "index.html").read_text()
    assert all(f'cx="{own.x(row.mean):.1f}"' in page for row in own.rows)
    assert (tmp_path / "new" / "table.png").stat().st_size < 300_000
    with Image.open(tmp_path / "new" / "table.png") as picture:
        assert picture.width > 900


def test_long_names_that_begin_alike_look_different(tmp_path: Path) -> None:
    labels = [f"colocate-continue-of-imagenet-seed{seed}" for seed in range(3)]
    for label in labels:
        write_result(tmp_path, label=label)
    (table,) = collect([tmp_path], draws=9)
    write_scores([table], tmp_path / "page")
    names = re.findall(r'<text class="name" x="0"[^>]*>([^<]*)<', (tmp_path / "page" / "index.html").read_text())
    assert len({*names}) == 3 and max(map(len, names)) <= 25
    drawn = [text.get_text() for text in draw([table]).get_axes()[0].get_yticklabels()]
    assert len({*drawn}) == 3 and max(map(len, drawn)) <= 25


def test_a_score_that_is_undefined_is_a_word(tmp_path: Path) -> None:
    for label in ("cost$^$", "random"):  # which matplotlib would read as mathematics
        made = write_result(tmp_path, label=label)
        for entry in made["records"]:
            entry["probe"] = {"dice": 1.0, "shared": 0, "positives": 0}
        write_result(tmp_path, label=label, records=made["records"])
    tables = collect([tmp_path], draws=9)
    assert [row.value for row in dots(tables[0], "pooled Dice").rows] == ["undefined", "undefined"]
    write_scores(tables, tmp_path / "page")
    assert "nan" not in (tmp_path / "page" / "index.html").read_text()
    pooled = draw(tables).get_axes()[1]
    assert [text.get_text() for text in pooled.texts] == ["undefined", "undefined"]


def test_the_page_has_the_numbers_the_facts_and_the_worst_and_best_images(tmp_path: Path) -> None:
    for label, skill in (("random", 0.4), ("<script>alert(1)</script>", 0.6)):
        made = write_result(tmp_path / label.strip("<>/"), label=label, skill=skill)
    tables = collect([tmp_path], draws=9)
    write_scores(tables, tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 3
    assert "://" not in page and "<strong>Bold</strong>" in page
    for table in tables:
        for text in (cell for its in numbers(table) for row in its.rows for cell in row):
            assert str(strong(text)) in page
        assert all(str(escape(fact)) in page for fact in facts(table))
    judged = {
        row[0]: float(row[2 + [row.label for row in tables[0].rows].index(label)]) for row in images(tables[0])[1:]
    }
    dice = {entry["image"]: 100 * entry["probe"]["dice"] for entry in made["records"]}
    assert judged == pytest.approx({name: dice[name] for name in judged}, abs=0.051) and len(judged) == 10
