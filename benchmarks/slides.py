"""Tiles per second of `colocate tile` against the bare floor: OpenSlide's reads and Pillow's JPEG of the same tiles."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import tifffile
from jaxtyping import UInt8
from PIL import Image

from benchmarks.timing import Row, compare, ratio
from colocate.data.phantom import phantom_tile
from colocate.slides.listing import Listed
from colocate.slides.one_slide import Places, cut, places
from colocate.slides.settings import TilingConfig
from colocate.slides.slide import Slide
from colocate.slides.tile import tile
from colocate.slides.tissue import find_tissue

MPP = 0.5
SIDE_PX = 8192
GLASS = 243


def rows(threads: int) -> list[Row]:
    """Cutting counts no threads: its unit is the process."""
    if threads > 1:
        return []
    with tempfile.TemporaryDirectory() as folder:
        return [*_against_the_floor(Path(folder)), *_scaling(Path(folder))]


def write_slide(path: Path, side: int, seed: int = 0, levels: int | None = None, share: float | None = None) -> Path:
    """A JPEG TIFF of made-up tissue, `side` pixels high and wide, however large; by default with all its levels.

    share: of the slide that is tissue, a disk in its middle; the rest is glass. None: all is tissue.
    """
    levels = levels or max(1, (side // 1024).bit_length())
    pattern = phantom_tile(seed, 0, 1024, MPP).image
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(levels):
            step = 2**level
            here = side // step
            file.write(
                _tiles(pattern[::step, ::step], here, share),
                shape=(here, here, 3),
                dtype=np.uint8,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 85},
                resolution=(10_000 / (MPP * step), 10_000 / (MPP * step)),
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
            )
    return path


def _tiles(
    pattern: UInt8[np.ndarray, "h w 3"], side: int, share: float | None
) -> Iterator[UInt8[np.ndarray, "256 256 3"]]:
    """The tiles of a picture that repeats a pattern."""
    high, wide = pattern.shape[:2]
    for top in range(0, side, 256):
        for left in range(0, side, 256):
            y, x = (start + np.arange(256) for start in (top, left))
            part = pattern[np.ix_(y % high, x % wide)]
            if share is not None:
                away = np.hypot(y[:, None] + 0.5 - side / 2, x + 0.5 - side / 2)
                part[away > side * (share / np.pi) ** 0.5] = GLASS
            yield part[: side - top, : side - left] if min(side - top, side - left) < 256 else part


def _against_the_floor(folder: Path) -> list[Row]:
    listed = Listed("slide", write_slide(folder / "slide.tif", SIDE_PX))
    found = []
    for mpp, how in ((MPP, "at the slide's own resolution"), (0.7, "resampled from 0.5 to 0.7 µm/px")):
        config = TilingConfig(mpp=mpp)

        def ours(config: TilingConfig = config) -> int:
            shutil.rmtree(folder / "out", ignore_errors=True)
            return cut(listed, config, folder / "out", manifest_only=False)

        slide = Slide.open(listed.path)
        kept = places(slide, find_tissue(slide), config)
        tiles = len(kept.x)

        def floor(config: TilingConfig = config, kept: Places = kept) -> int:
            bare = openslide.OpenSlide(listed.path)
            return sum(len(_bare(bare, x, y, config)) for x, y in zip(kept.x.tolist(), kept.y.tolist(), strict=True))

        what = f"{tiles} tiles of 256 px cut into a shard, {how}, tissue and sharpness included"
        other = "OpenSlide's reads and Pillow's JPEG of the same tiles"
        found.append(compare(what, ours, floor, other_name=other, threads=1, memory=False, goal_faster=0.85))
    return found


def _bare(slide: openslide.OpenSlide, x: int, y: int, config: TilingConfig) -> bytes:
    side = round(config.size * config.mpp / MPP)
    region = slide.read_region((x, y), 0, (side, side)).convert("RGB")
    if side != config.size:
        region = region.resize((config.size, config.size), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    region.save(file, "JPEG", quality=config.quality, subsampling=0)
    return file.getvalue()


def _scaling(folder: Path) -> list[Row]:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        return []
    listed = [Listed(f"s{n}", write_slide(folder / f"s{n}.tif", SIDE_PX, n)) for n in range(2 * cores)]

    def seconds(workers: int) -> float:
        shutil.rmtree(folder / "out", ignore_errors=True)
        began = time.perf_counter()
        tile(listed, folder / "out", TilingConfig(), workers=workers)
        return time.perf_counter() - began

    times = [(seconds(cores), seconds(1)) for _ in range(3)]
    row = ratio(f"{len(listed)} slides cut by {cores} processes", "by one process", 1, times)
    return [replace(row, goal_faster=0.85 * cores)]
