"""GlaS from small files of the release's layout, and from the release itself."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from colocate.base.errors import UserError
from colocate.cli.main import main
from colocate.datasets import glas
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import write
from colocate.evaluation.protocol import instances_for
from colocate.evaluation.settings import InstancesConfig
from tests.prepare.releases import GLAS_PARTS, write_glas

FEW = {"train": 3, "testA": 2, "testB": 1}


def prepared(src: Path, out: Path, partial: bool = False) -> Labelled:
    facts, drafts = glas.drafts(src)
    return write(out, facts, drafts, partial=partial)


def test_a_release_of_small_files_as_it_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, out = write_glas(tmp_path / "src"), tmp_path / "out"
    main(["prepare", "glas", str(src), str(out)])
    said = capsys.readouterr().out
    for words in (
        "glas: 165 images, 16 cases, 1,530 objects\n",
        "split official: 85 train, 60 testA, 20 testB (16 cases on both sides)\n",
        "terms: For research only",
        "note: The official split of GlaS has patients on both sides",
        f"done: look at {out}/contact-sheet.png\n",
    ):
        assert words in said
    data = Labelled.open(out)
    assert instances_for(data) == InstancesConfig()
    assert {part: len(numbers) for part, numbers in data.parts("official").items()} == GLAS_PARTS
    assert data.schemes == ("official", "patients") and data.classes == ("gland",)
    names = [item.name for item in data.items]
    assert names[:3] == ["train_1", "train_2", "train_3"] and names[85:87] == ["testA_1", "testA_2"]
    assert {item.mpp for item in data.items} == {0.62}
    for number in (0, 84, 90, 164):
        assert_as_released(data, number, src)
    assert data.shared_sources("official") and not data.shared_sources("patients")


def assert_as_released(data: Labelled, number: int, src: Path) -> None:
    name = data.items[number].name
    with Image.open(src / f"{name}.bmp") as image, Image.open(src / f"{name}_anno.bmp") as mask:
        assert torch.equal(data.image(number).permute(1, 2, 0), torch.from_numpy(np.array(image)))
        assert torch.equal(data.mask(number), torch.from_numpy(np.array(mask).astype(np.int32)))


def test_copies_as_webp_with_other_endings_in_a_folder(tmp_path: Path) -> None:
    src = write_glas(tmp_path / "zip" / "Warwick QU Dataset (Released 2016_07_08)", FEW, "webp")
    (src / "train_1.webp").rename(src / "train_1.WEBP")
    (src / "Grade.csv").rename(src / "grade.CSV")
    assert len(prepared(src.parent, tmp_path / "out", partial=True)) == 6


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


def replaced(src: Path, old: str, new: str) -> None:
    (src / "Grade.csv").write_text((src / "Grade.csv").read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda src: (src / "train_2.bmp").rename(src / "train-2.bmp"), "train_2_anno.bmp has no image in .*: get it"),
        (lambda src: (src / "Grade.csv").unlink(), "src has no Grade.csv, .*: give the folder of the GlaS release"),
        (lambda src: replaced(src, "name,patient ID", "image,grade"), "Grade.csv does not begin with name, patient"),
        (lambda src: replaced(src, "train_3", "train_9"), "Grade.csv does not list train_3, .*: get the file as rel"),
        (lambda src: replaced(src, "train_3,3,", "train_3,,"), "line 4: no image and patient in 'train_3,,benign,"),
        (lambda src: os.truncate(src / "train_3_anno.bmp", 1100), "train_3_anno.bmp is missing, cut short or damag"),
    ],
)
def test_what_is_missing_or_wrong_is_named(spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    src = write_glas(tmp_path / "src", FEW)
    spoil(src)
    with pytest.raises(UserError, match=says):
        prepared(src, tmp_path / "out", partial=True)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_part_of_the_release(tmp_path: Path) -> None:
    src = write_glas(tmp_path / "src", FEW)
    said = "3 train instead of 85, 2 testA instead of 60, 1 testB instead of 20, 60 objects instead of 1,530"
    with pytest.raises(UserError, match=f"glas: {said}: get .*--partial"):
        prepared(src, tmp_path / "out")
    data = prepared(src, tmp_path / "out", partial=True)
    assert data.notes[-1] == f"Not the complete data set: {said}."


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
    assert {part: len(found) for part, found in data.parts("official").items()} == GLAS_PARTS
    assert {part: len(found) for part, found in data.parts("patients").items()} == {"train": 88, "test": 77}
    assert not data.shared_sources("patients")
    assert len(data.shared_sources("official")) == 11
    for number in range(0, 165, 16):
        assert_as_released(data, number, release)
    with (release / "Grade.csv").open(newline=None) as file:
        malignant = {row[0] for row in csv.reader(file) if row and "malignant" in row[2]}
    assert sum(data.items[number].name in malignant for number in data.test("patients")) == 39
