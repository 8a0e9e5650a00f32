"""A folder of images and masks of one's own."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from colocate.base.errors import UserError
from colocate.datasets import folder
from colocate.datasets.labelled import Labelled
from colocate.datasets.own import read_items
from colocate.datasets.writer import write
from tests.data.pictures import picture
from tests.prepare.releases import row_of_objects, save, write_folder


def prepared(src: Path, out: Path, **options: object) -> Labelled:
    facts, drafts = folder.drafts(src, **options)  # type: ignore[arg-type]
    return write(out, facts, drafts)


def test_instances(tmp_path: Path) -> None:
    data = prepared(write_folder(tmp_path / "mine"), tmp_path / "out", mpp=0.5, classes=("nucleus",))
    assert (data.name, data.kind, data.classes) == ("mine", "instances", ("nucleus",))
    assert [item.mpp for item in data.items] == [0.5] * 5
    assert data.mask(2).unique().tolist() == [0, 1, 2, 3]
    assert (len(data.train("images")), len(data.test("images"))) == (4, 1)
    assert data.notes == ("mine names no cases: a patient may be on both sides.",)


def test_folders_of_any_name_and_depth(tmp_path: Path) -> None:
    src = write_folder(tmp_path / "mine")
    for name, place in (("images", "a/My pictures"), ("masks", "b/c/labels")):
        (src / place).parent.mkdir(parents=True)
        (src / name).rename(src / place)
    data = prepared(src, tmp_path / "out", images="a/My pictures", masks="b/c/labels", mpp=0.5)
    assert len(data.items) == 5 and data.mask(2).unique().tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="has no folder b/c/labelz"):
        folder.drafts(src, images="a/My pictures", masks="b/c/labelz")


def test_images_in_folders_of_their_own_are_told(tmp_path: Path) -> None:
    src = write_folder(tmp_path / "mine")
    for name in ("images", "masks"):
        (src / name / "deep" / "er").mkdir(parents=True)
        for path in sorted((src / name).glob("t0.*")):
            path.rename(src / name / "deep" / "er" / path.name)
    (src / "masks" / "notes").mkdir()
    data = prepared(src, tmp_path / "some")
    assert len(data.items) == 4 and "Images in folders below images, left out: deep." in data.notes
    for path in [*src.glob("*/t*")]:
        path.rename(path.parent / "deep" / path.name)
    with pytest.raises(UserError, match=r"mine/images holds no image but in its folders \(deep\): give --images"):
        prepared(src, tmp_path / "none")


def test_classes_and_an_ignored_one(tmp_path: Path) -> None:
    src = write_folder(tmp_path / "mine")
    mask = row_of_objects(2, 10, 8)
    mask[7, 7] = 255
    save(mask, src / "masks" / "t0.png")
    options = {"semantics": True, "classes": ("a", "b", "c", "d")}
    with pytest.raises(
        UserError, match=r"t0.jpg: its mask holds class 255, but classes are 0 to 3: name them all .*--ig"
    ):
        prepared(src, tmp_path / "out", **options)
    data = prepared(src, tmp_path / "out", ignored=255, **options)
    assert data.ignored == 255 and data.mask(0).unique().tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize("bits", [1, 8])
def test_black_and_white_masks_have_two_classes_but_no_objects(bits: int, tmp_path: Path) -> None:
    src = write_folder(tmp_path / "mine")
    for path in (src / "masks").iterdir():
        white = row_of_objects(7, 10, 8) > 0
        save(white if bits == 1 else white.astype(np.uint8) * 255, path)
    data = prepared(src, tmp_path / "out", semantics=True, classes=("other", "gland"))
    assert all(data.mask(number).sum() == 7 for number in range(5))
    with pytest.raises(
        UserError, match=r"masks/t0.png is black and white, .*: number the objects from 1, or .*--seman"
    ):
        prepared(src, tmp_path / "objects")
    with pytest.raises(UserError, match=r"class 255, but .* 0 to 2: save white as .* such as 1, or name two"):
        prepared(src, tmp_path / "three", semantics=True, classes=("other", "gland", "lumen"))


def test_what_a_table_says(tmp_path: Path) -> None:
    src = write_folder(tmp_path / "mine")
    lines = [
        "path,split,source,mpp",
        *(f"t{n}.jpg,{'test' if n > 2 else 'train'},c{n},0.{n + 1}" for n in range(4)),
        "t4,,c9,",
    ]
    (src / "items.csv").write_text("\n".join(lines))
    data = prepared(src, tmp_path / "out", mpp=2.0)
    assert data.parts("given") == {"train": [0, 1, 2], "test": [3]}
    assert [item.source for item in data.items] == ["c0", "c1", "c2", "c3", "c9"]
    assert [item.mpp for item in data.items] == [0.1, 0.2, 0.3, 0.4, 2.0]
    assert data.notes == ()


@pytest.mark.parametrize("words", [("train", "test"), ("Train", "Test"), ("TRAIN ", " TEST")])
def test_a_table_as_spreadsheets_save_it(tmp_path: Path, words: tuple[str, str]) -> None:
    """With any separator and encoding: tests/test_tables.py."""
    rows = [f't{n}.jpg;Müller {n};"0,5";{"train" if n == 1 else words[n > 2]}' for n in range(5)]
    (tmp_path / "items.csv").write_bytes("\r\n".join(["path;source;mpp;split", *rows]).encode("utf-16"))
    known = read_items(tmp_path / "items.csv", [f"t{n}" for n in range(5)], None)
    assert known == {f"t{n}": (f"Müller {n}", 0.5, "test" if n > 2 else "train") for n in range(5)}


@pytest.mark.parametrize("ending", ["", ".png"])
def test_names_with_blanks_at_their_ends(ending: str, tmp_path: Path) -> None:
    """Tables are read without blanks around their values."""
    src = tmp_path / "mine"
    for number, name in enumerate((" a", "b ", " c ")):
        save(picture(number, 10, 8), src / "images" / f"{name}.png")
        save(row_of_objects(2, 10, 8), src / "masks" / f"{name}.png")
    (src / "items.csv").write_text(f"path,source\n a{ending},1\nb {ending},2\n c {ending},3\n")
    data = prepared(src, tmp_path / "out")
    assert {item.name: item.source for item in data.items} == {" a": "1", "b ": "2", " c ": "3"}


def test_accents_are_the_same_letters_however_a_computer_writes_them(tmp_path: Path) -> None:
    """macOS writes a letter and its accent in names of files; tables have them as one character."""
    apart, one = (unicodedata.normalize(form, "Müller") for form in ("NFD", "NFC"))
    src = tmp_path / "mine"
    for number in range(3):
        save(picture(number, 10, 8), src / "images" / f"{apart}{number}.png")
        save(row_of_objects(2, 10, 8), src / "masks" / f"{one}{number}.png")
    lines = [f"{one}0.png,{apart}", f"{apart}1,{one}", f"{one}2,other"]
    (src / "items.csv").write_text("\n".join(["path,source", *lines]))
    data = prepared(src, tmp_path / "out", test_share=0.4)
    assert [(item.name, item.source) for item in data.items] == [(f"{one}{n}", one) for n in (0, 1)] + [
        (f"{one}2", "other")
    ]
    assert not data.shared_sources("cases")


def test_a_case_is_on_one_side(tmp_path: Path) -> None:
    src = write_folder(tmp_path / "mine", 20)
    (src / "items.csv").write_text("path,source\n" + "\n".join(f"t{n},c{n // 4}" for n in range(20)))
    data = prepared(src, tmp_path / "out", test_share=0.4)
    assert not data.shared_sources("cases")
    assert (len(data.train("cases")), len(data.test("cases"))) == (12, 8)
    again = prepared(src, tmp_path / "again", test_share=0.4)
    assert again.fingerprint == data.fingerprint


def test_cases_known_in_part_are_said(tmp_path: Path) -> None:
    src = write_folder(tmp_path / "mine")
    (src / "items.csv").write_text("path,source\nt0,c0\nt1,c0\nt2,\nt3,\nt4,\n")
    said = "mine names no case for 3 of its 5 images: a patient may be on both sides."
    assert prepared(src, tmp_path / "out").notes == (said,)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"semantics": True}, r"classes in the masks have no names: give --classes"),
        ({"classes": ("a", "b")}, r"do not hold their classes: give one of --classes, or --semantics"),
        ({"ignored": 0}, r"--ignored is a class, .*: leave it out, or add --semantics"),
        ({"ignored": 300, "semantics": True, "classes": ("a", "b")}, r"--ignored 300 does not fit in 8 bits"),
        ({"images": "pictures"}, r"mine has no folder pictures: say with --images"),
        ({"test_share": 1.0}, r"--test-share 1 leaves a side without images: give a number between 0 and 1"),
        ({"mpp": 0.0}, r"t0.jpg: 0 micrometres per pixel is no resolution"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        prepared(write_folder(tmp_path / "mine"), tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("image\nt0\n", r"items.csv has the columns image"),
        ("path,case\nt0,3\n", r"items.csv has the columns path, case"),
        ("Path,source\nt0,3\n", r"items.csv has a column `Path`: write it `path`"),
        ("path\nt0\nt9\n", r"items.csv, line 3 is not among the images: t9"),
        ("path\nt0\nt0.jpg\n", r"items.csv, line 3 is a second line of t0.jpg|line 3 is a second line of: t0.jpg"),
        ("path\nt0\n", r"items.csv has no line for t1: add it, or remove the table"),
        ("path,mpp\nt0,20x\n", r"items.csv: column `mpp` holds string, not double .*20x"),
        ("path,split\n" + "".join(f"t{n},TRAIN\n" for n in range(5)), r"split given has the parts train: it needs"),
        ("path,split\nt0,train\nt1,training\n", r"items.csv, line 3 has the split 'training': write train, a name"),
        ("path,split\nt0,train\nt1,tset\n", r"items.csv, line 3 has the split 'tset'"),
    ],
)
def test_tables_that_do_not_fit(table: str, says: str, tmp_path: Path) -> None:
    src = write_folder(tmp_path / "mine")
    (src / "items.csv").write_text(table)
    with pytest.raises(UserError, match=says):
        prepared(src, tmp_path / "out")


def test_missing_masks_are_named(tmp_path: Path) -> None:
    src = write_folder(tmp_path / "mine")
    for name in ("t1", "t3"):
        (src / "masks" / f"{name}.png").unlink()
    with pytest.raises(UserError, match=r"t1.jpg has no mask in .*masks \(1 more like it\): get it again"):
        prepared(src, tmp_path / "out")
