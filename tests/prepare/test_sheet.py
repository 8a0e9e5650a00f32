"""The contact sheet shows what was labelled, where it is, and stays small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from colocate.data.inspect import GAP_PX
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import MIDDLE_PX, SHEET, SIDE_PX, Draft, Facts, write

GREY = 150
GREEN, CYAN = (0, 255, 0), (0, 255, 255)


def first(data: Labelled) -> np.ndarray:
    """The first cell of the sheet."""
    with Image.open(data.folder / SHEET) as sheet:
        return np.array(sheet.convert("RGB")).astype(int)[GAP_PX : GAP_PX + SIDE_PX, GAP_PX : GAP_PX + SIDE_PX]


def near(sheet: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(sheet - np.array(colour)).max(-1) < 24


def grey(side: int = 96) -> torch.Tensor:
    return torch.full((3, side, side), GREY, dtype=torch.uint8)


def square(side: int, at: tuple[int, int], length: int, value: int = 1) -> torch.Tensor:
    mask = torch.zeros(side, side, dtype=torch.int32)
    mask[at[0] : at[0] + length, at[1] : at[1] + length] = value
    return mask


def test_objects_are_outlined_where_they_are(tmp_path: Path) -> None:
    """Two that touch, each in a colour of its own, on an image as large as it is shown."""
    mask = square(96, (20, 20), 30) + square(96, (20, 50), 30, 2)
    sheet = first(write(tmp_path / "out", Facts("two", "instances", ("gland",), ""), [Draft("a", grey(), mask)]))
    for colour, left in ((GREEN, 20), (CYAN, 50)):
        rows, columns = np.nonzero(near(sheet, colour))
        assert len(rows) == 4 * 29
        assert (columns.min(), columns.max()) == (left, left + 29)
        assert np.ptp(rows) == 29


def test_of_large_images_the_middle_is_shown(tmp_path: Path) -> None:
    """Nuclei of 16 px, which would not be seen in the whole."""
    mask = square(1024, (500, 500), 16) + square(1024, (20, 20), 16, 2)
    draft = Draft("a", grey(1024), mask)
    sheet = first(write(tmp_path / "out", Facts("small", "instances", ("nucleus",), ""), [draft]))
    rows, _ = np.nonzero(near(sheet, GREEN))
    assert abs(np.ptp(rows) + 1 - 16 * SIDE_PX / MIDDLE_PX) <= 1
    assert not near(sheet, CYAN).any()


def test_objects_take_the_colour_of_their_class(tmp_path: Path) -> None:
    facts = Facts("two", "instances", ("round", "long"), "")
    mask = square(96, (10, 10), 20, 5) + square(96, (60, 60), 20, 6)
    sheet = first(write(tmp_path / "out", facts, [Draft("a", grey(), mask, object_classes={5: 2, 6: 2})]))
    assert near(sheet, CYAN).sum() == 2 * 4 * 19
    assert not near(sheet, GREEN).any()


def test_classes_are_tinted_but_the_first_and_the_ignored_one_is_black(tmp_path: Path) -> None:
    facts = Facts("three", "semantics", ("other", "gland", "tumour"), "", ignored=2)
    mask = square(96, (0, 0), 48) + square(96, (48, 48), 48, 2)
    sheet = first(write(tmp_path / "out", facts, [Draft("a", grey(), mask)]))
    assert near(sheet[-96:, :96], (0, 0, 0)).sum() == 48 * 48
    assert near(sheet[-96:, :96], (GREY, GREY, GREY)).sum() == 2 * 48 * 48


def test_names_of_two_lines_are_written_in_one(tmp_path: Path) -> None:
    facts = Facts("three", "semantics", ("other", "gland\nof old", "tumour"), "")
    draft = Draft("a\nb", grey(), square(96, (0, 0), 48), splits={"one": "train"})
    data = write(tmp_path / "out", facts, [draft, draft._replace(name="c", splits={"one": "test\nA"})])
    assert [item.name for item in data.items] == ["a\nb", "c"]
    data.verify()


@pytest.mark.slow
def test_it_is_small_whatever_is_in_the_images(tmp_path: Path) -> None:
    def noise(seed: int) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (3, SIDE_PX, SIDE_PX), generator=drawn, dtype=torch.uint8)

    drafts = [Draft(f"a{n}", noise(n), square(SIDE_PX, (n, n), 40)) for n in range(24)]  # as many as are shown
    data = write(tmp_path / "out", Facts("noise", "instances", ("gland",), ""), drafts)
    assert (data.folder / SHEET).stat().st_size < 300_000
