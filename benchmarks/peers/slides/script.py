"""What the scripts of all peers share; runs inside a peer's environment, so it needs Python, Pillow and NumPy alone.

python with_PEER.py cut  OUT MPP SIZE CORES SLIDE ...    # cuts the slides; prints the seconds it took, without imports
python with_PEER.py look OUT MPP SIZE CORES SLIDE ...    # writes what it cut in a common form, untimed
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SAMPLE = 64  # tiles of a slide whose pixels are looked at


class Job(NamedTuple):
    """What is to be cut."""

    slides: list[Path]
    out: Path
    mpp: float
    """Micrometres per pixel of the tiles."""
    size: int
    """Side of a tile, px."""
    cores: int


class Tile(NamedTuple):
    """A tile that a peer wrote."""

    x: float
    """Level0 pixels of the top left."""
    y: float
    side: float
    """In level0 pixels."""
    read: Callable[[], bytes]
    """Its file."""


def run(
    cut: Callable[[Job], None],
    tiles: Callable[[Job, Path], Iterable[Tile]],
    mask: Callable[[Job, Path], np.ndarray | None],
) -> None:
    """Do what the command line says.

    Args:
        cut: Cuts all slides of a job, as the peer does.
        tiles: What it wrote of a slide.
        mask: The tissue it finds on a slide: an array of any size of the whole slide, not 0 where tissue is.
    """
    what, out, mpp, size, cores, *slides = sys.argv[1:]
    job = Job([Path(slide) for slide in slides], Path(out), float(mpp), int(size), int(cores))
    if what == "cut":
        began, used = time.perf_counter(), _cpu_s()
        cut(job)
        print(json.dumps({"seconds": time.perf_counter() - began, "cpu_s": _cpu_s() - used}))
        return
    slide = job.slides[0]
    written = list(tiles(job, slide))
    look = job.out / "look"
    look.mkdir()
    for number, tile in enumerate(written[:: max(1, len(written) // SAMPLE)]):
        (look / f"{number}.tile").write_bytes(tile.read())
        (look / f"{number}.json").write_text(json.dumps({"x": tile.x, "y": tile.y, "side": tile.side}))
    found = mask(job, slide)
    if found is not None:
        Image.fromarray((np.asarray(found) > 0).astype(np.uint8) * 255).save(look / "mask.png")
    print(json.dumps({"tiles": len(written)}))


def save(job: Job, slide: Path, pixels: np.ndarray, x: float, y: float, side: float) -> None:
    """Write a tile, for a peer that only reads: as JPEG of quality 90. x, y, side: in level0 pixels."""
    folder = job.out / slide.stem
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[:, :, :3]).save(folder / f"{x}_{y}_{side}.jpg", quality=90)


def saved(job: Job, slide: Path) -> list[Tile]:
    """What `save` wrote of a slide."""
    found = []
    for file in sorted((job.out / slide.stem).iterdir()):
        x, y, side = map(float, file.stem.split("_"))
        found.append(Tile(x, y, side, file.read_bytes))
    return found


def painted(width: int, height: int, shapes: Iterable[Any]) -> np.ndarray:
    """The mask of shapely polygons on a slide of so many pixels, an eighth as wide."""
    picture = Image.new("1", (width // 8, height // 8))
    draw = ImageDraw.Draw(picture)
    for shape in shapes:
        draw.polygon([(x / 8, y / 8) for x, y in shape.exterior.coords], fill=1)
        for hole in shape.interiors:
            draw.polygon([(x / 8, y / 8) for x, y in hole.coords], fill=0)
    return np.asarray(picture)


def _cpu_s() -> float:
    """Of this process and of those that it has waited for; hardly grows while others keep the machine busy."""
    of = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in of)


def each(cut: Callable[[Job, Path], None], job: Job) -> None:
    """Cut slide by slide, for a peer that uses one core: on several cores one process a slide."""
    if job.cores == 1:
        for slide in job.slides:
            cut(job, slide)
        return
    with multiprocessing.get_context("fork").Pool(job.cores) as pool:
        pool.map(partial(cut, job), job.slides)
