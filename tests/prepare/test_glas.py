"""GlaS from small files of the release's layout, and from the release itself."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from colocate.base.errors import UserError
from colocate.datasets import glas
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import write
from tests.prepare.releases import write_glas

FEW = {"train": 3, "testA": 2, "testB": 1}


def prepared(src: Path, out: Path, partial: bool = False) -> Labelled:
    facts, drafts = glas.drafts(src)
    return write(out, facts, drafts, partial=partial)


@pytest.mark.parametrize("nested", [False, True])
def test_a_release_of_small_files(nested: bool, tmp_path: Path) -> None:
    src = tmp_path / "zip"
    folder = write_glas(src / "Warwick QU Dataset (Released 2016_07_08)" if nested else src)
    data = prepared(src, tmp_path / "out")
    assert {part: len(numbers) for part, numbers in data.parts("official").items()} == {
        "train": 85, "testA": 60, "testB": 20,
    }  # fmt: skip
    assert data.schemes == ("official", "patients") and data.classes == ("gland",)
    names = [item.name for item in data.items]
    assert names[:3] == ["train_1", "train_2", "train_3"] and names[85:87] == ["testA_1", "testA_2"]
    for number in (0, 84, 90, 164):
        item = data.items[number]
        assert item.mpp == 0.62
        with Image.open(folder / f"{item.name}.bmp") as image:
            assert torch.equal(data.image(number).permute(1, 2, 0), torch.from_numpy(np.array(image)))
        with Image.open(folder / f"{item.name}_anno.bmp") as image:
            assert torch.equal(data.mask(number), torch.from_numpy(np.array(image).astype(np.int32)))
    assert data.shared_sources("official") and not data.shared_sources("patients")


def test_copies_as_webp_with_other_endings(tmp_path: Path) -> None:
    src = write_glas(tmp_path / "src", FEW, "webp")
    (src / "train_1.webp").rename(src / "train_1.WEBP")
    (src / "Grade.csv").rename(src / "grade.CSV")
    assert len(prepared(src, tmp_path / "out", partial=True)) == 6


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_patients_whatever_ends_the_lines(end: bytes, tmp_path: Path) -> None:
    src = write_glas(tmp_path / "src", FEW)
    grades = src / "Grade.csv"
    grades.write_bytes(b"\xef\xbb\xbf" + grades.read_bytes().replace(b"\r", end))
    data = prepared(src, tmp_path / "out", partial=True)
    assert [item.source for item in data.items] == [f"glas:{n}" for n in range(1, 7)]
    assert [item.splits["patients"] for item in data.items] == ["train", "train", "train", "test", "train", "train"]


def test_the_patients_split_is_the_best_of_its_kind(shared_data: Path) -> None:
    """Of all splits by patient that keep most images on their official side, the nearest to the official sizes."""
    with (shared_data / "glas" / "Grade.csv").open(newline=None) as file:
        rows = [(int(row[1]), row[0].startswith("train")) for row in list(csv.reader(file))[1:]]
    trained = np.array([sum(side for patient, side in rows if patient == p) for p in range(1, 17)])
    tested = np.array([sum(not side for patient, side in rows if patient == p) for p in range(1, 17)])
    choices = (np.arange(2**16)[:, None] >> np.arange(16)) & 1  # 1: the patient is test
    kept = np.where(choices == 1, tested, trained).sum(1)
    away = np.abs((choices * (trained + tested)).sum(1) - 80)
    best = np.lexsort((away, -kept))[0]
    assert {str(1 + patient) for patient in np.nonzero(choices[best])[0]} == glas.TEST_PATIENTS
    assert (kept[best], away[best]) == (118, 3)


def _renamed(src: Path) -> None:
    (src / "train_2.bmp").rename(src / "train-2.bmp")


def _without_image(src: Path) -> None:
    for name in ("testB_1.bmp", "testB_1_anno.bmp"):
        (src / name).unlink()


def _without_grades(src: Path) -> None:
    (src / "Grade.csv").unlink()


def _other_grades(src: Path) -> None:
    (src / "Grade.csv").write_text("image,grade\ntrain_1,benign\n")


def _unlisted(src: Path) -> None:
    grades = (src / "Grade.csv").read_text().splitlines()
    (src / "Grade.csv").write_text("\n".join(line for line in grades if not line.startswith("train_3")))


def _no_patient(src: Path) -> None:
    (src / "Grade.csv").write_text((src / "Grade.csv").read_text().replace("train_3,3,", "train_3,,"))


def _mask_cut_short(src: Path) -> None:
    (src / "train_3_anno.bmp").write_bytes((src / "train_3_anno.bmp").read_bytes()[:1100])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_renamed, r"train_2_anno.bmp has no image in .*: get it again, or undo its renaming"),
        (_without_grades, r"src has no Grade.csv, .*: give the folder of the GlaS release"),
        (_other_grades, r"Grade.csv does not begin with name, patient ID: get the file as released"),
        (_unlisted, r"Grade.csv does not list train_3, .*: get the file as released"),
        (_no_patient, r"Grade.csv, line 4: no image and patient in 'train_3,,benign,healthy'"),
        (_mask_cut_short, r"train_3_anno.bmp is missing, cut short or damaged \(.*\): get it again"),
    ],
)
def test_what_is_missing_or_wrong_is_named(spoil: object, says: str, tmp_path: Path) -> None:
    src = write_glas(tmp_path / "src", FEW)
    spoil(src)  # type: ignore[operator]
    with pytest.raises(UserError, match=says):
        prepared(src, tmp_path / "out", partial=True)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_part_of_the_release(tmp_path: Path) -> None:
    src = write_glas(tmp_path / "src")
    _without_image(src)
    with pytest.raises(
        UserError, match=r"glas: 19 testB instead of 20, 1,521 objects instead of 1,530: get .*--partial"
    ):
        prepared(src, tmp_path / "out")
    data = prepared(src, tmp_path / "out", partial=True)
    assert data.notes[-1] == "Not the complete data set: 19 testB instead of 20, 1,521 objects instead of 1,530."


@pytest.fixture(scope="module")
def release(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The release's own BMP files."""
    folder = tmp_path_factory.mktemp("glas") / "release"
    subprocess.run([sys.executable, shared_data.parent / "tools" / "restore_glas.py", folder], check=True)
    yield folder
    for path in folder.iterdir():  # 260 MB
        path.unlink()


