"""Gland masks that lie beside a run's tiles, as the phantom has them: images/SLIDE/TILE.png, glands/SLIDE/TILE.png."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from ..data import Index, decode, spaced


class Masked(NamedTuple):
    """Images of one size and where their glands are."""

    images: UInt8[Tensor, "n 3 h w"]
    masks: Bool[Tensor, "n h w"]


class Split(NamedTuple):
    """What a probe remembers and what it is asked, of different sources (slides)."""

    train: Masked
    test: Masked
    unseen: bool
    """Whether pretraining never saw the test images either."""


def masks_beside(index: Index, most: int = 512) -> Split | None:
    """The masked tiles of an index, and as test images the masked ones of sources that it leaves out.

    Where it leaves out none, every fourth of its own sources is the test. At most `most` tiles a side, evenly spaced.
    None where tiles have no masks, or there is nothing to test on, or sizes differ.
    """
    own: dict[str, list[Path]] = {}
    for number in range(len(index)):
        image = Path(index.name(number))
        if not _mask(image).is_file():
            return None
        own.setdefault(str(image.parent), []).append(image)
    folder = _above(next(iter(own.values()))[0])
    others = [
        image for image in sorted(folder.rglob("*.png")) if str(image.parent) not in own and _mask(image).is_file()
    ]
    train = [image for images in own.values() for image in images]
    test = others
    if not others:
        test = [image for images in list(own.values())[3::4] for image in images]
        train = sorted(set(train) - set(test))
    if not train or not test:
        return None
    parts = [_read(spaced(images, most)) for images in (train, test)]
    if parts[0] is None or parts[1] is None or parts[0].images.shape[1:] != parts[1].images.shape[1:]:
        return None
    return Split(parts[0], parts[1], bool(others))


def _above(image: Path) -> Path:
    """The folder called images that holds this one."""
    return next((folder for folder in image.parents if folder.name == "images"), image.parent)


def _mask(image: Path) -> Path:
    folder = _above(image)
    return folder.parent / "glands" / image.relative_to(folder)


def _read(paths: list[Path]) -> Masked | None:
    images = [decode(path.read_bytes(), str(path)) for path in paths]
    masks = []
    for path in paths:
        with Image.open(_mask(path)) as ids:
            masks.append(torch.from_numpy(np.asarray(ids) > 0))
    if len({tuple(image.shape[1:]) for image in images} | {tuple(mask.shape) for mask in masks}) > 1:
        return None
    return Masked(torch.stack(images), torch.stack(masks))
