"""What goes in comes out when the data set is opened; and all of it is there, or nothing."""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from colocate.base.errors import UserError
from colocate.data.index import Index
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import Draft, Facts, write
from tests.data.pictures import packed, picture

FACTS = Facts("made-up", "instances", ("gland",), "free", notes=("a note",))
CLASSES = Facts("made-up", "semantics", ("other", "gland", "tumour"), "free", ignored=0)


def pixels(seed: int, height: int = 8, width: int = 10) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def ids(seed: int, most: int = 4, height: int = 8, width: int = 10) -> torch.Tensor:
    drawn = torch.randint(0, most + 1, (height, width), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.int32)


def drafts(count: int = 6, most: int = 4) -> Iterator[Draft]:
    for n in range(count):
        splits = {"half": "test" if n % 2 else "train", "third": ("train", "testA", "")[n % 3]}
        yield Draft(f"i{n}", pixels(n), ids(n, most), f"x:{n // 2}", 0.25 * (n + 1), splits)


def test_everything_comes_back(tmp_path: Path) -> None:
    data = write(tmp_path / "out", FACTS, drafts())
    assert (data.name, data.kind, data.classes, data.licence) == ("made-up", "instances", ("gland",), "free")
    assert data.notes == ("a note",) and data.ignored is None and data.schemes == ("half", "third")
    for number, draft in enumerate(drafts()):
        item = data.items[number]
        assert (item.name, item.source, item.mpp, item.splits) == (draft.name, draft.source, draft.mpp, draft.splits)
        assert torch.equal(data.image(number), draft.image)  # type: ignore[arg-type]
        assert torch.equal(data.mask(number), draft.mask)
    assert data.train("half") == [0, 2, 4] and data.test("third") == [1, 4]
    data.verify()
    assert Labelled.open(tmp_path / "out").fingerprint == data.fingerprint
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "contact-sheet.png", "dataset.json", "images", "items.csv", "masks", "train-half.csv", "train-third.csv",
    ]  # fmt: skip


def test_the_same_bytes_wherever_it_is_written(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        write(tmp_path / name, FACTS, drafts())
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 12 + 5
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b/c" / file).read_bytes() for file in files)


def test_objects_are_numbered_in_order_and_may_have_several_parts(tmp_path: Path) -> None:
    mask = torch.zeros(6, 9, dtype=torch.int32)
    mask[0, 0], mask[5, 8], mask[2, 2:4], mask[4, 1] = 7, 7, 70_000, 12
    data = write(tmp_path / "out", FACTS, [Draft("a", pixels(0, 6, 9), mask)])
    wanted = torch.zeros_like(mask)
    wanted[0, 0], wanted[5, 8], wanted[2, 2:4], wanted[4, 1] = 1, 1, 3, 2
    assert torch.equal(data.mask(0), wanted)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["counts"]["objects"] == 3


@pytest.mark.parametrize(("objects", "mode"), [(255, "L"), (256, "I;16"), (65_535, "I;16")])
def test_masks_of_8_and_16_bits(objects: int, mode: str, tmp_path: Path) -> None:
    mask = torch.arange(257 * 256, dtype=torch.int32).reshape(257, 256) % (objects + 1)
    data = write(tmp_path / "out", FACTS, [Draft("a", pixels(0, 257, 256), mask)])
    with Image.open(tmp_path / "out" / "masks" / "a.png") as image:
        assert image.mode == mode
    assert torch.equal(data.mask(0), mask)


def test_classes_of_objects(tmp_path: Path) -> None:
    facts = Facts("nuclei", "instances", ("round", "long"), "free")
    mask = torch.tensor([[0, 9, 4], [4, 9, 30]], dtype=torch.int32)
    data = write(tmp_path / "out", facts, [Draft("a", pixels(0, 2, 3), mask, object_classes={9: 2, 4: 1, 30: 2})])
    assert data.object_classes(0, torch.tensor([1, 2, 3])).tolist() == [1, 2, 2]
    counts = json.loads((tmp_path / "out" / "dataset.json").read_text())["counts"]
    assert counts["objects of class"] == {"round": 1, "long": 2}
    assert counts["pixels of class"] == {"background": 1, "round": 2, "long": 3}


def test_counts_are_those_of_numpy(tmp_path: Path) -> None:
    masks = [ids(n, 2) for n in range(6)]
    made = [draft._replace(mask=mask) for draft, mask in zip(drafts(), masks, strict=True)]
    data = write(tmp_path / "out", CLASSES, made)
    values = np.concatenate([mask.ravel() for mask in masks])
    counts = json.loads((tmp_path / "out" / "dataset.json").read_text())["counts"]
    assert counts == {
        "images": 6,
        "sources": 3,
        "parts": {"half": {"train": 3, "test": 3}, "third": {"train": 2, "testA": 2}},
        "pixels of class": {name: int((values == n).sum()) for n, name in enumerate(CLASSES.classes)},
    }
    assert all(torch.equal(data.mask(number), masks[number]) for number in range(6))


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "tif"])
def test_files_are_copied_or_kept_without_loss(ending: str, tmp_path: Path) -> None:
    options = {"lossless": True} if ending == "webp" else {}
    file = tmp_path / f"in.{ending}"
    file.write_bytes(packed(picture(3, 10, 8), ending, **options))
    data = write(tmp_path / "out", FACTS, [Draft("a", file, ids(0))])
    stored = tmp_path / "out" / data.items[0].path
    if ending in ("png", "jpg"):
        assert stored.suffix == f".{ending}" and stored.read_bytes() == file.read_bytes()
    else:
        assert stored.suffix == ".png"
    with Image.open(file) as image:
        assert torch.equal(data.image(0).permute(1, 2, 0), torch.from_numpy(np.array(image)))


