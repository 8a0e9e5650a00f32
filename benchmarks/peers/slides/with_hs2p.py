"""hs2p's `tile_slides` with tiles saved: HSV tissue, OpenSlide; its other defaults."""
# pyright: reportMissingImports=false

import csv
import sys
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
from hs2p import FilterConfig, SegmentationConfig, SlideSpec, TilingConfig, load_tiling_result, tile_slide, tile_slides
from script import Job, Tile, run

SEGMENTATION = SegmentationConfig(method="hsv")


def tiling(job: Job) -> TilingConfig:
    return TilingConfig(
        requested_spacing_um=job.mpp,
        requested_tile_size_px=job.size,
        tolerance=0.05,
        overlap=0.0,
        backend="openslide",
        mask_backend="openslide",
    )


def cut(job: Job) -> None:
    slides = [SlideSpec(sample_id=slide.stem, image_path=slide) for slide in job.slides]
    options = {"segmentation": SEGMENTATION, "num_workers": job.cores, "save_tiles": True}
    found = tile_slides(slides, tiling=tiling(job), output_dir=job.out, **options)
    if len(found) < len(slides):  # it only warns
        sys.exit((job.out / "process_list.csv").read_text())


def tiles(job: Job, slide: Path) -> list[Tile]:
    where = job.out / "tiles" / slide.stem
    side = load_tiling_result(f"{where}.coordinates.npz", f"{where}.coordinates.meta.json").tile_size_lv0
    tar = tarfile.open(f"{where}.tiles.tar")  # noqa: SIM115 (read until the end)

    def read(row: dict[str, str]) -> bytes:
        member = tar.extractfile(f"{int(row['tile_index']):06d}.jpg")
        assert member is not None
        return member.read()

    with Path(f"{where}.tiles.manifest.csv").open() as file:
        return [Tile(int(row["x"]), int(row["y"]), side, partial(read, row)) for row in csv.DictReader(file)]


def mask(job: Job, slide: Path) -> np.ndarray:
    spec = SlideSpec(sample_id=slide.stem, image_path=slide)
    return tile_slide(spec, tiling=tiling(job), segmentation=SEGMENTATION, filtering=FilterConfig()).tissue_mask


if __name__ == "__main__":
    run(cut, tiles, mask)
