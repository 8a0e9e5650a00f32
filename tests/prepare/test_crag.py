"""CRAG from small files of the release's layout; the release itself cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from colocate.base.errors import UserError
from colocate.datasets import crag
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import write
from tests.prepare.releases import row_of_objects, save, write_crag


def prepared(src: Path, out: Path, partial: bool = True) -> Labelled:
    facts, drafts = crag.drafts(src)
    return write(out, facts, drafts, partial=partial)


@pytest.mark.parametrize(("valid", "annotation"), [("valid", "Annotation"), ("test", "Annotations")])
@pytest.mark.parametrize("nested", [False, True])
def test_the_layouts(valid: str, annotation: str, nested: bool, tmp_path: Path) -> None:
    src = tmp_path / "src"
    folder = write_crag(src / "CRAG" if nested else src, valid, annotation)
    data = prepared(src, tmp_path / "out")
    assert data.parts("official") == {"train": [0, 1, 2], "test": [3, 4]}
    for number, item in enumerate(data.items):
        part, ordinal = ("train", number + 1) if number < 3 else (valid, number - 2)
        assert (item.source, item.mpp) == ("", 0.5)
        image = folder / part / "Images" / f"{item.name}.png"
        assert (data.folder / item.path).read_bytes() == image.read_bytes()
        with Image.open(folder / part / annotation / f"{item.name}.png") as mask:
            assert torch.equal(data.mask(number), torch.from_numpy(np.array(mask).astype(np.int32)))
        assert data.mask(number).max() == ordinal
    assert data.notes[-1] == "Not the complete data set: 3 train instead of 173, 2 test instead of 40."


def test_all_tiles(tmp_path: Path) -> None:
    data = prepared(write_crag(tmp_path / "src", counts=(173, 40)), tmp_path / "out", partial=False)
    assert (len(data.train("official")), len(data.test("official"))) == (173, 40)
    assert len(data.notes) == 1


def test_the_extra_annotations_of_version_1(tmp_path: Path) -> None:
    src = write_crag(tmp_path / "src")
    for number in range(41, 46):
        save(row_of_objects(2, 10, 8), src / "valid" / "Annotation" / f"test_{number}.png")
    data = prepared(src, tmp_path / "out")
    assert len(data) == 5
    assert "5 annotations have no tile and were left out." in data.notes


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    src = write_crag(tmp_path / "src")
    with pytest.raises(UserError, match=r"crag: 3 train instead of 173, 2 test instead of 40: get what is missing"):
        prepared(src, tmp_path / "out", partial=False)
    (src / "train" / "Annotation" / "train_2.png").unlink()
    with pytest.raises(UserError, match=r"Images/train_2.png has no mask in .*train/Annotation"):
        crag.drafts(src)
    (src / "valid").rename(src / "validation")
    with pytest.raises(UserError, match=r"train_2|has no folder valid or test"):
        crag.drafts(src)
    (src / "train").rename(src / "training")
    with pytest.raises(UserError, match=r"src has no folder train: give the folder of the files as released"):
        crag.drafts(src)
