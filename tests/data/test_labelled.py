"""A prepared data set: what is read is what was written, wherever it lies, and what was changed since is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from colocate.base.errors import UserError
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import Draft, Facts, write


@pytest.fixture
def data(tmp_path: Path) -> Labelled:
    """Four images of three cases, with two objects of two classes each; case b is on both sides of one split."""

    def draft(number: int, case: str, part: str) -> Draft:
        image = torch.full((3, 20, 30), number, dtype=torch.uint8)
        mask = torch.zeros(20, 30, dtype=torch.int32)
        mask[2:8, 3:9], mask[10:15, 12:20] = 1, 2
        splits = {"one": part, "other": "train" if number < 3 else "testB"}
        return Draft(f"image{number}", image, mask, case, 0.5, splits, {1: 2, 2: 1})

    drafts = [draft(0, "a", "train"), draft(1, "b", "train"), draft(2, "b", "testA"), draft(3, "c", "testB")]
    return write(tmp_path / "data", Facts("made", "instances", ("gland", "vessel"), "none"), drafts)


def test_splits_and_the_cases_they_share(data: Labelled) -> None:
    assert data.schemes == ("one", "other")
    assert data.parts("one") == {"train": [0, 1], "testA": [2], "testB": [3]}
    assert (data.train("one"), data.test("one")) == ([0, 1], [2, 3])
    assert data.shared_sources("one") == {"b"} and data.shared_sources("other") == set()
    with pytest.raises(UserError, match="no split 'moon': there are one, other"):
        data.parts("moon")


def test_classes_of_objects_and_pixels(data: Labelled) -> None:
    mask = data.mask(1)
    assert data.object_classes(1, torch.tensor([1, 2])).tolist() == [2, 1]
    classes = data.pixel_classes(1, mask)
    assert ((classes == 2) == (mask == 1)).all() and ((classes == 1) == (mask == 2)).all()
    cut = torch.nn.functional.pad(mask[9:, 10:], (0, 2), value=-1)  # a part of it, with pixels added around
    assert (data.pixel_classes(1, cut)[:, -2:] == -1).all()
    assert data.pixel_classes(1, cut).unique().tolist() == [-1, 0, 1]
    with pytest.raises(UserError, match="no class for object 7"):
        data.object_classes(1, torch.tensor([7]))


def test_the_fingerprint_is_of_the_content(data: Labelled, tmp_path: Path) -> None:
    moved = shutil.copytree(data.folder, tmp_path / "elsewhere")
    assert Labelled.open(moved).fingerprint == data.fingerprint
    rows = (moved / "items.csv").read_text()
    (moved / "items.csv").write_text(rows.replace("testA", "train"))
    assert Labelled.open(moved).fingerprint != data.fingerprint


def test_changed_classes_of_objects_are_other_content_and_named(data: Labelled) -> None:
    before, file, facts = data.fingerprint, data.folder / "objects.csv", data.folder / "dataset.json"
    file.write_text(file.read_text().replace("image2.png,1,2", "image2.png,1,1"))
    changed = Labelled.open(data.folder)
    assert changed.fingerprint != before
    with pytest.raises(UserError, match=r"objects\.csv was changed since it was prepared"):
        changed.verify()
    known = json.loads(facts.read_text())
    del known["objects_sha256"]  # as of a set that was prepared before it was written down
    facts.write_text(json.dumps(known))
    Labelled.open(data.folder).verify()
    for broken in ("path,object\nimages/image0.png,1\n", "path,object,class\nimages/image0.png,1,gland\n"):
        file.write_text(broken)
        with pytest.raises(UserError, match=r"objects\.csv does not hold path, object and class .*: prepare"):
            _ = Labelled.open(data.folder).fingerprint


def test_a_changed_file_is_named(data: Labelled) -> None:
    data.verify()
    path = data.folder / data.items[2].mask
    path.write_bytes((data.folder / data.items[3].path).read_bytes())
    with pytest.raises(UserError, match=f"{path.name} was changed"):
        data.verify()


@pytest.mark.parametrize("lacks", ["dataset.json", "items.csv"])
def test_what_is_no_prepared_set_is_named(data: Labelled, lacks: str) -> None:
    (data.folder / lacks).write_text("nothing")
    with pytest.raises(UserError, match="colocate prepare"):
        Labelled.open(data.folder)
    (data.folder / lacks).unlink()
    with pytest.raises(UserError, match=rf"{lacks} cannot be read|has no dataset\.json: give a folder that"):
        Labelled.open(data.folder)
