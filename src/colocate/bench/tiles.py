"""The tiles of a bench: the user's own or made up, and how fast they are decoded."""

from __future__ import annotations

import io
import time
from pathlib import Path
from statistics import median

from PIL import Image

from ..data import Index, Tiles, tile_loader
from ..data.phantom import phantom_tile
from ..errors import UserError
from ..recipe import Recipe
from ..run import index_of_tiles
from ..tiling.on_the_fly import are_slides

DISTINCT, SIZE_PX, MPP, QUALITY = 64, 224, 0.5, 90
MOST_TILES = 32  # a loader process decodes at once while it is timed
ROUNDS = 5


def open_tiles(recipe: Recipe, folder: Path) -> Index:
    """The index of a recipe's tiles, written into `folder`; of made-up tiles where it names none.

    Raises:
        UserError: slides, data that cannot be read, or fewer tiles than a batch.
    """
    if not recipe.data:
        made = make_up(folder / "tiles", recipe.batch)
        return Index.build(made, folder / "tiles.arrow", mpp=recipe.tile_mpp or MPP)
    data = Path(recipe.data).expanduser()
    if are_slides(data):
        raise UserError(
            f"{recipe.data} holds slides, which are cut before they are measured: colocate tile {recipe.data} TILES, "
            "then give --data TILES"
        )
    return index_of_tiles(data, folder / "tiles.arrow", recipe)


def make_up(folder: Path, count: int) -> Path:
    """`count` JPEG tiles of 224 px of phantom tissue; after 64 the same ones come again."""
    folder.mkdir(parents=True)
    packed: list[bytes] = []
    for number in range(count):
        if number < DISTINCT:
            file = io.BytesIO()
            Image.fromarray(phantom_tile(0, number, SIZE_PX, MPP).image).save(file, "JPEG", quality=QUALITY)
            packed.append(file.getvalue())
        (folder / f"{number:05}.jpg").write_bytes(packed[number % DISTINCT])
    return folder


def decoded(index: Index, count: int, seed: int) -> Tiles:
    """So many tiles as training gets them."""
    return next(tile_loader(index, batch=min(count, len(index)), seed=seed, start=0, stop=1, workers=0))


def decode_rate(index: Index, workers: int, seed: int, most_s: float) -> float:
    """Tiles a second that `workers` loader processes read and decode (0: this process), the first ones aside.

    The median over up to five rounds in which each of them decodes a batch of at most 32, within about `most_s`.
    """
    together = max(1, workers)
    batch = min(MOST_TILES, len(index))
    batches = tile_loader(index, batch=batch, seed=seed, start=0, stop=together * (ROUNDS + 1), workers=workers)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < ROUNDS + 1 and (len(times) < 2 or sum(times) < most_s):
        for _ in range(together):
            next(batches)
        times.append(time.perf_counter() - began - sum(times))
    batches.close()  # type: ignore[attr-defined]  # ends the workers
    return batch * together / median(times[1:])
