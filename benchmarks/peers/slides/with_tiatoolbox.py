"""TIAToolbox's SlidingWindowPatchExtractor on its morphological tissue mask; its patches saved by Pillow.

Its OpenSlide reader is asked for by name: `WSIReader.open` takes her2st for a plain picture without a resolution.
"""
# pyright: reportMissingImports=false

from pathlib import Path

import numpy as np
from script import Job, each, run, save, saved
from tiatoolbox.tools.patchextraction import get_patch_extractor
from tiatoolbox.wsicore.wsireader import OpenSlideWSIReader


def cut_one(job: Job, slide: Path) -> None:
    reader = OpenSlideWSIReader(slide)
    patches = get_patch_extractor(
        "slidingwindow",
        input_img=reader,
        input_mask=reader.tissue_mask(method="morphological", resolution=8, units="mpp"),
        patch_size=(job.size, job.size),
        resolution=job.mpp,
        units="mpp",
        within_bound=True,
    )
    scale = job.mpp / np.asarray(reader.info.mpp)
    for patch, place in zip(patches, patches.coordinate_list, strict=True):
        x, y = place[:2] * scale
        save(job, slide, patch, x, y, job.size * scale[0])


def cut(job: Job) -> None:
    each(cut_one, job)


def mask(job: Job, slide: Path) -> np.ndarray:
    return OpenSlideWSIReader(slide).tissue_mask(method="morphological", resolution=8, units="mpp").img


if __name__ == "__main__":
    run(cut, saved, mask)
