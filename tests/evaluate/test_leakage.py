"""Leakage: planted copies are found however they were saved, crops by case; nothing where there is none."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from colocate.base.errors import UserError
from colocate.data.index import Index
from colocate.datasets.labelled import COLUMNS, Labelled
from colocate.evaluation import leakage
from colocate.evaluation.leakage import check, refuse, tiles_of
from colocate.evaluation.results import Findings
from tests.data.pictures import pack
from tests.tiny import write_tiles

TURN = Image.Transpose
COPIES: dict[str, Callable[[Image.Image, Path], None]] = {
    "renamed": lambda image, out: image.save(out.with_suffix(".png")),
    "recompressed": lambda image, out: image.save(out.with_suffix(".jpg"), quality=70),
    "half size": lambda image, out: image.reduce(2).save(out.with_suffix(".png")),
    "flipped": lambda image, out: image.transpose(TURN.FLIP_LEFT_RIGHT).save(out.with_suffix(".png")),
    "turned, small, recompressed": lambda image, out: (
        image.transpose(TURN.ROTATE_90).transpose(TURN.FLIP_TOP_BOTTOM).reduce(2).save(out.with_suffix(".jpg"))
    ),
}
Row = tuple[Path, str, str]
"""A file, its case, its part of the split."""


def labelled(folder: Path, rows: Sequence[Row]) -> Labelled:
    """A data set in colocate's form, of images that may lie anywhere."""
    folder.mkdir()
    facts = {"version": 1, "name": "made", "kind": "instances", "classes": ["gland"], "ignored": None}
    (folder / "dataset.json").write_text(json.dumps(facts | {"licence": "", "notes": []}))
    with (folder / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "split:official"])
        writer.writerows([path, "", source, "", 1, 1, path, "", part] for path, source, part in rows)
    return Labelled.open(folder)


