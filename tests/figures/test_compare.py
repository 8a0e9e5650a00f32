"""Runs compared: numbers as the journals have them, settings that differ, curves that end where runs do."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from colocate.base.errors import UserError
from colocate.base.text import grid
from colocate.data.index import Index
from colocate.methods.settings import MoCoConfig, VICRegLConfig
from colocate.pages.compare import (
    CHARTS,
    COLUMNS,
    WORDS,
    charts_of,
    compare,
    different_settings,
    draw,
    read_runs,
    rows_of,
)
from colocate.training.loop import pretrain
from colocate.training.recipe import read_recipe, to_json
from tests.tiny import tiny_recipe, write_tiles


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """PLM for 20 steps, MoCo-v2 for 9, on the same tiles."""
    folder = tmp_path_factory.mktemp("runs")
    tiles = write_tiles(folder / "tiles")
    plm = tiny_recipe(tiles, folder / "plm", name="plm", steps=20)
    assert isinstance(plm.method, MoCoConfig)
    moco = replace(plm.method, match=None, dense=0.0)
    pretrain(plm)
    pretrain(replace(plm, name="moco-v2", method=moco, steps=9, out=str(folder / "moco")))
    return folder / "plm", folder / "moco"


def variant(run: Path, folder: Path, keep: int | None = None, **changes: Any) -> Path:
    """What is compared of a run, with some fields of its recipe changed, and so many rows."""
    folder.mkdir(parents=True)
    shutil.copy(run / "tiles.arrow", folder)
    (folder / "recipe.json").write_text(to_json(replace(read_recipe(run / "recipe.json"), **changes)))
    header, *rows = (run / "journal.csv").read_text().splitlines()
    (folder / "journal.csv").write_text("\n".join([header, *rows[:keep]]) + "\n")
    return folder


def cells(text: str) -> dict[str, dict[str, str]]:
    """The rows of the first Markdown table by their first cell."""
    lines = text.split("\n\n")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_the_table_says_what_the_journals_say(runs: tuple[Path, Path]) -> None:
    found = cells(grid(rows_of(read_runs(runs)), 2))
    assert list(found) == ["plm", "moco"]
    for run, late, recipe in zip(runs, (2, 1), ("plm", "moco-v2"), strict=True):
        with (run / "journal.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert (found[run.name]["recipe"], found[run.name]["steps"]) == (recipe, rows[-1]["step"])
        for column in ("loss", "whole", "cells", *COLUMNS):
            values = [float(row[column]) for row in rows[-late:] if row.get(column)]
            told = found[run.name][column.replace("_", " ")]
            if values:
                scale = 100 if told.endswith("%") else 1
                mean = scale * math.fsum(values) / len(values)
                assert float(told.rstrip("%")) == pytest.approx(mean, abs=0.051, rel=0.01)
            else:
                assert told == ""
    assert float(found["plm"]["cells"]) > 0 and found["moco"]["cells"] == ""


def test_curves_are_over_pairs_and_end_where_their_runs_do(runs: tuple[Path, Path], tmp_path: Path) -> None:
    larger = variant(runs[0], tmp_path / "larger", batch=16, accumulate=2)
    figure = draw(charts_of(read_runs([runs[1], larger])))
    for axes, column in zip(figure.axes, CHARTS, strict=True):
        curves = [line for line in axes.lines if line.get_linewidth() > 1.5]
        assert [line.get_xdata()[-1] for line in curves] == [9 * 8, 20 * 32]
        levels = [line for line in axes.lines if line.get_linewidth() == 1]
        assert len(levels) == (2 if column == "correspondence" else 0)  # of chance


def test_twenty_runs_look_different_whatever_their_names_begin_with(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Matplotlib leaves out what begins with an underscore, as a long name does once it is cut."""
    names = ["_old", "sweep" + "_lr0.1_batch256".ljust(40, "x"), "a $b$ 5%", *map(str, range(17))]
    legend = draw(charts_of(read_runs([variant(runs[1], tmp_path / name) for name in names]))).legends[0]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in legend.get_lines()}) == 20
    found = [text.get_text().strip() for text in legend.get_texts()]
    assert found == [name[-40:] for name in names] and found[1].startswith("_")


