"""Runs laid over each other: numbers as the journals have them, differences said, curves that end where runs do."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from colocate.base.errors import UserError
from colocate.core.views import ViewConfig
from colocate.methods.moco import MoCoConfig
from colocate.methods.vicregl import VICRegLConfig
from colocate.pretrain.loop import pretrain
from colocate.pretrain.recipe import EncoderConfig, read_recipe, to_json
from colocate.report.compare import CHARTS, compare, draw, markdown, read_runs, same_and_different, table
from tests.tiny import tiny_recipe, write_tiles


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """PLM for 24 steps, MoCo-v2 for 13, on the same tiles."""
    folder = tmp_path_factory.mktemp("runs")
    tiles = write_tiles(folder / "tiles")
    plm = tiny_recipe(tiles, folder / "plm", name="plm", steps=24)
    assert isinstance(plm.method, MoCoConfig)
    moco = replace(plm.method, match=None, dense=0.0)
    pretrain(plm)
    pretrain(replace(plm, name="moco-v2", method=moco, steps=13, out=str(folder / "moco")))
    return folder / "plm", folder / "moco"


def variant(run: Path, folder: Path, keep: int | None = None, columns: dict[str, str] | None = None, **changes: Any):
    """A copy of a run, some fields of its recipe changed, with so many rows, some columns set to one value."""
    shutil.copytree(run, folder)
    (folder / "recipe.json").write_text(to_json(replace(read_recipe(run / "recipe.json"), **changes)))
    header, *rows = csv_rows(run)
    rows = [[(columns or {}).get(name, value) for name, value in zip(header, row, strict=True)] for row in rows[:keep]]
    (folder / "journal.csv").write_text("".join(",".join(row) + "\n" for row in [header, *rows]))
    return folder


def csv_rows(run: Path) -> list[list[str]]:
    with (run / "journal.csv").open(newline="") as file:
        return list(csv.reader(file))


def cells(text: str) -> dict[str, dict[str, str]]:
    """The rows of a Markdown table by their first cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def curves(page: Any) -> dict[str, Any]:
    """The four charts' axes (the first axes are the key's)."""
    return dict(zip([column for column, _, _ in CHARTS], page.figure.axes[1:], strict=True))


def test_the_table_says_what_the_journals_say(runs: tuple[Path, Path]) -> None:
    found = cells(table(read_runs(runs)))
    assert list(found) == ["plm", "moco"]
    for run, rows, recipe in zip(runs, (2, 1), ("plm", "moco-v2"), strict=True):
        header, *lines = csv_rows(run)
        late = {name: [line[place] for line in lines[-rows:]] for place, name in enumerate(header)}
        its = found[run.name]
        assert (its["recipe"], its["steps"]) == (recipe, lines[-1][0])

        def close(told: str, name: str, digits: float, late: dict[str, list[str]] = late, rows: int = rows) -> None:
            values = [float(value) for value in late[name] if value]
            assert float(told) == pytest.approx(math.fsum(values) / rows, abs=0.51 * 10**-digits)

        accuracy, chance = its["correspondence"].rstrip(")").split(" (")
        close(accuracy, "correspondence", 3)
        close(chance, "correspondence_chance", 3)
        close(its["loss"], "loss", 2)
        close(its["whole"], "whole", 2)
        close(its["effective rank"], "effective_rank", 1)
        close(its["feature std"], "feature_std", 3)
        close(its["within tile"], "within_tile", 3)
        close(its["pairs/s"], "pairs_per_s", 1)
        close(str(float(its["waiting"].rstrip("%")) / 100), "waiting", 3)
    assert float(found["plm"]["cells"]) > 0
    assert (found["moco"]["cells"], found["moco"]["concepts"], found["plm"]["concepts"]) == ("", "", "")


def test_rows_without_a_value_do_not_count(runs: tuple[Path, Path], tmp_path: Path) -> None:
    part = variant(runs[0], tmp_path / "part")
    lines = (part / "journal.csv").read_text().splitlines()
    at = lines[0].split(",").index("concepts")
    for number, value in ((-3, "100"), (-2, "2.5")):  # before the last tenth, and the first of its two rows
        row = lines[number].split(",")
        row[at] = value
        lines[number] = ",".join(row)
    (part / "journal.csv").write_text("\n".join(lines) + "\n")
    assert cells(table(read_runs([runs[0], part])))["part"]["concepts"] == "2.50"


def test_columns_that_no_journal_has_are_left_out_of_the_picture(runs: tuple[Path, Path], tmp_path: Path) -> None:
    old = {"within_tile": "", "correspondence": "", "correspondence_chance": ""}
    folders = [variant(run, tmp_path / run.name, columns=old) for run in runs]
    found = cells(compare(folders, tmp_path / "old.png"))
    assert found["plm"]["within tile"] == found["plm"]["correspondence"] == ""
    charts = curves(draw(read_runs(folders)))
    assert [text.get_text() for text in charts["within_tile"].texts] == ["not in these journals"]
    charts = curves(draw(read_runs([runs[0], folders[1]])))
    assert len(charts["within_tile"].lines) == 2  # measured and its running mean, of one run
    assert len(charts["correspondence"].lines) == 3  # and chance


