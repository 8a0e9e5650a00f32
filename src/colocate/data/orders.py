"""In which order an epoch takes the tiles: a pure function of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from colocate.data.index import Index
from colocate.draws import uniforms

AT_ONCE = 1 << 20  # tiles that are shuffled together, or those of one source
Balance = Literal["tiles", "sources"]
Order = Callable[[int, int, int], Int64[Tensor, "count"]]
"""From the number of tiles, the seed and the epoch to as many numbers of tiles."""


@lru_cache(maxsize=2)
def one_order(count: int, seed: int, epoch: int) -> Int64[Tensor, "count"]:
    """The numbers below `count` in the order of an epoch."""
    mixed = blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest()
    return torch.randperm(count, generator=torch.Generator().manual_seed(int.from_bytes(mixed)))


def tile_order(index: Index, balance: Balance) -> Order:
    """Every tile once an epoch, or every source equally often."""
    return one_order if balance == "tiles" else balanced(index.source_numbers)


def balanced(sources: Int32[np.ndarray, "count"]) -> Order:
    """Orders in which all sources come equally often, for the number of each tile's source.

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
        rounds = -(-last // tiles) - first // tiles  # that the epoch takes part in

        def taken(some: Int64[np.ndarray, "s"]) -> Int64[np.ndarray, "n"]:
            """The tiles of some sources between their first and last place."""
            lengths = rounds[some] * tiles[some]
            source = np.repeat(some, lengths)
            offset = first[some] // tiles[some] * tiles[some] - (np.cumsum(lengths) - lengths)
            place = np.arange(len(source)) + np.repeat(offset, lengths)
            turn, within = np.divmod(place, tiles[source])
            tile = by_source[starts[source] + within]
            key = uniforms(torch.from_numpy(tile + turn * count), seed, count=1)[:, 0].numpy()
            shuffled = tile[np.argsort(np.cumsum(within == 0) + key, kind="stable")]  # each round in itself
            return shuffled[(place >= first[source]) & (place < last[source])]

        blocks = np.flatnonzero(np.diff(np.cumsum(rounds * tiles) // AT_ONCE, prepend=-1))
        parts = [taken(some) for some in np.split(number, blocks[1:])]
        return torch.from_numpy(np.concatenate(parts))[one_order(count, seed, epoch)]

    return order
