"""Tables of results: numbers as a calculation of its own gives them, and everything said that must be."""

from __future__ import annotations

import csv
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from colocate.api import Results
from colocate.base.errors import UserError
from colocate.cli.main import main
from colocate.evaluation.table import Table, collect, markdown, write
from colocate.pages.scores import images, write_scores
from tests.evaluate.made import write_result

Cells = dict[str, dict[str, str]]


def grids(text: str) -> list[Cells]:
    """The Markdown tables of a text: rows by their first cell, cells by the head of their column."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif found[-1]:
            found.append([])
    return [
        {row[0]: dict(zip(lines[0], row, strict=True)) for row in lines[2:]}
        for lines in found
        if lines
    ]  # fmt: skip


def numbers(cell: str) -> list[float]:
    """Those in a cell: mean, standard deviation if there is one, low, high, share."""
    plain = cell.replace("*", " ").replace("±", " ").replace("%", " ")
    return [float(word) for word in "".join(" " if sign in "[]," else sign for sign in plain).split()]


def dice(result: dict[str, Any], part: str = "") -> list[float]:
    return [100 * entry["probe"]["dice"] for entry in result["records"] if part in ("", entry["part"])]


def table(folder: Path, **options: Any) -> Table:
    (one,) = collect([folder], **options)
    return one


def test_numbers_are_those_of_a_calculation_of_its_own(tmp_path: Path) -> None:
    made = {
        (label, seed): write_result(tmp_path, label=label, seed=seed, skill=skill)
        for label, skill in (("plm", 0.6), ("random", 0.4))
        for seed in (0, 1, 2)
    }
    text = markdown(collect([tmp_path]))
    assert "interval over 6 cases (24 images)]" in text
    assert "interval over 24 images]" in markdown(collect([tmp_path], by="images", draws=9))
    found = grids(text)
    assert [list(grid) for grid in found] == [["random", "plm"], ["plm"]] * 3  # all images, testA, testB
    for part, scores, differences in zip(("", "testA", "testB"), found[::2], found[1::2], strict=True):
        means = {key: statistics.fmean(dice(result, part)) for key, result in made.items()}
        for label in ("plm", "random"):
            own = [means[label, seed] for seed in range(3)]
            mean, std, low, high = numbers(scores[label]["image Dice"])
            assert mean == pytest.approx(statistics.fmean(own), abs=0.051)
            assert std == pytest.approx(statistics.stdev(own), abs=0.051)
            assert low < mean < high
        mean, low, high, share = numbers(differences["plm"]["image Dice"])
        expected = [means["plm", seed] - means["random", seed] for seed in range(3)]
        assert mean == pytest.approx(statistics.fmean(expected), abs=0.051)
        assert low <= mean <= high and share == 100


def test_seeds_that_are_missing_are_said_and_left_out_of_the_comparison(tmp_path: Path) -> None:
    kinds = {"random": (0.4, (0, 1, 2)), "plm": (0.6, (1, 2)), "late": (0.5, (7,))}
    made = {
        (label, seed): write_result(tmp_path, label=label, seed=seed, skill=skill)
        for label, (skill, seeds) in kinds.items()
        for seed in seeds
    }
    text = markdown(collect([tmp_path]))
    assert "- Seeds differ: random 0, 1, 2; late 7; plm 1, 2. Differences are over the seeds that both have." in text
    scores, differences, *_ = grids(text)
    assert [scores[label]["seeds"] for label in ("random", "plm", "late")] == ["3", "2", "1"]
    assert differences["plm"]["seeds"] == "2" and differences["late"]["image Dice"] == "no seed in common"
    means = {key: statistics.fmean(dice(result)) for key, result in made.items()}
    mean = statistics.fmean(means["plm", seed] - means["random", seed] for seed in (1, 2))
    assert numbers(differences["plm"]["image Dice"])[0] == pytest.approx(mean, abs=0.051)
    assert "±" not in scores["late"]["image Dice"]


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"stride": 8}},
        {"fraction": 0.25},
        {"dataset": {"fingerprint": "0" * 32}},
        {"dataset": {"split": "patients"}},
    ],
)
def test_what_was_made_otherwise_has_a_table_of_its_own(tmp_path: Path, other: dict[str, Any]) -> None:
    write_result(tmp_path / "a")
    write_result(tmp_path / "a", label="random")
    write_result(tmp_path / "b", **other)
    tables = collect([tmp_path])
    assert sorted([row.label for row in table.rows] for table in tables) == [["plm"], ["random", "plm"]]
    if "settings" in other:
        assert "- Settings: stride 8 (default 16)." in markdown(tables)
        assert "- Settings: the defaults." in markdown(tables)
    if "fingerprint" in other.get("dataset", {}):  # two versions of one data set
        heads = [f"- Data: glas ({sign * 8}), split official, 85 training images" for sign in "0f"]
        assert all(head in markdown(tables) for head in heads)
        write(tables, "", tmp_path / "out")
        with (tmp_path / "out" / "table.csv").open(newline="") as file:
            assert {line["data"] for line in csv.DictReader(file)} == {"0" * 8, "f" * 8}
    if "fraction" in other:
        assert "25 % of the labels" in markdown(tables) and "another choice for each seed" in markdown(tables)


def test_only_what_is_clearly_better_is_bold(tmp_path: Path) -> None:
    for label, skill in (("random", 0.4), ("good", 0.55), ("better", 0.7)):
        for seed in range(2):
            write_result(tmp_path, "instances", label, seed, skill)
    scores, differences, *_ = grids(markdown(collect([tmp_path], draws=60)))
    for name, cell in scores["better"].items():
        assert cell.startswith("**") == (name not in ("backbone", "architecture", "seeds")), name
    assert not any("**" in cell for label in ("random", "good") for cell in scores[label].values())
    hausdorff = next(name for name in scores["good"] if "Hausdorff" in name)
    assert "lower is better" in hausdorff
    mean, _, high, share = numbers(differences["better"][hausdorff])
    assert mean < high < 0 and share == 100


@pytest.mark.parametrize("skill", [0.55, 0.551])
def test_what_is_equal_or_hardly_better_is_not_bold(tmp_path: Path, skill: float) -> None:
    for label, its in (("random", 0.4), ("good", 0.55), ("other", skill)):
        write_result(tmp_path, label=label, skill=its)
    text = markdown(collect([tmp_path], by="images"))
    assert "**" not in text.replace("**Bold**", "")


def test_too_few_cases_are_not_drawn_and_too_few_images_decide_nothing(tmp_path: Path) -> None:
    for label, skill in (("random", 0.3), ("plm", 0.8)):
        made = write_result(tmp_path, label=label, skill=skill)
        records = [entry | {"source": "glas:1"} for entry in made["records"]]
        records = [entry | {"part": "testB" if number < 3 else "testA"} for number, entry in enumerate(records)]
        write_result(tmp_path, label=label, records=records)
    every, first, second = sorted(table(tmp_path).scores, key=lambda scores: scores.part)
    assert [scores.over for scores in (every, first, second)] == ["24 images", "21 images", "3 images"]
    assert every.best == first.best == {"image Dice": "plm", "pooled Dice": "plm"} and second.best == {}


def test_the_best_of_means_is_not_bold_where_the_common_seeds_say_otherwise(tmp_path: Path) -> None:
    for label, seed, skill in (("a", 0, 0.5), ("b", 0, 0.4), ("b", 1, 0.9)):
        write_result(tmp_path, label=label, seed=seed, skill=skill)
    found = table(tmp_path).scores[0]
    assert found.intervals["b"]["image Dice"].mean > found.intervals["a"]["image Dice"].mean
    assert found.best == {}


def test_the_reference(tmp_path: Path) -> None:
    for label in ("densecl", "plm", "random"):
        write_result(tmp_path / "a", label=label)
    for label in ("moco", "plm"):
        write_result(tmp_path / "b", label=label, fraction=0.5)
    assert sorted(one.against for one in collect([tmp_path])) == ["moco", "random"]
    assert [one.against for one in collect([tmp_path], "plm")] == ["plm", "plm"]
    assert [row.label for row in collect([tmp_path / "a"], "plm")[0].rows] == ["plm", "densecl", "random"]
    assert "Difference from plm" in markdown(collect([tmp_path / "a"], "plm"))
    with pytest.raises(UserError, match="no backbone is called 'plmm': --against is one of densecl, moco, plm, random"):
        collect([tmp_path], "plmm")


def test_a_table_says_what_its_scores_are_of(tmp_path: Path) -> None:
    write_result(tmp_path / "probe")
    write_result(tmp_path / "semantics", "semantics", dataset={"shared_sources": []})
    probe, semantics = (markdown(collect([tmp_path / name])) for name in ("probe", "semantics"))
    cases = "- Cases with images both in training and in test"
    assert f"{cases}: glas:1, glas:2." in probe and f"{cases}: none." in semantics and "- Research only." in probe
    left_out = "\n- Dice of a probe is of all classes but the first, 0, which is taken for the background.\n"
    assert left_out in probe and left_out not in semantics


def test_leakage_is_said_once_with_its_backbones(tmp_path: Path) -> None:
    both, mine = "pixels of all", "1 test image is a tile"
    write_result(tmp_path, label="random", leakage={"checked": [both], "unchecked": []})
    write_result(tmp_path, label="plm", leakage={"checked": [both, "names"], "found": [mine], "forced": True})
    text = markdown(collect([tmp_path]))
    for line in (
        "Leakage checked (all): pixels of all.",
        "Leakage checked (plm): names.",
        "Leakage not checked (plm): crops.",
        "Leakage found (plm): 1 test image is a tile.",
        "Evaluated in spite of leakage (--allow-leakage): plm.",
    ):
        assert f"\n- {line}\n" in text


def test_scores_that_are_undefined(tmp_path: Path) -> None:
    for label in ("random", "plm"):
        made = write_result(tmp_path, label=label)
        for entry in made["records"]:
            entry["probe"] = {"dice": 1.0, "shared": 0, "positives": 0}
        write_result(tmp_path, label=label, records=made["records"])
    scores, differences, *_ = grids(markdown(collect([tmp_path])))
    assert scores["plm"]["pooled Dice"] == differences["plm"]["pooled Dice"] == "undefined"
    assert numbers(scores["plm"]["image Dice"]) == [100, 100, 100] and "**" not in scores["plm"]["image Dice"]
    assert numbers(differences["plm"]["image Dice"]) == [0, 0, 0, 50]


def test_images_of_which_nothing_counts_change_nothing(tmp_path: Path) -> None:
    """Neither means nor intervals; and on the page they are neither the worst nor the best."""
    for label, skill in (("random", 0.4), ("plm", 0.6)):
        made = write_result(tmp_path / "some", label=label, skill=skill)
        nothing = {"probe": {"dice": None, "shared": 0, "positives": 0}}
        records = [entry | (nothing if entry["source"] == "glas:5" else {}) for entry in made["records"]]
        write_result(tmp_path / "some", label=label, records=records)
        write_result(tmp_path / "kept", label=label, records=[one for one in records if one["source"] != "glas:5"])
    some, kept = (table(tmp_path / name) for name in ("some", "kept"))
    assert repr(some.scores[0]) == repr(kept.scores[0]) and some.scores[0].over == "5 cases (20 images)"
    assert some.scores[0].differences["plm"]["image Dice"].share == 1
    write_scores([some], tmp_path / "page")
    assert "nan" not in (tmp_path / "page" / "index.html").read_text()
    shown = {row[0] for row in images(some)[1:]}
    assert len(shown) == 10 and not shown & {entry["image"] for entry in records if entry["source"] == "glas:5"}


def test_pixels_of_which_nothing_counts_are_no_case(tmp_path: Path) -> None:
    made = write_result(tmp_path, "semantics", images=8)
    nothing = {"semantic": {name: {} for name in ("tumour", "stroma", "other")}}
    for ignored, over in ((2, "6 images"), (8, "8 images")):
        records = [entry | (nothing if number < ignored else {}) for number, entry in enumerate(made["records"])]
        write_result(tmp_path, "semantics", records=[entry | {"source": ""} for entry in records])
        assert table(tmp_path).scores[0].over == over


def test_one_image_has_no_interval(tmp_path: Path) -> None:
    """Every draw of it is the same: an interval of no width would say that the score is certain."""
    for label, skill in (("random", 0.4), ("plm", 0.6)):
        write_result(tmp_path / "results", label=label, skill=skill, images=1)
    made = table(tmp_path / "results")
    text = markdown([made])
    found = made.scores[0].intervals["plm"]["image Dice"]
    assert made.scores[0].over == "1 image, which gives none" and f"over {made.scores[0].over}]" in text
    scores, differences = grids(text)
    assert scores["plm"]["image Dice"] == f"{found.mean:.1f}"
    assert re.fullmatch(r"\+\d+\.\d", differences["plm"]["image Dice"])
    write([made], text, tmp_path / "out")
    with (tmp_path / "out" / "table.csv").open(newline="") as file:
        assert {line["low"] + line["high"] + line["difference share"] for line in csv.DictReader(file)} == {""}
    write_scores([made], tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "nan" not in page and f"plm: {found.mean:.1f}; seeds" in page


def test_nothing_else_is_drawn(tmp_path: Path) -> None:
    write_result(tmp_path)
    for by in ("patients", "case", ""):
        with pytest.raises(UserError, match=f"intervals cannot be drawn by '{by}': there are cases, images"):
            Results((tmp_path,)).tables(by=by)  # pyright: ignore[reportArgumentType]


def test_files_hold_what_the_tables_do(tmp_path: Path) -> None:
    for label, skill in (("random", 0.4), ("plm", 0.6)):
        write_result(tmp_path / "results", "semantics", label, skill=skill)
    tables = collect([tmp_path / "results"])
    write(tables, "the text\n", tmp_path / "out")
    assert (tmp_path / "out" / "table.md").read_text() == "the text\n"
    with (tmp_path / "out" / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    scores = ["Dice", "Jaccard"]
    names = [f"{a} {b}" for b in scores for a in ("micro", "macro")]
    names += [f"{b} {c}" for b in scores for c in ("tumour", "stroma", "other")]
    assert len(lines) == 2 * 3 * len(names) and {line["score"] for line in lines} == set(names)
    for line in lines:
        part = next(one for one in tables[0].scores if (one.part or "all") == line["part"])
        found = part.intervals[line["backbone"]][line["score"]]
        assert [float(line[name]) for name in ("mean", "low", "high")] == [found.mean, found.low, found.high]
        assert line["std"] == "" and float(line["values"]) == found.mean  # of a single seed
        if line["backbone"] == "plm":
            difference = part.differences["plm"][line["score"]]
            assert float(line["difference mean"]) == difference.mean and line["against"] == "random"
        else:
            assert line["difference mean"] == line["against"] == ""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("plm", "random"):
        write_result(tmp_path / "results", label=label)
    places = [str(path) for path in sorted((tmp_path / "results").iterdir())]
    main(["table", *places, "--against", "plm", "--by", "images", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert said.startswith("## glas: probe, split official\n\n| backbone |") and "Difference from plm" in said
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"index.html", "table.csv", "table.md", "table.png"}
    assert (tmp_path / "out" / "table.md").read_text().strip() in said
