"""The contact sheet shows what was labelled, where it is, and stays small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from colocate.data.inspect import GAP_PX
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import OUTLINES, SHEET, SIDE_PX, Draft, Facts, write

GREY = 150


def seen(data: Labelled) -> np.ndarray:
    with Image.open(data.folder / SHEET) as sheet:
        return np.array(sheet.convert("RGB")).astype(int)


def first(data: Labelled) -> np.ndarray:
    """The first cell of the sheet."""
    return seen(data)[GAP_PX : GAP_PX + SIDE_PX, GAP_PX : GAP_PX + SIDE_PX]


def near(sheet: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(sheet - np.array(colour)).max(-1) < 24


def grey(high: int, wide: int) -> torch.Tensor:
    return torch.full((3, high, wide), GREY, dtype=torch.uint8)


def square(side: int, at: tuple[int, int], length: int, value: int = 1) -> torch.Tensor:
    mask = torch.zeros(side, side, dtype=torch.int32)
    mask[at[0] : at[0] + length, at[1] : at[1] + length] = value
    return mask


def test_an_object_is_outlined_where_it_is(tmp_path: Path) -> None:
    facts = Facts("one", "instances", ("gland",), "")
    data = write(tmp_path / "out", facts, [Draft("a", grey(96, 96), square(96, (20, 30), 40))])
    rows, columns = np.nonzero(near(seen(data), OUTLINES[1]))
    rows, columns = rows - rows.min(), columns - columns.min()
    assert rows.max() == columns.max() == 39  # not shrunk: the thumb is larger
    inside = (rows > 0) & (rows < 39) & (columns > 0) & (columns < 39)
    assert len(rows) == 4 * 39 and not inside.any()


def test_objects_that_touch_are_told_apart(tmp_path: Path) -> None:
    mask = square(96, (20, 20), 30) + square(96, (20, 50), 30, 2)
    data = write(tmp_path / "out", Facts("two", "instances", ("gland",), ""), [Draft("a", grey(96, 96), mask)])
    for colour in OUTLINES[1:3]:
        assert near(first(data), colour).sum() == 4 * 29


def test_no_object_no_outline(tmp_path: Path) -> None:
    data = write(
        tmp_path / "out", Facts("none", "instances", ("gland",), ""), [Draft("a", grey(96, 96), square(96, (0, 0), 0))]
    )
    assert not any(near(seen(data), colour).any() for colour in OUTLINES)


def test_objects_too_small_to_see_are_shown_from_near(tmp_path: Path) -> None:
    mask = square(1024, (500, 500), 16) + square(1024, (530, 530), 16, 2)
    data = write(tmp_path / "out", Facts("small", "instances", ("nucleus",), ""), [Draft("a", grey(1024, 1024), mask)])
    rows, _ = np.nonzero(near(seen(data), OUTLINES[1]))
    assert 7 <= np.ptp(rows) + 1 <= 9  # of 8 px, instead of 2


def test_objects_take_the_colour_of_their_class(tmp_path: Path) -> None:
    facts = Facts("two", "instances", ("round", "long"), "")
    mask = square(96, (10, 10), 20, 5) + square(96, (60, 60), 20, 6)
    data = write(tmp_path / "out", facts, [Draft("a", grey(96, 96), mask, object_classes={5: 2, 6: 2})])
    sheet = first(data)
    assert near(sheet, OUTLINES[1]).sum() == 2 * 4 * 19
    assert not near(sheet, OUTLINES[0]).any()


def test_classes_are_tinted_and_the_ignored_one_is_black(tmp_path: Path) -> None:
    facts = Facts("three", "semantics", ("outside", "gland", "tumour"), "", ignored=0)
    mask = torch.full((96, 96), 1, dtype=torch.int32)
    mask[:, :32] = 0
    data = write(tmp_path / "out", facts, [Draft("a", grey(96, 96), mask)])
    sheet = first(data)
    assert near(sheet, (0, 0, 0)).sum() >= 32 * 96
    assert not near(sheet, (GREY, GREY, GREY)).any()


def test_of_two_classes_the_first_stays_as_it_is(tmp_path: Path) -> None:
    data = write(
        tmp_path / "out",
        Facts("two", "semantics", ("other", "gland"), ""),
        [Draft("a", grey(96, 96), square(96, (0, 0), 48))],
    )
    assert near(first(data), (GREY, GREY, GREY)).sum() == 96 * 96 - 48 * 48


def test_it_is_small_whatever_is_in_the_images(tmp_path: Path) -> None:
    def noise(seed: int) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (3, SIDE_PX, SIDE_PX), generator=drawn, dtype=torch.uint8)

    drafts = [
        Draft(f"a{n}", noise(n), square(SIDE_PX, (n, n), 40), splits={"s": "train" if n % 9 else "test"})
        for n in range(40)
    ]
    data = write(tmp_path / "out", Facts("noise", "instances", ("gland",), ""), drafts)
    assert (data.folder / SHEET).stat().st_size < 300_000
    assert seen(data).shape[0] > 4 * SIDE_PX