def test_the_legend_has_runs_without_correspondence_too(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """A method need not encode the second views."""
    own = variant(runs[0], tmp_path / "own")
    header, *rows = (line.split(",") for line in (own / "journal.csv").read_text().splitlines())
    kept = [place for place, name in enumerate(header) if "correspondence" not in name]
    lines = [",".join(row[place] for place in kept) for row in (header, *rows)]
    (own / "journal.csv").write_text("\n".join(lines) + "\n")
    figure = draw(charts_of(read_runs([*runs, own])))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plm", "moco", "own"]


def test_settings_that_differ_are_listed(runs: tuple[Path, Path], tmp_path: Path) -> None:
    same = [runs[0], variant(runs[0], tmp_path / "same")]
    assert different_settings(read_runs(same)) == {} and "settings are the same" in compare(same, tmp_path / "a.html")
    method = read_recipe(runs[0] / "recipe.json").method
    assert isinstance(method, MoCoConfig)
    milder = variant(runs[0], tmp_path / "milder", method=replace(method, dense=0.25), seed=3)
    found = different_settings(read_runs([runs[0], milder, runs[0].parent / "moco"]))
    assert found["method.dense"] == [str(method.dense), "0.25", "0.0"]
    assert found["seed"] == ["0", "3", "0"] and found["steps"] == ["20", "20", "9"]
    assert "\n| seed" in compare([runs[0], milder, runs[0].parent / "moco"], tmp_path / "page.html")
    other = variant(runs[0], tmp_path / "other", method=VICRegLConfig(), batch=4)
    assert different_settings(read_runs([runs[0], other])) == {"method.kind": ["moco", "vicregl"], "batch": ["8", "4"]}
    assert "| method.kind | moco | vicregl |" in compare([runs[0], other], tmp_path / "page.html")


def test_other_tiles_are_told_even_under_the_same_name(runs: tuple[Path, Path], tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles")
    (tiles / "00.png").rename(tiles / "renamed.png")
    renamed = variant(runs[0], tmp_path / "renamed", data=str(tiles))
    Index.build(tiles, renamed / "tiles.arrow")
    tiles_of = different_settings(read_runs([runs[0], renamed]))["tiles"]
    assert len(set(tiles_of)) == 2 and all(told.startswith("20 tiles, fingerprint") for told in tiles_of)


def test_a_run_fetched_without_its_tiles_is_compared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for run in runs:
        (tmp_path / run.name).mkdir()
        for name in ("recipe.json", "journal.csv"):
            shutil.copy(run / name, tmp_path / run.name)
    told = compare([tmp_path / "plm", tmp_path / "moco"], tmp_path / "new" / "a.html", tmp_path / "new" / "a.png")
    assert cells(told) == cells(grid(rows_of(read_runs(runs)), 2))
    page = (tmp_path / "new" / "a.html").read_text()
    assert page.count('<svg class="chart"') == len(CHARTS) and "All settings are the same" not in page
    for name, words in WORDS.items():
        assert f"<dt>{name}</dt><dd>{words}</dd>" in page and f"\n- {name}: {words}" in told
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.width > 900


def test_runs_of_one_name_are_told_by_their_paths(runs: tuple[Path, Path], tmp_path: Path) -> None:
    folders = [variant(runs[0], tmp_path / parent / "run", name="") for parent in ("a", "b|c")]
    text = grid(rows_of(read_runs(folders)), 2)
    assert list(cells(text)) == [str(folder).replace("|", "\\|") for folder in folders]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_what_cannot_be_compared_is_said_in_a_sentence(runs: tuple[Path, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(runs[0])
    fresh = variant(runs[0], tmp_path / "fresh", keep=0)
    for folders, says in (
        ([runs[0]], "give two runs or more"),
        ([runs[0], link], "is given twice"),
        ([runs[0], tmp_path / "nowhere"], "nowhere is not the folder of a run"),
        ([runs[0], fresh], "fresh has logged nothing yet"),
    ):
        with pytest.raises(UserError, match=says):
            compare(folders, tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()
