"""A slide as the tiles of a deep zoom: each level twice as fine as the one before, in squares of 512 px.

The pixels are those of `Slide.read`, so that what is seen is what is trained on.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from skimage.segmentation import find_boundaries

from colocate.base.files import encoded
from colocate.slides.one_slide import jpeg
from colocate.slides.slide import Slide
from colocate.slides.tissue import Tissue, find_tissue
from colocate.viewer.cache import READING, kept

TILE_PX = 512
QUALITY = 90
THUMBNAIL_PX = 240
DARK = (16, 20, 32)
OUTSIDE, BORDER = 120, 255  # opacity
RGBA = UInt8[np.ndarray, "h w 4"]


class Region(NamedTuple):
    """A part of a slide, as so many pixels."""

    x: float
    """Of its top left corner, in level0 pixels."""
    y: float
    width: int
    """In its own pixels."""
    height: int
    scale: float
    """Level0 pixels a pixel, along each side."""


def finest(width: int, height: int) -> int:
    """The number of the level that has the slide's own pixels; level 0 is a single tile.

    >>> finest(512, 300), finest(513, 300), finest(100_000, 80_000)
    (0, 1, 8)
    """
    return max(0, math.ceil(math.log2(max(width, height) / TILE_PX)))


def region(width: int, height: int, level: int, column: int, row: int) -> Region:
    """The part of a slide of `width` x `height` level0 pixels that a tile shows.

    Raises LookupError if there is no such tile.

    >>> region(1000, 600, level=0, column=0, row=0), region(1000, 600, level=1, column=1, row=1)
    (Region(x=0, y=0, width=500, height=300, scale=2), Region(x=512, y=512, width=488, height=88, scale=1))
    """
    if not 0 <= level <= finest(width, height):
        raise LookupError(f"no level {level}")
    scale = 1 << (finest(width, height) - level)
    left, top = column * TILE_PX, row * TILE_PX
    wide, high = (math.ceil(length / scale) - start for length, start in ((width, left), (height, top)))
    if min(left, top) < 0 or min(wide, high) <= 0:
        raise LookupError(f"no tile {column}, {row} in level {level}")
    return Region(left * scale, top * scale, min(wide, TILE_PX), min(high, TILE_PX), scale)


opened = kept(64, READING, files=lambda path, *_: (path,))(Slide.open)


@kept(256, READING, files=lambda slide: (slide.path,))
def thumbnail(slide: Slide) -> bytes:
    """Return a slide in small, as JPEG. Raises TileError if it is damaged."""
    return jpeg(slide.thumbnail(THUMBNAIL_PX), QUALITY)


@kept(512, READING, files=lambda slide, *_: (slide.path,))
def slide_tile(slide: Slide, level: int, column: int, row: int) -> bytes:
    """Return a tile as JPEG. Raises LookupError if there is none such, TileError if the slide is damaged."""
    place = region(slide.width, slide.height, level, column, row)
    return jpeg(slide.read(place.x, place.y, place.width, place.height, slide.mpp * place.scale), QUALITY)


tissue_of = kept(8, READING, files=lambda slide, mask: (slide.path, mask))(find_tissue)


def draw_tissue(tissue: Tissue, place: Region) -> RGBA:
    """Darken what is no tissue, with a line along the border."""
    high, wide = tissue.mask.shape
    rows, cols = (  # with a pixel more on each side, whose border may lie here
        ((start + (np.arange(-1, count + 1) + 0.5) * place.scale) * pixels / length).astype(int).clip(0, pixels - 1)
        for start, count, pixels, length in (
            (place.y, place.height, high, tissue.height),
            (place.x, place.width, wide, tissue.width),
        )
    )
    inside = tissue.mask[rows][:, cols]
    opacity = np.where(find_boundaries(inside), BORDER, OUTSIDE * ~inside)[1:-1, 1:-1]
    return np.dstack([np.full((*opacity.shape, 3), DARK, np.uint8), opacity.astype(np.uint8)])


def png(pixels: np.ndarray) -> bytes:
    """Pack pixels as a PNG, fast rather than small."""
    return encoded(Image.fromarray(pixels), "PNG", compress_level=1)
