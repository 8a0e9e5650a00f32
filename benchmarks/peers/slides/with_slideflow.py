"""slideflow's WSI with Otsu's threshold as its quality control, libvips, JPEG; its other defaults."""
# pyright: reportMissingImports=false

import os

os.environ["SF_SLIDE_BACKEND"] = "libvips"

from pathlib import Path

import numpy as np
import openslide
import slideflow as sf
from script import Job, Tile, run


def opened(job: Job, slide: Path) -> sf.WSI:
    mpp = float(openslide.OpenSlide(slide).properties[openslide.PROPERTY_NAME_MPP_X])  # of plain TIFFs it is to be told
    options = {"roi_method": "ignore", "verbose": False, "mpp": mpp}
    wsi = sf.WSI(str(slide), tile_px=job.size, tile_um=round(job.size * job.mpp), **options)
    wsi.qc("otsu")
    return wsi


def cut(job: Job) -> None:
    for slide in job.slides:
        wsi = opened(job, slide)
        wsi.extract_tiles(tiles_dir=str(job.out), img_format="jpg", num_processes=job.cores, report=False)


def tiles(job: Job, slide: Path) -> list[Tile]:
    side = opened(job, slide).full_extract_px
    found = []
    for file in sorted((job.out / slide.stem).glob("*.jpg")):
        x, y = file.stem.split("-")[-2:]
        found.append(Tile(int(x) - side / 2, int(y) - side / 2, side, file.read_bytes))  # of its middle
    return found


def mask(job: Job, slide: Path) -> np.ndarray:
    return ~np.asarray(opened(job, slide).qc_mask, bool)


if __name__ == "__main__":
    run(cut, tiles, mask)
