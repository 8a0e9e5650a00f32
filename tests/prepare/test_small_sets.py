"""CRAG, EBHI-Seg and NCT-CRC-HE from small files of their releases' layouts, and EBHI-Seg's real tiles."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from colocate.base.errors import UserError
from colocate.cli.main import main
from colocate.data.index import Index
from colocate.datasets import crag, ebhi, nct
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import write
from tests.prepare.releases import row_of_objects, save, write_crag, write_ebhi, write_nct


def prepared(kind: ModuleType, src: Path, out: Path, partial: bool = True) -> Labelled:
    return write(out, *kind.drafts(src), partial=partial)


@pytest.mark.parametrize(("valid", "annotation"), [("valid", "Annotation"), ("test", "Annotations")])
@pytest.mark.parametrize("nested", [False, True])
def test_the_layouts_of_crag(valid: str, annotation: str, nested: bool, tmp_path: Path) -> None:
    src = tmp_path / "src"
    folder = write_crag(src / "CRAG" if nested else src, valid, annotation)
    data = prepared(crag, src, tmp_path / "out")
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


def test_the_extra_annotations_of_crags_version_1(tmp_path: Path) -> None:
    src = write_crag(tmp_path / "src")
    for number in range(41, 46):
        save(row_of_objects(2, 10, 8), src / "valid" / "Annotation" / f"test_{number}.png")
    data = prepared(crag, src, tmp_path / "out")
    assert len(data) == 5
    assert "5 annotations have no tile and were left out." in data.notes


def test_what_crag_lacks_is_named(tmp_path: Path) -> None:
    src = write_crag(tmp_path / "src")
    with pytest.raises(UserError, match=r"crag: 3 train instead of 173, 2 test instead of 40: get what is missing"):
        prepared(crag, src, tmp_path / "out", partial=False)
    (src / "train" / "Annotation" / "train_2.png").unlink()
    with pytest.raises(UserError, match=r"Images/train_2.png has no mask in .*train/Annotation"):
        crag.drafts(src)
    (src / "valid").rename(src / "validation")
    with pytest.raises(UserError, match=r"train_2|has no folder valid or test"):
        crag.drafts(src)
    (src / "train").rename(src / "training")
    with pytest.raises(UserError, match=r"src has no folder train: give the folder of the files as released"):
        crag.drafts(src)


@pytest.mark.parametrize("separator", [" ", "_", "-"])
def test_the_layouts_of_ebhi(separator: str, tmp_path: Path) -> None:
    src = write_ebhi(tmp_path / "src", separator)
    data = prepared(ebhi, src, tmp_path / "out")
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


def test_grey_masks_of_ebhi_are_glands_wherever_they_are_not_black(tmp_path: Path) -> None:
    src = write_ebhi(tmp_path / "src")
    mask = row_of_objects(3, 8, 8)
    mask[0, :3] = (255, 1, 128)
    save(mask, src / "Adenocarcinoma" / "label" / "GT2001837-1-400-001.png")
    assert prepared(ebhi, src, tmp_path / "out").mask(0).flatten()[:4].tolist() == [1, 1, 1, 0]


def test_what_ebhi_lacks_is_named(tmp_path: Path) -> None:
    src = write_ebhi(tmp_path / "src")
    with pytest.raises(UserError, match=r"ebhi-seg: 12 images instead of 2,226: get what is missing"):
        prepared(ebhi, src, tmp_path / "out", partial=False)
    polyp = src / "Polyp" / "image"
    (polyp / "GT2012400-1-400-001.png").rename(polyp / "GT201240-1-400-001.png")
    with pytest.raises(UserError, match=r"label/GT2012400-1-400-001.png has no image in .*Polyp: get it again"):
        ebhi.drafts(src)
    (src / "Polyp" / "label" / "GT2012400-1-400-001.png").rename(src / "Polyp" / "label" / "GT201240-1-400-001.png")
    with pytest.raises(UserError, match=r"GT201240-1-400-001.png has no 7-digit case number in its name: undo"):
        ebhi.drafts(src)
    (src / "Normal").rename(src / "Norm")
    with pytest.raises(UserError, match=r"src has no folder Normal: give the folder"):
        ebhi.drafts(src)


@pytest.mark.slow
def test_the_real_tiles_of_ebhi(shared_data: Path, tmp_path: Path) -> None:
    src = shared_data / "ebhi-seg"
    data = prepared(ebhi, src, tmp_path / "out", partial=False)
    assert len(data) == 2226 and len({item.source for item in data.items}) == 340
    train, test = ({data.items[n].source for n in numbers} for numbers in (data.train("cases"), data.test("cases")))
    assert not train & test and (len(train), len(test)) == (240, 100)
    for source in test:
        digits = re.findall("[0-9]+", source)[-1]
        assert int(hashlib.sha256(digits.encode()).hexdigest(), 16) % 10 < 3
    for number in range(0, 2226, 200):
        name = data.items[number].name
        tissue = next(folder.name for folder in src.iterdir() if name.startswith(folder.name))
        stem = name.removeprefix(f"{tissue}_")
        assert (data.folder / data.items[number].path).read_bytes() == (
            src / tissue / "image" / f"{stem}.jpg"
        ).read_bytes()
        with Image.open(src / tissue / "label" / f"{stem}.png") as mask:
            assert torch.equal(data.mask(number), torch.from_numpy(np.array(mask).astype(np.int32)))


@pytest.mark.parametrize("inside", [False, True])
def test_the_table_of_nct_lists_every_tile(inside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = write_nct(tmp_path / "NCT-CRC-HE-100K", nct.TISSUES)
    out = tmp_path / ("tiles.csv" if inside else "elsewhere/tiles.csv")
    main(["prepare", "nct-crc-he", str(src), str(out)])
    first, second, *_, last = capsys.readouterr().out.splitlines()
    assert first == "18 tiles: ADI 2, BACK 2, DEB 2, LYM 2, MUC 2, MUS 2, NORM 2, STR 2, TUM 2"
    assert second.startswith("not all of a release?") and last == f"done: pretrain with --data {out}"
    assert out.read_text().splitlines()[1].startswith("/") is not inside
    index = Index.build(out, tmp_path / "index.arrow")
    assert sorted(index.name(n) for n in range(len(index))) == sorted(map(str, src.glob("*/*.tif")))
    assert set(index.mpp.tolist()) == {0.5}
    assert {Path(source).name for source in index.sources} == set(nct.TISSUES)
    assert index.read(0).shape == (3, 8, 8)


def test_the_table_of_nct_may_lie_among_its_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nct(tmp_path / "tiles", nct.TISSUES)
    monkeypatch.chdir(tmp_path / "tiles")
    nct.list_tiles(Path(), Path("all.csv"))
    assert len(Index.build("all.csv", tmp_path / "index.arrow")) == 18


def test_nothing_to_note_of_the_whole_of_nct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nct, "RELEASES", (18,))
    notes = nct.list_tiles(write_nct(tmp_path / "CRC-VAL-HE-7K", nct.TISSUES), tmp_path / "val.csv")
    assert len(notes) == 2 and notes[1].startswith("the tiles of CRC-VAL-HE-7K are of other patients")


def test_what_nct_lacks_is_named(tmp_path: Path) -> None:
    src = write_nct(tmp_path / "src", nct.TISSUES)
    with pytest.raises(UserError, match=r"out would hold a table, .*: give OUT a name ending in \.csv"):
        nct.list_tiles(src, tmp_path / "out")
    (src / "MUS").rename(src / "muscle")
    with pytest.raises(UserError, match=r"src has no folder MUS: give the folder"):
        nct.list_tiles(src, tmp_path / "out.csv")
    (src / "MUS").mkdir()
    with pytest.raises(UserError, match=r"src/MUS holds no tiles: unpack the release again"):
        nct.list_tiles(src, tmp_path / "out.csv")
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(UserError, match=r"out.csv exists .*: choose another OUT"):
        nct.list_tiles(src, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "mine"
