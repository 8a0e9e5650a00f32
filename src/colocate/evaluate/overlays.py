"""Test images with what was found in them drawn over what is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int32, Int64, UInt8
from PIL import Image
from torch import Tensor

from ..data import Labelled, spaced
from ..data.contact_sheet import contact_sheet
from .metrics.objects import shared_pixels

SIDE_PX = 192
TRUE, FOUND, MISSED = (0, 158, 115), (213, 94, 0), (240, 228, 66)  # Okabe and Ito: green, vermilion, yellow
SHEET = 8


@final
class Overlays:
    """Pictures of a few test images, evenly spaced: green where truth and prediction agree, vermilion where something
    was found that is not there, yellow where something was missed."""

    def __init__(self, data: Labelled, test: Sequence[int]) -> None:
        self.data = data
        self.wanted = set(spaced(test, SHEET))
        self.pictures: list[tuple[Image.Image, str, str]] = []

    def objects(self, number: int, truth: Int32[Tensor, "h w"], found: Int32[Tensor, "h w"]) -> None:
        """Outlines of objects: found ones green where they share half of themselves and a true one, else vermilion;
        true ones that no found one matches yellow."""
        if number not in self.wanted:
            return
        shared = shared_pixels(truth, found)
        union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
        good = shared > 0.5 * union
        good[0], good[:, 0] = False, False
        hit, met = torch.from_numpy(good.any(0)), torch.from_numpy(good.any(1))
        right = torch.where(hit[found.long()], found, 0)
        lines = [
            (_edges(torch.where(met[truth.long()], 0, truth)), MISSED),
            (_edges(torch.where(hit[found.long()], 0, found)), FOUND),
            (_edges(right), TRUE),
        ]
        picture = self.data.image(number).permute(1, 2, 0).clone()
        for edges, colour in lines:
            picture[edges] = torch.tensor(colour, dtype=torch.uint8)
        matched = int(good.any(0).sum())
        self._add(number, picture, f"{matched} of {_count(truth)}, {_count(found) - matched} false")

    def classes(self, number: int, truth: Int64[Tensor, "h w"], found: Int64[Tensor, "h w"]) -> None:
        """Pixels of other classes than background (0): tinted by whether they were called right."""
        if number not in self.wanted:
            return
        counted = torch.ones_like(truth, dtype=torch.bool)
        if self.data.ignored is not None:
            counted = truth != self.data.ignored
        picture = self.data.image(number).permute(1, 2, 0).clone()
        for where, colour in (
            ((truth == found) & (truth > 0), TRUE),
            ((truth != found) & (found > 0) & counted, FOUND),
            ((truth != found) & (truth > 0) & (found == 0) & counted, MISSED),
        ):
            tint = torch.tensor(colour, dtype=torch.float32)
            picture[where] = (0.55 * picture[where].float() + 0.45 * tint).to(torch.uint8)
        right = float((truth == found)[counted].float().mean()) if counted.any() else 1.0
        self._add(number, picture, f"{right:.0%} of pixels right")

    def _add(self, number: int, picture: UInt8[Tensor, "h w 3"], words: str) -> None:
        image = Image.fromarray(np.ascontiguousarray(picture.numpy()))
        image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
        self.pictures.append((image, self.data.items[number].name, words))

    def write(self, path: Path) -> None:
        """The pictures on one sheet. Raises UserError where it cannot be written."""
        if self.pictures:
            contact_sheet(self.pictures, path, SIDE_PX, columns=4)


def _edges(ids: Int32[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """Pixels of objects within two pixels of another id."""
    near = F.pad(ids[None].float(), (2, 2, 2, 2), mode="replicate")
    largest, smallest = F.max_pool2d(near, 5, 1)[0], -F.max_pool2d(-near, 5, 1)[0]
    return (largest != smallest) & (ids > 0)


def _count(ids: Int32[Tensor, "h w"]) -> int:
    return int((ids.unique() > 0).sum())
