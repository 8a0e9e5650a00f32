"""`colocate tile`, with its defaults."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from script import Job, Tile, run

import colocate
import colocate.pages.slides  # loaded when called for, else; the clock runs without imports
import colocate.slides.tile
from colocate.slides.slide import Slide
from colocate.slides.tissue import find_tissue


def cut(job: Job) -> None:
    colocate.tile(job.slides, job.out, mpp=job.mpp, size=job.size, workers=job.cores)


def tiles(job: Job, slide: Path) -> list[Tile]:
    rows = parquet.read_table(job.out / "manifest.parquet").to_pylist()

    def read(row: dict) -> bytes:
        with (job.out / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            return file.read(row["bytes"])

    return [
        Tile(row["x"], row["y"], row["size"] * row["mpp"] / row["slide_mpp"], lambda row=row: read(row))
        for row in rows
        if Path(row["path"]).name == slide.name
    ]


def mask(job: Job, slide: Path) -> np.ndarray:
    return find_tissue(Slide.open(slide)).mask


if __name__ == "__main__":
    run(cut, tiles, mask)
