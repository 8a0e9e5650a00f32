"""TRIDENT's Otsu tissue (its networks need a download), coordinates, dumped JPEGs; magnification 20 is 0.5 µm/px."""
# pyright: reportMissingImports=false

from pathlib import Path

import h5py
import numpy as np
from script import Job, Tile, each, painted, run
from trident import load_wsi
from trident.segmentation_models import segmentation_model_factory


def cut_one(job: Job, slide: Path) -> None:
    with load_wsi(slide_path=str(slide), lazy_init=False) as wsi:
        otsu = segmentation_model_factory(model_name="otsu")
        wsi.segment_tissue(otsu, target_mag=otsu.target_mag, job_dir=str(job.out), device="cpu", num_workers=0)
        coords = wsi.extract_tissue_coords(10 / job.mpp, job.size, save_coords=str(job.out))
        wsi.dump_patches(coords, str(job.out / "jpg"), image_format="jpg", jpeg_quality=90)


def cut(job: Job) -> None:
    each(cut_one, job)


def tiles(job: Job, slide: Path) -> list[Tile]:
    with h5py.File(job.out / "patches" / f"{slide.stem}_patches.h5") as file:
        side = float(np.asarray(file["coords"].attrs["patch_size_level0"]))
    files = sorted((job.out / "jpg" / slide.stem).iterdir())
    places = [file.stem.split("_") for file in files]
    return [Tile(int(x[1:]), int(y[1:]), side, file.read_bytes) for (_, x, y), file in zip(places, files, strict=True)]


def mask(job: Job, slide: Path) -> np.ndarray:
    import geopandas
    import openslide

    wide, high = openslide.OpenSlide(slide).dimensions
    shapes = geopandas.read_file(job.out / "contours_geojson" / f"{slide.stem}.geojson").explode().geometry
    return painted(wide, high, shapes)


if __name__ == "__main__":
    run(cut, tiles, mask)
