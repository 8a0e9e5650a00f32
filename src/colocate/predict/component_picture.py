"""A slide beside its features: the three directions in which they differ most, as colours at their places."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from ..data import spaced
from ..figures.features import principal_components
from ..files import write_atomically
from ..png import light_png
from ..slide import Slide

SIDES_PX = (790, 640, 520, 420, 320)  # of the slide's longer side; the largest whose PNG is light
GAP_PX = 10
GREY = (200, 200, 200)  # where there are no features
MOST = 20_000  # rows that components are fitted to
ROWS = 8192  # read at once


def draw_components(features: Path, slide: Slide, out: Path) -> None:
    """Write a PNG of at most 1,600 px and 300 kB: the slide, and the components of its features in an HDF5 file."""
    with h5py.File(features) as file:
        lattice, pitch = _lattice(file, slide)
    packed = light_png(_page(slide, lattice, pitch, side) for side in SIDES_PX)
    write_atomically(out, lambda file: file.write(packed))


def _page(slide: Slide, lattice: UInt8[np.ndarray, "rows columns 3"], pitch: float, side: int) -> Image.Image:
    """The slide, `side` px at its longer side, and its features beside it."""
    thumbnail = Image.fromarray(slide.thumbnail(side))
    width, height = thumbnail.size
    # A pixel of the lattice is a feature: squares where they are large, means where there are many a pixel.
    how = Image.Resampling.BOX if max(lattice.shape[:2]) > side else Image.Resampling.NEAREST
    box = (0, 0, slide.width / pitch, slide.height / pitch)
    page = Image.new("RGB", (2 * width + GAP_PX, height), "white")
    page.paste(thumbnail, (0, 0))
    page.paste(Image.fromarray(lattice).resize((width, height), how, box), (width + GAP_PX, 0))
    return page.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)


def _lattice(file: h5py.File, slide: Slide) -> tuple[UInt8[np.ndarray, "rows columns 3"], float]:
    """A pixel for each feature that the slide has room for, grey where there is none; and level0 pixels a pixel."""
    coords, stored = file["coords"], file["features"]
    assert isinstance(coords, h5py.Dataset) and isinstance(stored, h5py.Dataset)
    features = np.memmap(file.filename, "<f4", "r", stored.id.get_offset(), stored.shape)
    components = principal_components(torch.from_numpy(features[spaced(range(len(features)), MOST)]))
    facts: Any = coords.attrs
    pitch = facts["patch_size"] * facts["mpp"] / slide.mpp
    shape = (math.ceil(slide.height / pitch), math.ceil(slide.width / pitch))
    lattice = np.full((*shape, 3), GREY, np.uint8)
    for start in range(0, len(features), ROWS):
        x, y = np.rint(coords[start : start + ROWS] / pitch).astype(int).T
        colours = components.colours(torch.from_numpy(features[start : start + ROWS].copy())).numpy()
        lattice[y, x] = (colours * 255).round()
    return lattice, pitch