def test_curves_end_where_their_runs_do(runs: tuple[Path, Path]) -> None:
    for axes in curves(draw(read_runs(runs))).values():
        assert axes.get_xlim() == (0, 24)
        assert axes.get_xlabel() == "step"
        ends = {line.get_color(): line.get_xdata()[-1] for line in axes.lines if len(line.get_xdata()) > 2}
        assert sorted(ends.values()) == [13, 23]  # the mean over two rows and more ends one before the last


def test_runs_of_different_batch_are_laid_over_each_other_by_pairs(runs: tuple[Path, Path], tmp_path: Path) -> None:
    larger = variant(runs[0], tmp_path / "larger", batch=16, accumulate=2)
    axes = curves(draw(read_runs([runs[1], larger])))["effective_rank"]
    assert axes.get_xlabel() == "pairs seen"
    assert axes.get_xlim() == (0, 24 * 32)
    assert list(axes.lines[0].get_xdata()) == [8.0 * step for step in range(1, 14)]
    same = variant(runs[0], tmp_path / "halves", batch=4, accumulate=2)
    assert curves(draw(read_runs([*runs, same])))["effective_rank"].get_xlabel() == "step"


def test_chance_is_one_line_where_it_is_one(runs: tuple[Path, Path], tmp_path: Path) -> None:
    levels = [variant(runs[0], tmp_path / f"c{n}", columns={"correspondence_chance": f"0.{n}"}) for n in (20, 205, 30)]

    def flat(*folders: Path) -> list[float]:
        axes = curves(draw(read_runs(folders)))["correspondence"]
        return [line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 2]

    assert flat(levels[0], levels[1]) == pytest.approx([0.2025])
    assert flat(levels[0], levels[2]) == pytest.approx([0.2, 0.3])


def test_twenty_runs_look_different(runs: tuple[Path, Path], tmp_path: Path) -> None:
    folders = [variant(runs[1], tmp_path / f"run{number}") for number in range(20)]
    key, first, *_ = draw(read_runs(folders)).figure.axes
    looks = {(line.get_color(), str(line._dash_pattern)) for line in key.lines}
    assert len(looks) == 20
    assert len({line.get_color() for line in key.lines[:8]}) == 8
    assert [text.get_text() for text in key.texts] == [f"run{number} (moco-v2)" for number in range(20)]
    thick = [line for line in first.lines if line.get_linewidth() > 1.5]
    assert [(line.get_color(), str(line.get_linestyle())) for line in thick] == [
        (line.get_color(), str(line.get_linestyle())) for line in key.lines
    ]
    lightness = [np.dot((0.3, 0.6, 0.1), to_rgb(line.get_color())) for line in key.lines]
    assert max(lightness) < 0.75  # shows on white


