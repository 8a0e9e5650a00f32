"""dlup's SlideDataset, read by FastSlide. It finds no tissue and writes no tiles: a mask is given, Pillow saves."""
# pyright: reportMissingImports=false

from pathlib import Path

import numpy as np
from dlup.data.dataset import ImageConfig, MaskConfig, SlideDataset, TilingConfig
from dlup.tiling import TilingMode
from dlup.utils.backends import ImageBackend
from PIL import Image
from script import Job, each, run, save, saved


def cut_one(job: Job, slide: Path) -> None:
    mask = np.asarray(Image.open(slide.with_suffix(".mask.png"))) > 0
    tiling = TilingConfig(job.mpp, (job.size, job.size), tile_mode=TilingMode.skip)
    where = MaskConfig(mask.astype(np.int64), mask_threshold=0.5)
    with SlideDataset.from_standard_tiling(slide, tiling, where, ImageConfig(ImageBackend.FASTSLIDE)) as dataset:
        scaling = dataset.slide_image.get_scaling(job.mpp)
        for sample in dataset:
            x, y = sample.coordinates
            save(job, slide, sample.image.to_numpy(), x / scaling, y / scaling, job.size / scaling)


def cut(job: Job) -> None:
    each(cut_one, job)


def mask(job: Job, slide: Path) -> None:
    return None


if __name__ == "__main__":
    run(cut, saved, mask)
