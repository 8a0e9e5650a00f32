"""LazySlide's find_tissues and tile_tissues with their defaults; its tile images saved by Pillow."""
# pyright: reportMissingImports=false

from pathlib import Path

import lazyslide
import numpy as np
from script import Job, each, painted, run, save, saved
from wsidata import open_wsi


def cut_one(job: Job, slide: Path) -> None:
    wsi = open_wsi(slide, store=None)
    lazyslide.pp.find_tissues(wsi)
    lazyslide.pp.tile_tissues(wsi, job.size, mpp=job.mpp)
    side = wsi.tile_spec("tiles").base_width
    for tile in wsi.iter.tile_images("tiles"):
        save(job, slide, tile.image, tile.x, tile.y, side)


def cut(job: Job) -> None:
    each(cut_one, job)


def mask(job: Job, slide: Path) -> np.ndarray:
    wsi = open_wsi(slide, store=None)
    lazyslide.pp.find_tissues(wsi)
    high, wide = wsi.properties.shape
    return painted(wide, high, wsi["tissues"].geometry)


if __name__ == "__main__":
    run(cut, saved, mask)
