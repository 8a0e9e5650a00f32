"""Predictors that know what the tests have drawn: an object's number stands in the colour of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int32, UInt8
from PIL import Image
from torch import Tensor

from colocate.evaluation.metrics.objects import Found
from colocate.prediction.predictor import UNSEEN, Classes, Predictor
from colocate.slides.listing import Listed
from tests.phantom_slide import write_pyramid

LIGHT, DARK = (200, 120, 0), (90, 30, 40)  # tissue without and with an object; blue counts from 40 on


def ids_as_tissue(ids: Int32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Pink tissue all over, objects dark with their number (up to 200) in blue."""
    pixels = np.where(ids[..., None] > 0, DARK, LIGHT).astype(np.uint8)
    pixels[..., 2] += ids.astype(np.uint8)
    return pixels


def ids_in(windows: UInt8[Tensor, "b 3 s s"]) -> Int32[Tensor, "b s s"]:
    """The numbers of the objects at each pixel."""
    dark = windows[:, 0] == DARK[0]
    return torch.where(dark, windows[:, 2].int() - DARK[2], 0).to(torch.int32)


def objects(windows: UInt8[Tensor, "b 3 s s"], tissue: Bool[Tensor, "b s s"] | None = None) -> Sequence[Found]:
    """Each object in a window, its class 1 or 2 and its score by its number."""
    found = []
    for ids in ids_in(windows):
        numbers = [int(number) for number in ids.unique() if number]
        local = torch.zeros_like(ids)
        for i, number in enumerate(numbers, start=1):
            local[ids == number] = i
        found.append(Found(local, [1 + number % 2 for number in numbers], [1 - number / 400 for number in numbers]))
    return found


def classes(windows: UInt8[Tensor, "b 3 s s"], tissue: Bool[Tensor, "b s s"] | None = None) -> Sequence[Classes]:
    """Class 1 and 2 by the objects' numbers, 0 between them; the confidence says the class too."""
    found = []
    for place, ids in enumerate(ids_in(windows)):
        its = torch.where(ids > 0, 1 + ids % 2, 0).to(torch.uint8)
        found.append(Classes(its if tissue is None else its.masked_fill(~tissue[place], UNSEEN), 200 + its))
    return found


FINDER = Predictor("instances", ("even", "odd"), 1.0, "objects", {}, objects)
MAPPER = Predictor("semantics", ("background", "even", "odd", "never"), 1.0, "classes", {}, classes, ignored=3)


def slide_of(folder: Path, ids: Int32[np.ndarray, "h w"], mpp: float = 1.0, name: str = "slide") -> Listed:
    """A slide of numbered objects, all of it tissue by the user's word."""
    path = write_pyramid(folder / f"{name}.tif", ids_as_tissue(ids), mpp, levels=2)
    Image.fromarray(np.full_like(ids[::25, ::25], 255, np.uint8)).save(folder / "all.png")
    return Listed(name, path, mask=folder / "all.png")