def test_pretraining_cannot_take_a_test_image(tmp_path: Path) -> None:
    data = write(tmp_path / "out", FACTS, drafts())
    for scheme in data.schemes:
        index = Index.build(tmp_path / "out" / f"train-{scheme}.csv", tmp_path / "index.arrow")
        wanted = [data.items[number] for number in data.train(scheme)]
        assert [index.name(n) for n in range(len(index))] == [str(tmp_path / "out" / item.path) for item in wanted]
        assert index.mpp.tolist() == [item.mpp for item in wanted]
        assert [index.sources[n] for n in index.source_numbers] == [item.source for item in wanted]


def test_what_is_unknown_stays_so(tmp_path: Path) -> None:
    data = write(tmp_path / "out", FACTS, [Draft("a", pixels(0), ids(0))])
    assert data.items[0].source == "" and np.isnan(data.items[0].mpp) and data.schemes == ()
    with (tmp_path / "out" / "items.csv").open() as file:
        assert next(csv.DictReader(file))["mpp"] == ""


def test_an_image_is_written_before_the_next_is_made(tmp_path: Path) -> None:
    def watched() -> Iterator[Draft]:
        for number, draft in enumerate(drafts()):
            yield draft
            assert len(list(tmp_path.glob(".out.part/images/*"))) == number + 1

    write(tmp_path / "out", FACTS, watched())


def test_counts_other_than_expected(tmp_path: Path) -> None:
    facts = Facts("made-up", "instances", ("gland",), "free", expected={"train": 3, "objects": 25, "images": 7})
    with pytest.raises(UserError, match=r"made-up: 24 objects instead of 25, 6 images instead of 7: .*--partial"):
        write(tmp_path / "out", facts, drafts())
    assert list(tmp_path.iterdir()) == []
    data = write(tmp_path / "out", facts, drafts(), partial=True)
    assert data.notes == ("Not the complete data set: 24 objects instead of 25, 6 images instead of 7.",)


TWO = Facts("made", "instances", ("gland", "vessel"), "none")
MANY = 65_537
BAD = [
    (replace(TWO, classes=("a", "a")), Draft("a", pixels(0), ids(0)), "two classes of pixels are called a: give each"),
    (replace(TWO, classes=("background",)), Draft("a", pixels(0), ids(0)), "two classes of pixels are called backg"),
    (FACTS, Draft("a", pixels(0), ids(0, height=7)), r"a is 10 x 8 px and its mask 10 x 7: .* get it again"),
    (FACTS, Draft("a", pixels(0), -ids(0)), r"a: its mask holds the object -4: number objects from 1"),
    (FACTS, Draft("i0", pixels(0), ids(0)), r"i0: a second image is named 'i0': rename"),
    (FACTS, Draft("a", pixels(0), ids(0), mpp=-1), r"a: -1 micrometres per pixel is no resolution"),
    (FACTS, Draft("a", Path("nowhere.png"), ids(0)), r"was not written \(nowhere.png: No such file"),
    (TWO, Draft("a", pixels(0), ids(0)), r"a: object 1 has no class of 1 to 2 \(gland, vessel\): add it"),
    (CLASSES, Draft("a", pixels(0), ids(0)), r"a: its mask holds class 3, but classes are 0 to 2: name them all"),
    (FACTS, Draft("a", pixels(0), ids(0), splits={"mine": "training"}), r"split mine has the parts training: it needs"),
    (
        FACTS,
        Draft("a", pixels(0, 1, MANY), torch.arange(MANY).int().view(1, -1)),
        r"a: 65,536 objects are more than fit in 16 bits: cut the image",
    ),
]


@pytest.mark.parametrize(("facts", "draft", "says"), BAD)
def test_what_cannot_be_is_named_and_nothing_written(facts: Facts, draft: Draft, says: str, tmp_path: Path) -> None:
    before = [Draft("i0", pixels(0), ids(0, 1), object_classes={1: 1})]
    with pytest.raises(UserError, match=says):
        write(tmp_path / "out", facts, [*before, draft])
    assert list(tmp_path.iterdir()) == []


def test_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made-up: there is no labelled image"):
        write(tmp_path / "out", FACTS, [])
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken_and_a_full_one_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", FACTS, drafts(2))
    kept = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for taken in (tmp_path / "out", tmp_path / "out" / "items.csv"):
        with pytest.raises(UserError, match="exists and is not an empty folder: choose another OUT, or remove it"):
            write(taken, FACTS, drafts(6))
    assert kept == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_stopped_halfway_nothing_is_left(tmp_path: Path) -> None:
    def stopped() -> Iterator[Draft]:
        yield from drafts(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", FACTS, stopped())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_and_two_do_not_write_at_once(tmp_path: Path) -> None:
    (tmp_path / ".out.part" / "images").mkdir(parents=True)

    def others() -> Iterator[Draft]:
        with pytest.raises(UserError, match=r"out is being written by another process: let it end"):
            write(tmp_path / "out", FACTS, drafts(2))
        yield from drafts(2)

    write(tmp_path / "out", FACTS, others())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "i3.png":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"out was not written \(the disk is full\): mend this and run it again"):
        write(tmp_path / "out", FACTS, drafts())
    assert list(tmp_path.iterdir()) == []
