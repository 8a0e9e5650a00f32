"""Cut one slide into tiles: their places, sharpness and shards, and an overlay picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

from colocate.base.errors import TileError, UserError
from colocate.base.files import encoded, write_atomically
from colocate.slides.listing import Listed
from colocate.slides.manifest import Shards, part_path, write_part
from colocate.slides.settings import TilingConfig
from colocate.slides.slide import Slide
from colocate.slides.tissue import Finder, Tissue, find_tissue

LONGEST_PX = 1000
EDGE = (0, 140, 70)
TILE = (0, 90, 255)


def write_overlay(path: Path, slide: Slide, tissue: Tissue, corners: Sequence[tuple[int, int]], side: float) -> None:
    """Write a small PNG of a slide with its tissue outlined and its tiles (of `side` level0 pixels) drawn."""
    pixels = slide.thumbnail(LONGEST_PX)
    high, wide = pixels.shape[:2]
    scale = max(high, wide) / max(slide.height, slide.width)  # the shorter side of a strip is rounded
    reach = max(side * scale - 1, 0)  # small tiles of a large slide are less than a pixel
    tiles = Image.new("L", (wide, high))
    draw = ImageDraw.Draw(tiles)
    for x, y in corners:
        left, top = x * scale, y * scale
        draw.rectangle((left, top, left + reach, top + reach), 60, 130)
    tint = np.asarray(tiles)[:, :, None] / 255
    pixels = (pixels * (1 - tint) + np.array(TILE) * tint).astype(np.uint8)
    mask = np.asarray(Image.fromarray(tissue.mask).resize((wide, high), Image.Resampling.NEAREST))
    pixels[find_boundaries(mask)] = EDGE
    few = Image.fromarray(pixels).quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    write_atomically(path, encoded(few, "PNG"))


class Places(NamedTuple):
    """n tiles of a slide, row by row."""

    x: Int32[np.ndarray, " n"]
    """Level0 pixels of the top left."""
    y: Int32[np.ndarray, " n"]
    tissue: Float[np.ndarray, " n"]
    side: float
    """Of a tile, in level0 pixels."""
    mpp: float
    """Of a tile's pixels."""


def places(slide: Slide, tissue: Tissue, config: TilingConfig) -> Places:
    """List the tiles within the slide that hold enough tissue."""
    mpp = slide.nearest_mpp(config.mpp)
    side = config.size * mpp / slide.mpp
    step = (config.size - config.overlap) * mpp / slide.mpp
    columns, rows = (max(0, math.floor((length - side + 0.5) / step) + 1) for length in (slide.width, slide.height))
    y, x = (grid.ravel() for grid in np.mgrid[:rows, :columns])
    x, y = (x * step).round().astype(np.int32), (y * step).round().astype(np.int32)
    share = tissue.shares(x.astype(float), y.astype(float), side, side)
    kept = share >= config.min_tissue - 1e-6
    return Places(x[kept], y[kept], share[kept], side, mpp)


def cut(listed: Listed, config: TilingConfig, out: Path, manifest_only: bool, find: Finder | None = None) -> int:
    """Cut a slide: write its shards, its overlay and last its part of the manifest; return the number of tiles.

    Raises TileError: the slide or its mask cannot be read; the run goes on with the next. UserError, OSError: the disk
    is full or cannot be written; the run ends.
    """
    try:
        slide = listed.open()
        tissue = find_tissue(slide, listed.mask, find)
        found = places(slide, tissue, config)
        part_path(out, listed.name).unlink(missing_ok=True)  # it names shards that are cut anew
        with Shards(out, listed.name) as shards:
            rows = _tiles(listed, slide, found, config, None if manifest_only else shards)
            corners = [(row["x"], row["y"]) for row in rows]
            write_overlay(out / "overlays" / f"{listed.name}.png", slide, tissue, corners, found.side)
        write_part(out, listed, rows, _facts(slide, tissue, found, len(rows)), shards.bytes)
    except (UserError, OSError, ModuleNotFoundError):
        raise
    except Exception as error:  # one odd slide must not end the run
        raise TileError(f"{listed.path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    return len(rows)


def sharpness(pixels: UInt8[np.ndarray, "h w 3"]) -> float:
    """The standard deviation of the Laplacian of green, where both stains of H&E absorb; in grey levels.

    Of every fourth row, which tells as much in a quarter of the time.

    >>> sharpness(np.full((8, 8, 3), 240, np.uint8))
    0.0
    """
    green = pixels[:, :, 1]
    above, here, below = (green[start : len(green) - 2 + start : 4].astype(np.float32) for start in (0, 1, 2))
    laplacian = 4 * here[:, 1:-1] - here[:, :-2] - here[:, 2:] - above[:, 1:-1] - below[:, 1:-1]
    return float(laplacian.std())


def _tiles(
    listed: Listed, slide: Slide, found: Places, config: TilingConfig, shards: Shards | None
) -> list[dict[str, Any]]:
    """Make the manifest's rows for the tiles that are sharp enough, and write their pixels to the shards."""
    rows: list[dict[str, Any]] = []
    looks = shards is not None or config.min_sharpness > 0
    facts = {"source": listed.source, "slide": listed.name, "mpp": found.mpp, "size": config.size}
    for x, y, tissue in zip(found.x.tolist(), found.y.tolist(), found.tissue.tolist(), strict=True):
        row = facts | {"x": x, "y": y}
        seen: dict[str, Any] = {}
        if looks:
            pixels = slide.read(x, y, config.size, config.size, found.mpp)
            seen["sharpness"] = sharpness(pixels)
            if seen["sharpness"] < config.min_sharpness:
                continue
            if shards is not None:
                seen |= shards.add(f"{listed.name}/{x:06d}_{y:06d}", jpeg(pixels, config.quality), row)
        rows.append(row | seen | {"slide_mpp": slide.mpp, "tissue": tissue})
    return rows


def jpeg(pixels: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    """Pack pixels as a JPEG whose chroma has full resolution."""
    return encoded(Image.fromarray(pixels), "JPEG", quality=quality, subsampling=0)  # stains differ in chroma


def _facts(slide: Slide, tissue: Tissue, found: Places, tiles: int) -> dict[str, Any]:
    """A slide's row in slides.csv."""
    return {
        "mpp": round(slide.mpp, 6),
        "width": slide.width,
        "height": slide.height,
        "tissue_mm2": round(float(tissue.mask.mean()) * slide.width * slide.height * slide.mpp**2 / 1e6, 3),
        "tiles": tiles,
        "blurred": len(found.x) - tiles,
        "tile_mpp": round(found.mpp, 6),
        "enlarged": found.mpp < slide.mpp * 0.99,
    }
