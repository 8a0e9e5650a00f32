"""histolab's GridTiler on its TissueMask, as PNG (it cannot write JPEG), where 30 % of a tile is tissue.

By default it asks for 80 %, which leaves no tile of the made-up slide. It takes a resolution only where large_image is
installed; without, tiles are of level 0.
"""
# pyright: reportMissingImports=false

from pathlib import Path

import numpy as np
from histolab.masks import TissueMask
from histolab.slide import Slide
from histolab.tiler import GridTiler
from script import Job, Tile, each, run


def cut_one(job: Job, slide: Path) -> None:
    out = job.out / slide.stem
    out.mkdir(parents=True)
    tiler = GridTiler(tile_size=(job.size, job.size), level=0, tissue_percent=30)
    tiler.extract(Slide(slide, out), TissueMask())


def cut(job: Job) -> None:
    each(cut_one, job)


def tiles(job: Job, slide: Path) -> list[Tile]:
    found = []
    for file in sorted((job.out / slide.stem).glob("tile_*.png")):
        left, top, right, _ = map(int, file.stem.split("_")[-1].split("-"))
        found.append(Tile(left, top, right - left, file.read_bytes))
    return found


def mask(job: Job, slide: Path) -> np.ndarray:
    return TissueMask()(Slide(slide, job.out))


if __name__ == "__main__":
    run(cut, tiles, mask)
