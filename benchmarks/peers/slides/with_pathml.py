"""PathML's tiles of the finest level (it takes levels, no resolutions) where its TissueDetectionHE finds tissue.

Tissue is found on the level nearest to an eighth of the slide's side; Pillow saves tiles that are half tissue.
"""
# pyright: reportMissingImports=false

from pathlib import Path

import numpy as np
import openslide
from pathml.core import HESlide
from pathml.preprocessing import TissueDetectionHE
from script import Job, each, run, save, saved


def cut_one(job: Job, slide: Path) -> None:
    found = mask(job, slide)
    wsi = HESlide(str(slide), backend="openslide")
    high, wide = (side / part for side, part in zip(wsi.slide.get_image_shape(level=0), found.shape, strict=True))
    for tile in wsi.generate_tiles(shape=job.size, level=0):
        y, x = tile.coords
        part = found[round(y / high) : round((y + job.size) / high), round(x / wide) : round((x + job.size) / wide)]
        if part.size and part.mean() >= 0.5:
            save(job, slide, tile.image, x, y, job.size)


def cut(job: Job) -> None:
    each(cut_one, job)


def mask(job: Job, slide: Path) -> np.ndarray:
    bare = openslide.OpenSlide(slide)
    level = bare.get_best_level_for_downsample(8)
    picture = np.asarray(bare.read_region((0, 0), level, bare.level_dimensions[level]).convert("RGB"))
    return TissueDetectionHE().F(picture) > 0


if __name__ == "__main__":
    run(cut, saved, mask)
