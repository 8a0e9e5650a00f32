"""A small labelled data set that is easy to learn: dark discs (glands) on light ground, of eight patients."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from colocate.datasets.labelled import Kind, Labelled
from colocate.datasets.writer import Draft, Facts, write


def discs(number: int, height: int, width: int) -> tuple[UInt8[Tensor, "3 h w"], Int32[Tensor, "h w"]]:
    """An image of two or three discs, and their ids."""
    made = torch.Generator().manual_seed(number)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ids = torch.zeros(height, width, dtype=torch.int32)
    for disc in range(2 + number % 2):
        y, x = (int(torch.randint(12, side - 12, (1,), generator=made)) for side in (height, width))
        ids[(rows - y) ** 2 + (columns - x) ** 2 < 100] = disc + 1
    noise = torch.randint(0, 40, (3, height, width), generator=made)
    image = torch.where(ids > 0, torch.tensor([120, 40, 130])[:, None, None], 215) + noise
    return image.clamp(0, 255).to(torch.uint8), ids


def write_tissue(out: Path, kind: Kind = "instances", per_case: int = 2, height: int = 64, width: int = 80) -> Labelled:
    """16 images, two a patient; ten of patients 0 to 4 to learn from, six of patients 5 to 7 to test on."""

    def drafts() -> Iterator[Draft]:
        for number in range(16):
            image, ids = discs(number, height, width)
            part = "train" if number < 10 else "testA" if number < 14 else "testB"
            mask = ids if kind == "instances" else ids.clamp_max(1)
            yield Draft(f"image{number:02}", image, mask, f"discs:{number // per_case}", 0.5, {"patients": part})

    classes = ("gland",) if kind == "instances" else ("other", "gland")
    return write(out, Facts("discs", kind, classes, "none"), drafts())


def write_partly(out: Path, ignored: int, blank: Collection[int] = ()) -> Labelled:
    """The same discs as classes of pixels, within a rim that is `ignored`, 0 or 255; `blank` images are so all over."""
    first = int(ignored == 0)

    def drafts() -> Iterator[Draft]:
        for number in range(16):
            image, ids = discs(number, 64, 80)
            mask = torch.full_like(ids, ignored)
            if number not in blank:
                mask[8:-8, 8:-8] = ids[8:-8, 8:-8].clamp_max(1) + first
            part = "train" if number < 10 else "testA" if number < 14 else "testB"
            yield Draft(f"image{number:02}", image, mask, f"discs:{number // 2}", 0.5, {"patients": part})

    classes = ("outside", "other", "gland") if first else ("other", "gland")
    return write(out, Facts("discs", "semantics", classes, "none", ignored=ignored), drafts())