@pytest.mark.slow
def test_the_release(release: Path, tmp_path: Path) -> None:
    data = prepared(release, tmp_path / "out")
    assert {part: len(found) for part, found in data.parts("official").items()} == {
        "train": 85,
        "testA": 60,
        "testB": 20,
    }
    assert {part: len(found) for part, found in data.parts("patients").items()} == {"train": 88, "test": 77}
    assert not data.shared_sources("patients")
    assert len(data.shared_sources("official")) == 11
    glands = 0
    for number, item in enumerate(data.items):
        mask = data.mask(number)
        glands += int(mask.max())
        assert mask.unique()[-1] == (mask.unique() > 0).sum()
        with Image.open(release / f"{item.name}_anno.bmp") as image:
            assert torch.equal(mask, torch.from_numpy(np.array(image).astype(np.int32)))
        if number % 16 == 0:
            with Image.open(release / f"{item.name}.bmp") as image:
                assert torch.equal(data.image(number).permute(1, 2, 0), torch.from_numpy(np.array(image)))
    assert glands == 1530
    malignant = _malignant(release / "Grade.csv")
    assert sum(data.items[number].name in malignant for number in data.test("patients")) == 39


def _malignant(grades: Path) -> set[str]:
    with grades.open(newline=None) as file:
        return {row[0] for row in csv.reader(file) if row and "malignant" in row[2]}