def index_of(folder: Path, rows: Sequence[tuple[Path, str]]) -> Index:
    """The tiles of a run, with their sources."""
    folder.mkdir()
    with (folder / "tiles.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "source"), *rows])
    (folder / "recipe.json").write_text('{"encoder": {"init": "random"}}')
    return Index.build(folder / "tiles.csv", folder / "tiles.arrow")


@pytest.fixture
def data(tmp_path: Path) -> Labelled:
    """Six training images (train_0...) of cases a and b, four test images (testA_1, ..., testA_10) of b and c."""
    pictures = sorted(write_tiles(tmp_path / "drawn", count=10, size=96).iterdir())
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for number, picture in enumerate(pictures):
        name = f"train_{number}" if number < 6 else f"testA_{(1, 2, 3, 10)[number - 6]}"
        picture.rename(images / f"{name}.png")
        case = "a" if number < 3 else "b" if number < 7 else "c"
        rows.append((images / f"{name}.png", f"made:{case}", "train" if number < 6 else "testA"))
    return labelled(tmp_path / "data", rows)


def rows_of(data: Labelled) -> list[Row]:
    return [(Path(item.path), item.source, item.splits["official"]) for item in data.items]


def found_with(data: Labelled, run: Path, *tiles: tuple[Path, str]) -> Findings:
    return check(data, "official", index_of(run, tiles), "run")


def write_others(folder: Path, count: int) -> Path:
    """Tiles that have nothing to do with the data."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for number in range(count):
        coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"other_{number}.png")
    return folder


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    return write_others(tmp_path / "tiles", 12)


def image(data: Labelled, name: str) -> Image.Image:
    return Image.open(next(item.path for item in data.items if item.name == name))


def test_nothing_is_found_where_there_is_nothing(data: Labelled, tiles: Path, tmp_path: Path) -> None:
    findings = found_with(data, tmp_path / "run", *((path, "elsewhere:1") for path in sorted(tiles.iterdir())))
    assert findings.found == []
    told = " ".join(findings.checked)
    for words in ("against 6 training images", "against 12 pretraining tiles", "made:b"):
        assert words in told
    assert any("crops of test images" in line for line in findings.unchecked)
    assert any("(elsewhere:1) is written as a case of made (such as made:b)" in line for line in findings.unchecked)
    refuse(findings, forced=False)


@pytest.mark.parametrize("case", ["", "-", "?", "made:-", "_"])
def test_a_case_without_a_word_is_not_known(case: str, data: Labelled, tiles: Path, tmp_path: Path) -> None:
    rows = rows_of(data)
    rows[-2:] = [(path, case, part) for path, _, part in rows[-2:]]
    others = [(path, "made-elsewhere") for path in sorted(tiles.iterdir())]
    findings = found_with(labelled(tmp_path / "more", rows), tmp_path / "run", *others)
    assert findings.found == []
    assert "the cases of some images of the data set are not known" in findings.unchecked
    assert any(line.startswith("2 test cases against") for line in findings.checked)  # b and c


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_found_in_the_split_and_among_tiles(how: str, data: Labelled, tiles: Path, tmp_path: Path) -> None:
    COPIES[how](image(data, "testA_3"), tmp_path / "copy")
    (copy,) = tmp_path.glob("copy.*")
    COPIES[how](image(data, "testA_2"), tiles / "x")
    COPIES[how](image(data, "train_1"), tiles / "y")  # which is allowed
    more = labelled(tmp_path / "more", [*rows_of(data), (copy, "made:a", "train")])
    split, pretraining = found_with(more, tmp_path / "run", *((path, "z") for path in sorted(tiles.iterdir()))).found
    assert split.startswith("1 test image is a training image") and "testA_3.png" in split and str(copy) in split
    assert pretraining.startswith("1 test image is a pretraining tile")
    assert "testA_2.png is " in pretraining and str(tiles / "x.") in pretraining and "train_1" not in pretraining
    assert ("pixel for pixel" in pretraining) == ("pixel for pixel" in split) == (how == "renamed")


def test_blank_images_are_no_copies(data: Labelled, tmp_path: Path) -> None:
    blanks = [tmp_path / f"blank{number}.png" for number in range(2)]
    for path in blanks:
        Image.new("RGB", (96, 96), "white").save(path)
    rows = [*rows_of(data), (blanks[0], "", "train"), (blanks[1], "", "testA")]
    findings = check(labelled(tmp_path / "more", rows), "official", None, "random")
    assert findings.found == []
    assert "1 test image of one colour: any other blank one is equal" in findings.unchecked


def test_hashes_only_propose_and_the_pictures_decide(
    data: Labelled, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    COPIES["half size"](image(data, "testA_2"), tiles / "x")
    every = product(range(4), range(6)), product(range(4), range(13))  # as if all hashes were alike
    proposals = iter(list(pairs) for pairs in every)
    monkeypatch.setattr(leakage, "near_pairs", lambda *_: next(proposals))
    (line,) = found_with(data, tmp_path / "run", *((path, "z") for path in sorted(tiles.iterdir()))).found
    assert line.startswith("1 test image is a pretraining tile but for") and "testA_2" in line and "x.png" in line


@pytest.mark.parametrize("source", ["z", "made-C", "made:c1", "made:b", "made:a"])
def test_crops_are_found_by_case_only(source: str, data: Labelled, tmp_path: Path) -> None:
    crop = tmp_path / "crop.png"
    image(data, "testA_1").crop((0, 0, 40, 40)).save(crop)
    findings = found_with(data, tmp_path / "run", (crop, source))
    assert findings.found == ([f"1 test case among the tiles' cases: made:c ({crop})"] if source == "made-C" else [])
    assert any("made:b are among them, but the split" in line for line in findings.checked) == (source == "made:b")
    unknown = any(f"({source}) is written as a case of made" in line for line in findings.unchecked)
    assert unknown == (source in ("z", "made:c1"))


def test_slides_are_found_whose_patient_the_labels_alone_say(data: Labelled, tmp_path: Path) -> None:
    """Tiles of a folder of slides have the slides for their sources; items.csv of `prepare qupath` names patients."""
    tiles = [(write_tiles(tmp_path / "tiles", 1) / "00.png", source) for source in ("archive/testA", ".")]
    Path(data.items[9].path).rename(path := tmp_path / "images" / "testA_270_300.png")
    cut = labelled(tmp_path / "cut", [*rows_of(data)[:9], (path, "made:c", "testA")])
    assert found_with(cut, tmp_path / "unsaid", *tiles).found == []
    facts = cut.folder / "dataset.json"
    facts.write_text(facts.read_text().replace('"notes": []', '"notes": ["Images are regions of slides, read at 1."]'))
    (found,) = found_with(Labelled.open(cut.folder), tmp_path / "run", *tiles).found
    assert found == "1 test slide among the tiles' slides: testA (archive/testA)"
    (tmp_path / "packed").mkdir()  # as tiles are whose source is a patient
    pack(tmp_path / "tiles", ["00.png"], tmp_path / "packed" / "testA-0000.tar")
    index = Index.build(tmp_path / "packed", tmp_path / "packed.arrow")
    (found,) = check(Labelled.open(cut.folder), "official", index, "run").found
    assert found == "1 test slide among the tiles' slides: testA (testA-0000.tar)"


def test_what_was_found_is_refused_in_a_sentence_unless_forced(data: Labelled, tiles: Path, tmp_path: Path) -> None:
    for name in ("testA_1", "testA_2"):
        image(data, name).save(tiles / f"{name}.png")
    findings = found_with(data, tmp_path / "run", *((path, "made:c") for path in sorted(tiles.iterdir())))
    assert len(findings.found) == 2
    with pytest.raises(
        UserError, match=r"2 test images are pretraining tiles.*testA_1\.png.*--allow-leakage"
    ) as caught:
        refuse(findings, forced=False)
    assert "\n" not in str(caught.value) and "(and 1 more finding)" in str(caught.value)
    refuse(findings, forced=True)


def test_backbones_without_tiles(data: Labelled, tmp_path: Path) -> None:
    assert "a random backbone has seen no images" in check(data, "official", None, "random").checked
    for origin in ("imagenet", "some/weights.pth"):
        (line,) = check(data, "official", None, origin).unchecked
        assert line.startswith(f"{origin}: the weights were trained on ")
    index = index_of(tmp_path / "run", [(Path(data.items[0].path), "z")])
    for place in (tmp_path / "run", tmp_path / "run" / "backbone.safetensors"):
        found = tiles_of(place)
        assert found is not None and found.fingerprint == index.fingerprint
    assert tiles_of(tmp_path) is None and tiles_of(tmp_path / "weights.pth") is None
    (tmp_path / "run" / "recipe.json").write_text('{"encoder": {"init": "published"}}')
    assert any("started from (published)" in line for line in check(data, "official", index, "run").unchecked)


def test_the_tiles_of_runs_that_a_run_learned_from_are_searched_too(data: Labelled, tmp_path: Path) -> None:
    others = sorted(write_others(tmp_path / "others", 2).iterdir())
    runs = {"first": Path(data.items[6].path), "second": others[0], "third": others[1]}
    starts = {
        "first": tmp_path / "third",
        "second": tmp_path / "first" / "backbone.safetensors",
        "third": tmp_path / "second",
    }
    for name, tile in runs.items():
        index = index_of(tmp_path / name, [(tile, "z")])
        (tmp_path / name / "recipe.json").write_text(json.dumps({"encoder": {"init": str(starts[name])}}))
    for ending in ("safetensors", "json"):
        (tmp_path / "first" / f"backbone.{ending}").touch()
    (found,) = check(data, "official", index, "third").found  # a circle, as of a run made anew, is gone round once
    assert "1 test image is a pretraining tile pixel for pixel" in found
    (tmp_path / "second" / "recipe.json").write_text('{"encoder": {"init": "gone.pth"}}')
    findings = check(data, "official", index, "third")
    assert findings.found == [] and any("started from (gone.pth)" in line for line in findings.unchecked)

    by_run = {"kind": "distil", "teacher": str(tmp_path / "first"), "weights": "published"}
    published = {**by_run, "teacher": "resnet18"}
    by_file = {**published, "weights": str(tmp_path / "first" / "backbone.safetensors")}
    for method, found in ((by_run, 1), (by_file, 1), (published, 0), ({**by_run, "kind": "other"}, 0)):
        recipe = {"encoder": {"init": "random"}, "method": method}
        (tmp_path / "second" / "recipe.json").write_text(json.dumps(recipe))
        findings = check(data, "official", index, "third")
        assert len(findings.found) == found
        assert ("(resnet18, published)" in str(findings.unchecked)) == (method is published)


@pytest.mark.slow
def test_a_few_unreadable_tiles_are_noted_and_more_are_refused(data: Labelled, tmp_path: Path) -> None:
    tiles = sorted(write_others(tmp_path / "many", 200).iterdir())
    for gone, refused in ((1, False), (2, False), (3, True), (200, True)):
        for path in tiles[:gone]:
            path.unlink(missing_ok=True)
        run = tmp_path / f"run {gone}"
        findings = found_with(data, run, *((path, "z") for path in tiles))
        told = f"{gone} of 200 pretraining tiles cannot be read (the first: {tiles[0]} does not exist"
        (line,) = [line for line in (*findings.found, *findings.unchecked) if told in line]
        assert (line in findings.found, line in findings.unchecked) == (refused, not refused)
        if refused:
            command = f"colocate pretrain --from '{run}/recipe.json' --resume --data"
            with pytest.raises(UserError, match=r"cannot be read.*--allow-leakage") as caught:
                refuse(findings, forced=False)
            assert command in str(caught.value) and "\n" not in str(caught.value)
        refuse(findings, forced=True)


def test_unreadable_images_of_the_data_set(tiles: Path, tmp_path: Path) -> None:
    (tiles / "other_3.png").write_text("words")
    rows = [(tiles / "other_3.png", "", "train"), (tiles / "other_4.png", "", "test")]
    with pytest.raises(UserError, match=r"other_3\.png"):
        check(labelled(tmp_path / "bad", rows), "official", None, "random")


@pytest.mark.slow
def test_real_sets_raise_no_false_alarm_and_planted_copies_are_found(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "glas" / "Grade.csv").read_text().split("\n")[1:]
    cases = {name: case for name, case, *_ in (map(str.strip, line.split(",")) for line in lines if "," in line)}
    glas = sorted((shared_data / "glas").glob("*.webp"))[::4]
    rows = [(path, f"glas:{cases[path.stem]}", "train" if path.stem[:5] == "train" else path.stem[:5]) for path in glas]
    data = labelled(tmp_path / "glas", rows)
    others = [(path, "ebhi") for path in sorted((shared_data / "ebhi-seg").glob("*/image/*.jpg"))[::8]]
    others += [(path, f"glas-{cases[path.stem]}") for path in glas if path.stem[:5] == "train"]
    assert len(glas) > 40 and len(others) > 250
    clean = found_with(data, tmp_path / "clean", *others)
    assert [line for line in clean.found if "test case" not in line] == []

    test = [path for path in glas if path.stem[:5] != "train"][:: len(COPIES)][: len(COPIES)]
    for number, (path, how) in enumerate(zip(test, COPIES.values(), strict=False)):
        how(Image.open(path).convert("RGB"), tmp_path / f"planted{number}")
    planted = [(path, "ebhi") for path in sorted(tmp_path.glob("planted*"))]
    assert len(planted) == len(test) > 2
    found = " ".join(found_with(data, tmp_path / "leaking", *others[:50], *planted).found)
    assert all(path.name in found for path in test[:4]) and "1 test image is a pretraining tile pixel" in found
    assert f"{len(test) - 1} test images are pretraining tiles but for size" in found


def test_hashes_are_kept_for_the_images_in_their_order(data: Labelled, tmp_path: Path) -> None:
    """The order of lines is not in the fingerprint: a table that was sorted anew has the same."""
    copy = tmp_path / "images" / "testA_99.png"
    copy.write_bytes(Path(data.items[2].path).read_bytes())
    made = labelled(tmp_path / "first", [*rows_of(data), (copy, "made:d", "testA")])
    said = check(made, "official", None, "random").found
    assert len(said) == 1 and "testA_99.png is " in said[0] and "train_2.png" in said[0]
    lines = (made.folder / "items.csv").read_text().splitlines()
    (made.folder / "items.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    again = Labelled.open(made.folder)
    assert again.fingerprint == made.fingerprint
    assert check(again, "official", None, "random").found == said
