"""A slide in small, its tissue outlined and its tiles tinted: one look tells whether they are where they should be."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

from ..files import write_atomically
from ..slide import Slide
from .tissue import Tissue

LONGEST_PX = 1000
EDGE = (0, 140, 70)
TILE = (0, 90, 255)


def write_overlay(
    path: Path, slide: Slide, tissue: Tissue, x: Int32[np.ndarray, " n"], y: Int32[np.ndarray, " n"], side: float
) -> None:
    """Write the picture of a slide with tiles of `side` level0 pixels, as a PNG of a few colours."""
    pixels = slide.thumbnail(LONGEST_PX)
    high, wide = pixels.shape[:2]
    scale = wide / slide.width
    tiles = Image.new("L", (wide, high))
    draw = ImageDraw.Draw(tiles)
    for left, top in zip((x * scale).tolist(), (y * scale).tolist(), strict=True):
        draw.rectangle((left, top, left + side * scale - 1, top + side * scale - 1), 60, 130)
    tint = np.asarray(tiles)[:, :, None] / 255
    pixels = (pixels * (1 - tint) + np.array(TILE) * tint).astype(np.uint8)
    mask = np.asarray(Image.fromarray(tissue.mask).resize((wide, high), Image.Resampling.NEAREST))
    pixels[find_boundaries(mask)] = EDGE
    file = io.BytesIO()
    Image.fromarray(pixels).quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, "PNG")
    write_atomically(path, lambda out: out.write(file.getvalue()))
