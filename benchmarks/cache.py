"""Tiles per second of the loader: decoded from JPEG files, against taken from the cache of decoded tiles."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.timing import Row, compare
from colocate.data import Index, TileCache, tile_loader
from colocate.data.phantom import phantom_tile

TILES, BATCH, PX, MPP = 512, 64, 224, 0.5


def rows(threads: int) -> list[Row]:
    """On one thread without loader processes, on several with as many: batches then cross from one to another."""
    with tempfile.TemporaryDirectory() as folder:
        index = Index.build(write_tiles(Path(folder) / "tiles"), Path(folder) / "tiles.arrow")
        return [_row(index, where, threads if threads > 1 else 0) for where in ("memory", str(Path(folder) / "cache"))]


def _row(index: Index, where: str, workers: int) -> Row:
    cache = TileCache.open(index, where, gb=1)

    def epoch(cache: TileCache | None) -> Callable[[], object]:
        def run() -> None:
            stop = TILES // BATCH
            for _ in tile_loader(index, batch=BATCH, seed=0, start=0, stop=stop, workers=workers, cache=cache):
                pass

        return run

    place = "in memory" if where == "memory" else "in a folder"
    what = f"{TILES} tiles of {PX} px in batches of {BATCH} from a cache {place}, {workers} loader processes"
    epoch(cache)()  # fills it
    return compare(
        what, epoch(cache), epoch(None), other_name="from JPEG files", threads=max(1, workers), least_s=1, memory=False
    )


def write_tiles(folder: Path, count: int = TILES) -> Path:
    """So many JPEG files of made-up tissue."""
    folder.mkdir()
    for number in range(count):
        picture = Image.fromarray(phantom_tile(number % 16, number % 16, PX, MPP).image)
        picture.save(folder / f"{number:04}.jpg", quality=90, subsampling=0)
    return folder
