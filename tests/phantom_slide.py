"""Slides written by the tests: a pyramid of known content at a known resolution."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Int32, UInt8

from colocate.data.phantom import phantom_tile


def write_pyramid(path: Path, pixels: UInt8[np.ndarray, "h w 3"], mpp: float, levels: int = 3, **options: Any) -> Path:
    """A tiled TIFF of halved levels, which OpenSlide reads as generic-tiff; lossless unless `options` say otherwise."""
    settings: dict[str, Any] = {"photometric": "rgb", "tile": (128, 128), "compression": "deflate"} | options
    if mpp:
        settings |= {"resolution": (10_000 / mpp, 10_000 / mpp), "resolutionunit": "CENTIMETER"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            if level:
                high, wide = (side // 2 * 2 for side in pixels.shape[:2])
                quads = pixels[:high, :wide].reshape(high // 2, 2, wide // 2, 2, 3)
                pixels = quads.mean((1, 3)).round().astype(np.uint8)
            settings["subfiletype"] = int(level > 0)
            if "resolution" in settings and level:
                settings["resolution"] = tuple(value / 2 for value in settings["resolution"])
            file.write(pixels, **settings)
    return path


def painted(width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
    """Smooth colours that say where a pixel is: red rises with x, green with y."""
    red = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    green = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return np.stack([red, green, 128 + 0 * red], -1).round().astype(np.uint8)


@cache
def tissue_slide(
    side: int = 1024, mpp: float = 1.0, seed: int = 0
) -> tuple[UInt8[np.ndarray, "n n 3"], Int32[np.ndarray, "n n"]]:
    """A white square with tissue in its middle half, and the ids of the glands in it; each is painted once."""
    tile = phantom_tile(seed, 0, side // 2, mpp)
    pixels = np.full((side, side, 3), 244, np.uint8)
    glands = np.zeros((side, side), np.int32)
    middle = np.s_[side // 4 : side // 4 + side // 2, side // 4 : side // 4 + side // 2]
    pixels[middle], glands[middle] = tile.image, tile.glands
    pixels.flags.writeable = glands.flags.writeable = False
    return pixels, glands


def write_slides(folder: Path, count: int, side: int, mpp: float = 1.0) -> Path:
    """FOLDER/s0.tif, s1.tif, ...: squares with tissue in their middle, each another."""
    for seed in range(count):
        write_pyramid(folder / f"s{seed}.tif", tissue_slide(side, mpp, seed)[0], mpp)
    return folder
