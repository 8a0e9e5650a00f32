"""Load batches of tiles: the same ones for any number of workers and processes, from any step on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from hashlib import blake2b
from math import gcd
from typing import Any, Literal, NamedTuple, TypeVar, final

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from colocate.base.errors import TileError, UserError
from colocate.base.processes import start_method, start_worker
from colocate.base.rng import uniforms
from colocate.data.index import Index

Order = Callable[[int, int, int], Int64[Tensor, "count"]]
"""From the number of tiles, the seed and the epoch to as many numbers of tiles."""


@lru_cache(maxsize=2)
def one_order(count: int, seed: int, epoch: int) -> Int64[Tensor, "count"]:
    """Return the numbers below `count`, shuffled for an epoch."""
    mixed = blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest()
    return torch.randperm(count, generator=torch.Generator().manual_seed(int.from_bytes(mixed)))


def tile_order(index: Index, balance: Literal["tiles", "sources"]) -> Order:
    """Choose the order of an epoch: every tile once, or every source equally often."""
    return one_order if balance == "tiles" else balanced(index.source_numbers)


def balanced(sources: Int32[np.ndarray, "count"]) -> Order:
    """Return an order in which all sources come equally often; `sources`: the number of each tile's source.

    A source is an endless sequence of its tiles, shuffled anew whenever all have come; each epoch goes on in it where
    the last one stopped. So it has count / S tiles in each epoch, rounded down or up (S: number of sources), and its
    tiles come equally often but for one.

    >>> order = balanced(np.array([0, 0, 0, 0, 0, 1], np.int32))
    >>> [order(6, 0, epoch).tolist() for epoch in range(2)]
    [[3, 2, 0, 5, 5, 5], [2, 5, 1, 4, 5, 5]]
    """
    by_source = np.argsort(sources, kind="stable")
    tiles = np.bincount(sources)
    tiles = tiles[tiles > 0]
    starts = np.cumsum(tiles) - tiles
    number = np.arange(len(tiles))

    @lru_cache(maxsize=2)
    def order(count: int, seed: int, epoch: int) -> Int64[Tensor, "count"]:
        # All sources together have `count` places, as the sum over s of floor((n + s) / S) is n.
        first, last = ((turn * count + number) // len(tiles) for turn in (epoch, epoch + 1))
        lengths = (-(-last // tiles) - first // tiles) * tiles  # of all rounds that the epoch takes part in
        source = np.repeat(number, lengths)
        offset = first // tiles * tiles - (np.cumsum(lengths) - lengths)
        place = np.arange(len(source)) + np.repeat(offset, lengths)
        turn, within = np.divmod(place, tiles[source])
        tile = by_source[starts[source] + within]
        key = uniforms(torch.from_numpy(tile + turn * count), seed, count=1)[:, 0].numpy()
        shuffled = tile[np.argsort(np.cumsum(within == 0) + key, kind="stable")]  # each round in itself
        taken = shuffled[(place >= first[source]) & (place < last[source])]
        return torch.from_numpy(taken)[one_order(count, seed, epoch)]

    return order


Item = TypeVar("Item")
MOST_SKIPPED = 100
LARGEST_BATCH_BYTES = 8 << 30


@final
class Tiles(NamedTuple):
    """b tiles as read, in one block."""

    images: UInt8[Tensor, "b 3 H W"]  # each at the top left of the largest one's frame, the rest zero
    sizes: Int64[Tensor, "b 2"]  # true height and width
    index: Int64[Tensor, "b"]  # pyright: ignore[reportIncompatibleMethodOverride]  # numbers of the tiles that were read
    mpp: Float32[Tensor, "b"]  # micrometres per pixel, nan where unknown
    skipped: tuple[tuple[int, str], ...]  # number of each unreadable tile that another replaced, and the reason


def spaced(items: Sequence[Item], most: int) -> list[Item]:
    """Pick at most `most` items, evenly spaced.

    >>> spaced("abcdefgh", 2), spaced("abc", 5)
    (['c', 'g'], ['a', 'b', 'c'])
    """
    count = min(most, len(items))
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


def batch_indices(
    count: int, batch: int, seed: int, step: int, rank: int = 0, world: int = 1, order: Order = one_order
) -> list[int]:
    """Return the numbers (below `count`) of the tiles that process `rank` of `world` reads at a step.

    batch: over all processes. An epoch has count // batch steps and its own order; what is left over is dropped.
    order: gives it, see `tile_order`.
    Raises UserError if there are fewer tiles than a batch, ValueError if the batch cannot be shared evenly.

    >>> [batch_indices(10, 4, seed=0, step=step) for step in range(3)]
    [[4, 5, 6, 9], [3, 2, 1, 0], [2, 6, 1, 9]]
    >>> [batch_indices(10, 4, seed=0, step=2, rank=rank, world=2) for rank in range(2)]
    [[2, 6], [1, 9]]
    """
    if batch % world:
        raise ValueError(f"A batch of {batch} cannot be shared evenly by {world} processes")
    if count < batch:
        raise UserError(
            f"The data hold {count} tiles, fewer than one batch of {batch}: give a batch of at most {count}"
        )
    epoch, within = divmod(step, count // batch)
    share = batch // world
    start = within * batch + rank * share
    return order(count, seed, epoch)[start : start + share].tolist()


def tile_loader(
    index: Index,
    *,
    batch: int,
    seed: int,
    start: int,
    stop: int,
    rank: int = 0,
    world: int = 1,
    order: Order = one_order,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[Tiles]:
    """Iterate over this process's batches of the steps `start` to `stop`, read ahead by `workers` (0: when asked for).

    An unreadable tile is replaced by another that can be read, the same one each time. See `read_ahead`.
    Raises what `batch_indices` raises, at once; UserError, while iterating, after 100 unreadable tiles, or if
    the batch's largest tile makes it too large for memory.
    """
    batch_indices(len(index), batch, seed, start, rank, world, order)
    plan = partial(batch_indices, len(index), batch, seed, rank=rank, world=world, order=order)
    return read_ahead(partial(_batch, index), range(start, stop), plan, workers, pin_memory)


def read_ahead(
    read: Callable[[Any], Any], steps: range, plan: Callable[[int], Any], workers: int, pin_memory: bool = False
) -> Iterator[Any]:
    """Iterate over `read(plan(step))` for each step, read ahead by `workers` processes (0: when asked for).

    Neither torch's global generator nor, in the workers, Ctrl-C is touched; closing the iterator ends the workers.
    """
    loader = DataLoader(
        _Reading(read),
        sampler=map(plan, steps),
        batch_size=None,  # the sampler's items are whole batches
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        multiprocessing_context=start_method() if workers else None,
        generator=torch.Generator(),  # else the loader would draw from the global one
    )
    with _signals_wait():
        items = iter(loader)
    for item in items:
        if isinstance(item, UserError):
            raise item
        yield item


@final
@dataclass(frozen=True)
class _Reading(Dataset[Any]):
    read: Callable[[Any], Any]

    def __getitem__(self, wanted: Any) -> Any:
        try:
            return self.read(wanted)
        except UserError as error:  # raised in a worker it would arrive wrapped in a traceback's text
            return error


def _batch(index: Index, numbers: list[int]) -> Tiles:
    # Tiles of one slide or shard one after the other: a process keeps few slides open.
    tiles = {number: _read(index, number) for number in sorted({*numbers})}
    return _stack(index, [tiles[number] for number in numbers])


class _Tile(NamedTuple):
    number: int
    pixels: UInt8[Tensor, "3 h w"]
    skipped: dict[int, str]


def _read(index: Index, number: int) -> _Tile:
    """Read a tile, or a readable one far from it: those beside it are of the same slide, which may be missing."""
    skipped: dict[int, str] = {}
    stride = _stride(len(index))
    for turn in range(min(MOST_SKIPPED, len(index))):
        current = (number + turn * stride) % len(index)
        try:
            return _Tile(current, index.read(current), skipped)
        except TileError as error:
            skipped[current] = str(error)
    first = skipped[number]
    raise UserError(f"none of {len(skipped)} tiles tried can be read: check --data and --root; the first one: {first}")


@cache
def _stride(count: int) -> int:
    """Return a stride coprime to `count`, near its golden section: tiles that replace one another lie far apart.

    >>> _stride(20), sorted(turn * 13 % 20 for turn in range(20)) == list(range(20))
    (13, True)
    """
    return next(step for step in range(max(1, round(count * (5**0.5 - 1) / 2)), 2 * count + 1) if gcd(step, count) == 1)


def _stack(index: Index, tiles: list[_Tile]) -> Tiles:
    sizes = torch.tensor([tile.pixels.shape[1:] for tile in tiles])
    height, width = sizes.amax(0).tolist()
    if len(tiles) * 3 * height * width > LARGEST_BATCH_BYTES:
        largest = index.name(tiles[int(sizes.prod(1).argmax())].number)
        message = f"a batch of {len(tiles)} padded to {height} x {width} pixels does not fit in memory"
        raise UserError(f"{largest} is too large beside the others, {message}: cut it into tiles")
    images = torch.zeros(len(tiles), 3, height, width, dtype=torch.uint8)
    for image, tile in zip(images, tiles, strict=True):
        image[:, : tile.pixels.shape[1], : tile.pixels.shape[2]] = tile.pixels
    numbers = torch.tensor([tile.number for tile in tiles])
    skipped = {number: reason for tile in tiles for number, reason in tile.skipped.items()}
    return Tiles(images, sizes, numbers, torch.from_numpy(index.mpp[numbers.numpy()]), tuple(skipped.items()))


def _as_it_is(item: Any) -> Any:
    return item


_AWAITS = hasattr(signal, "sigwaitinfo")  # not on macOS, where SIGTERM ends workers whoever sends it


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM while workers start: they inherit that, and torch's own handler would let them die."""
    numbers = {signal.SIGINT, signal.SIGTERM} if _AWAITS else set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_: int) -> None:
    """Ignore Ctrl-C and a scheduler's SIGTERM: the main process may want one more batch, and ends its workers."""
    start_worker()
    if _AWAITS:
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
