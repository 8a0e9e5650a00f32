"""EBHI-Seg from small files of the release's layout, and from the real tiles."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from colocate.base.errors import UserError
from colocate.datasets import ebhi
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import write
from tests.prepare.releases import row_of_objects, save, write_ebhi


def prepared(src: Path, out: Path, partial: bool = True) -> Labelled:
    facts, drafts = ebhi.drafts(src)
    return write(out, facts, drafts, partial=partial)


@pytest.mark.parametrize("separator", [" ", "_", "-"])
def test_the_layouts(separator: str, tmp_path: Path) -> None:
    src = write_ebhi(tmp_path / "src", separator)
    data = prepared(src, tmp_path / "out")
    assert (data.kind, data.classes, len(data)) == ("semantics", ("other", "gland"), 12)
    assert "Left out, for they have no mask: GT2012149-2-400-001 (1 in all)." in data.notes
    assert data.notes[-1] == "Not the complete data set: 12 images instead of 2,226."
    assert len({item.name for item in data.items}) == 12  # one name comes in all six folders
    assert data.items[0].name == "Adenocarcinoma_GT2001837-1-400-001"
    assert data.items[0].source == "ebhi-seg:2001837"
    for number, item in enumerate(data.items):
        assert data.mask(number).sum() == number // 2 + 1
        assert np.isnan(item.mpp)
    assert not data.shared_sources("cases")


def test_grey_masks_are_glands_wherever_they_are_not_black(tmp_path: Path) -> None:
    src = write_ebhi(tmp_path / "src")
    mask = row_of_objects(3, 8, 8)
    mask[0, :3] = (255, 1, 128)
    save(mask, src / "Adenocarcinoma" / "label" / "GT2001837-1-400-001.png")
    assert prepared(src, tmp_path / "out").mask(0).flatten()[:4].tolist() == [1, 1, 1, 0]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    src = write_ebhi(tmp_path / "src")
    with pytest.raises(UserError, match=r"ebhi-seg: 12 images instead of 2,226: get what is missing"):
        prepared(src, tmp_path / "out", partial=False)
    polyp = src / "Polyp" / "image"
    (polyp / "GT2012400-1-400-001.png").rename(polyp / "GT201240-1-400-001.png")
    with pytest.raises(
        UserError, match=r"label/GT2012400-1-400-001.png has no image in .*Polyp: get it again, or undo"
    ):
        ebhi.drafts(src)
    (src / "Polyp" / "label" / "GT2012400-1-400-001.png").rename(src / "Polyp" / "label" / "GT201240-1-400-001.png")
    with pytest.raises(UserError, match=r"GT201240-1-400-001.png has no 7-digit case number in its name: undo"):
        ebhi.drafts(src)
    (src / "Normal").rename(src / "Norm")
    with pytest.raises(UserError, match=r"src has no folder Normal: give the folder"):
        ebhi.drafts(src)


def test_the_real_tiles(shared_data: Path, tmp_path: Path) -> None:
    src = shared_data / "ebhi-seg"
    data = prepared(src, tmp_path / "out", partial=False)
    assert len(data) == 2226 and len({item.source for item in data.items}) == 340
    train, test = ({data.items[n].source for n in numbers} for numbers in (data.train("cases"), data.test("cases")))
    assert not train & test and (len(train), len(test)) == (240, 100)
    for source in test:
        digits = re.findall("[0-9]+", source)[-1]
        assert int(hashlib.sha256(digits.encode()).hexdigest(), 16) % 10 < 3
    glands = 0
    for path in src.glob("*/label/*.png"):
        with Image.open(path) as mask:
            glands += int(np.array(mask).sum())
    counts = json.loads((tmp_path / "out" / "dataset.json").read_text())["counts"]
    assert counts["pixels of class"] == {"other": 2226 * 224 * 224 - glands, "gland": glands}
    for number in range(0, 2226, 200):
        name = data.items[number].name
        tissue = next(folder.name for folder in src.iterdir() if name.startswith(folder.name))
        stem = name.removeprefix(f"{tissue}_")
        assert (data.folder / data.items[number].path).read_bytes() == (
            src / tissue / "image" / f"{stem}.jpg"
        ).read_bytes()
        with Image.open(src / tissue / "label" / f"{stem}.png") as mask:
            assert torch.equal(data.mask(number), torch.from_numpy(np.array(mask).astype(np.int32)))