def test_what_is_the_same_is_said_once_and_the_method_is_no_difference(runs: tuple[Path, Path], tmp_path: Path) -> None:
    folders = [variant(run, tmp_path / run.name, keep=13, steps=13) for run in runs]
    same, different = same_and_different(read_runs(folders))
    assert different == []
    for fact in ("tiles, 20 tiles", "backbone test_resnet", "size 64 px", "batch 8", "seed 0", "steps 13"):
        assert fact in same
    moved = variant(runs[0], tmp_path / "moved", keep=13, steps=13, data="elsewhere/of/another/name")
    assert same_and_different(read_runs([folders[1], moved]))[1] == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 3}, "different seed: 0 (plm); 3 (other)"),
        ({"batch": 4}, "different batch: 8 (plm); 4 (other). Effective rank cannot exceed"),
        ({"accumulate": 2}, "different batch: 8 (plm); 2 x 8 (other)"),
        ({"encoder": EncoderConfig("resnet18")}, "different backbone: test_resnet (plm); resnet18 (other)"),
        (
            {"encoder": EncoderConfig("test_resnet", output_stride=16)},
            "different encoder: output_stride 32 (plm); output_stride 16 (other)",
        ),
        (
            {"views": ViewConfig(size=96, symmetries="all", stain=0.05)},
            "different view size: 64 px (plm); 96 px (other)",
        ),
        ({"views": ViewConfig(size=64, symmetries="all")}, "different views: stain 0.05 (plm); stain 0.0 (other)"),
        ({"steps": 30}, "different steps: 24 (plm); 24 of 30 (other)"),
        ({"steps": None, "epochs": 20}, "different steps: 24 (plm); 24 of 40 (other)"),
        ({"keep": 9}, "different steps: 24 (plm); 9 of 24 (other)"),
        ({"precision": "bf16-mixed"}, "different precision: 32 (plm); bf16-mixed (other)"),
    ],
)
def test_each_difference_is_said_in_print_and_in_the_picture(
    runs: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    # Of another method: its settings are no difference.
    both = read_runs([runs[0], variant(runs[0], tmp_path / "other", name="vicregl", method=VICRegLConfig(), **changes)])
    _, different = same_and_different(both)
    assert [line[: len(says)] for line in different] == [says]
    assert f"\n- {says}" in markdown(both)
    drawn = " ".join(text.get_text().strip() for text in draw(both).figure.texts)
    assert says in drawn


def test_other_tiles_are_told_even_under_the_same_name(runs: tuple[Path, Path], tmp_path: Path) -> None:
    plm = read_recipe(runs[0] / "recipe.json")
    more = pretrain(replace(plm, data=str(write_tiles(tmp_path / "a" / "tiles", 24)), out=str(tmp_path / "more")))
    _, (line,) = same_and_different(read_runs([runs[0], more]))
    assert line == "different data: tiles, 20 tiles (plm); tiles, 24 tiles (more)"
    tiles = write_tiles(tmp_path / "b" / "tiles")
    (tiles / "00.png").rename(tiles / "renamed.png")
    renamed = pretrain(replace(plm, data=str(tiles), out=str(tmp_path / "renamed"), steps=24))
    _, (line,) = same_and_different(read_runs([runs[0], renamed]))
    assert line.count("tiles, 20 tiles, fingerprint") == 2


def test_variants_of_one_recipe_differ_by_their_settings(runs: tuple[Path, Path], tmp_path: Path) -> None:
    method = read_recipe(runs[0] / "recipe.json").method
    assert isinstance(method, MoCoConfig)
    milder = variant(runs[0], tmp_path / "milder", method=replace(method, dense=0.25, temperature=0.1))
    _, (line,) = same_and_different(read_runs([runs[0], milder]))
    assert line == (
        f"different method: dense {method.dense}, temperature {method.temperature} (plm); "
        "dense 0.25, temperature 0.1 (milder)"
    )


def test_a_run_fetched_without_its_tiles_is_compared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for run in runs:
        (tmp_path / run.name).mkdir()
        for name in ("recipe.json", "journal.csv"):
            shutil.copy(run / name, tmp_path / run.name)
    assert cells(compare([tmp_path / "plm", tmp_path / "moco"], tmp_path / "a.png")) == cells(table(read_runs(runs)))
    _, different = same_and_different(read_runs([runs[0], tmp_path / "moco"]))
    assert different[0] == "different data: tiles, 20 tiles (plm); tiles, no tiles.arrow (moco)"


def test_runs_of_one_name_are_told_by_their_parents(runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = (variant(runs[0], tmp_path / parent / "run", name="") for parent in ("a", "b|c"))
    text = table(read_runs([first, second, runs[1]]))
    assert list(cells(text)) == ["a/run", "b\\|c/run", "moco"]
    assert [row["recipe"] for row in cells(text).values()] == ["", "", "moco-v2"]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_the_picture_is_a_file_of_decent_size_and_the_same_each_time(runs: tuple[Path, Path], tmp_path: Path) -> None:
    compare(runs, tmp_path / "new" / "a.png")
    compare(runs, tmp_path / "b.png")
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "b.png").stat().st_size < 300_000
    with Image.open(tmp_path / "b.png") as page:
        inked = (np.asarray(page.convert("RGB")) < 250).any(2)
    assert all(part.any() for part in np.array_split(inked, 10))
    assert not inked[:, :20].any() and not inked[:, -20:].any() and not inked[-5:].any()


def test_no_words_touch_and_none_leave_the_page(runs: tuple[Path, Path], tmp_path: Path) -> None:
    names = ["a" * 200, *(f"a-rather-long-name-of-run-{number}" for number in range(7))]
    recipe: dict[str, Any] = {"name": "a-recipe-of-my-own", "data": "d" * 100}
    folders = [variant(runs[0], tmp_path / name, seed=seed, **recipe) for seed, name in enumerate(names)]
    page = draw(read_runs(folders))
    page.canvas.draw()
    figure = page.figure
    words = [text for axes in figure.axes for text in axes.texts] + figure.texts
    boxes = [text.get_window_extent() for text in words]
    assert all(
        box.x0 > 0 and box.x1 < figure.bbox.width and box.y0 > 0 and box.y1 < figure.bbox.height for box in boxes
    )
    touching = [
        (words[i].get_text(), words[j].get_text())
        for i, box in enumerate(boxes)
        for j in range(i)
        if min(box.x1, boxes[j].x1) - max(box.x0, boxes[j].x0) > 1
        and min(box.y1, boxes[j].y1) - max(box.y0, boxes[j].y0) > 1
    ]
    assert touching == []


def test_what_cannot_be_compared_is_said_in_a_sentence(runs: tuple[Path, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(runs[0])
    fresh = variant(runs[0], tmp_path / "fresh", keep=0)
    bare = variant(runs[0], tmp_path / "bare")
    (bare / "journal.csv").unlink()
    for folders, says in (
        ([], "give two runs or more"),
        ([runs[0]], rf"colocate report {runs[0]} "),
        ([runs[0], runs[1], runs[0]], "given twice"),
        ([runs[0], link], "link is given twice"),
        ([runs[0], tmp_path / "nowhere"], "nowhere is not the folder of a run"),
        ([runs[0], bare], r"bare has no readable journal\.csv"),
        ([runs[0], fresh], "fresh has logged nothing yet"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            compare(folders, tmp_path / "none.png")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "none.png").exists()
