"""Masks of every bit depth, and splits by hash."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import tifffile
from hypothesis import given
from PIL import Image

from colocate.base.errors import UserError
from colocate.datasets.files import by_stem, folder_in, read_mask
from colocate.datasets.own import split_by_case
from tests.data.pictures import png
from tests.prepare.releases import save

VALUES = np.array([[0, 1, 2], [7, 200, 255]], np.uint8)


@pytest.mark.parametrize(
    ("values", "ending"),
    [*((VALUES, ending) for ending in ("png", "bmp", "tif")), (VALUES.astype(np.uint16) * 250, "png"),
     (VALUES.astype(np.int32) * 2500, "tif")],
)  # fmt: skip
def test_eight_sixteen_and_thirty_two_bits(values: np.ndarray, ending: str, tmp_path: Path) -> None:
    assert read_mask(save(values, tmp_path / f"m.{ending}")).tolist() == values.tolist()


def test_palettes_and_grey_in_channels_count_as_their_numbers(tmp_path: Path) -> None:
    image = Image.fromarray(VALUES).convert("P")
    image.putdata(VALUES.ravel().tolist())
    image.putpalette([(7 * n) % 256 for n in range(768)])
    for same in (image, np.dstack([VALUES] * 3), np.dstack([*[VALUES] * 3, np.full_like(VALUES, 255)])):
        assert read_mask(save(same, tmp_path / "m.png")).tolist() == VALUES.tolist()


def test_one_bit(tmp_path: Path) -> None:
    assert read_mask(save(VALUES > 1, tmp_path / "m.png")).tolist() == [[0, 0, 255], [255, 255, 255]]


@pytest.mark.parametrize("bits", [2, 4])
def test_two_and_four_bits_are_not_stretched(bits: int, tmp_path: Path) -> None:
    few = VALUES % 2**bits
    tifffile.imwrite(tmp_path / "m.tif", few, bitspersample=bits, photometric="minisblack")
    packed = [int("".join(f"{value:0{bits}b}" for value in row).ljust(16, "0"), 2).to_bytes(2) for row in few]
    rows = [row[: -(-3 * bits // 8)] for row in packed]
    (tmp_path / "m.png").write_bytes(png(rows, (3, 2), bits, 0))
    for ending in ("tif", "png"):
        assert read_mask(tmp_path / f"m.{ending}").tolist() == few.tolist()


def test_what_is_no_mask(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"m.tif holds F pixels, not numbers: save the mask as grey"):
        read_mask(save(VALUES.astype(np.float32), tmp_path / "m.tif"))
    with pytest.raises(UserError, match=r"no.png is missing, cut short or damaged \(No such file or directory\)"):
        read_mask(tmp_path / "no.png")


def digest(case: str) -> str:
    return sha256(case.encode()).hexdigest()


@given(
    st.lists(st.integers(0, 30).map(str), min_size=2, max_size=60).filter(lambda cases: len(set(cases)) > 1),
    st.floats(0.01, 0.99),
)
def test_splits_by_case(cases: list[str], share: float) -> None:
    parts = split_by_case(cases, share)
    test = {case for case, part in zip(cases, parts, strict=True) if part == "test"}
    train = {case for case, part in zip(cases, parts, strict=True) if part == "train"}
    assert test and train and not test & train and test | train == set(cases)
    assert max(map(digest, test)) < min(map(digest, train))
    largest = max(map(cases.count, cases))
    off = abs(parts.count("test") - share * len(cases))
    assert off <= largest  # half of it, but for the side that must not be empty
    assert split_by_case(cases[::-1], share) == parts[::-1]


def test_one_case_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r"All images are of one case, .*: give each its split"):
        split_by_case(["a", "a"], 0.5)


def test_files_of_the_mac_are_no_images(tmp_path: Path) -> None:
    for name in ("a.PNG", "._a.png", ".b.png", "__MACOSX/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(VALUES, tmp_path / name, format="PNG")
    assert list(by_stem(tmp_path)) == ["a"]
    with pytest.raises(UserError, match="has no folder images or pictures"):
        folder_in(tmp_path, "images", "pictures")
