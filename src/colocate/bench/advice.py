"""From measured times to shares and recommendations: arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

CLOSE = 0.95  # of the best pairs/s: a batch that reaches it is as fast
SMALLEST_BATCH = 8
STEPS_TIMED = 17  # about how many steps' worth of work a whole bench is at the least
# What is sure to happen within a step comes first: on a GPU views are made, and tiles waited for, beside it.
PARTS = ("network", "losses", "optimizer", "waiting", "views")


class Workers(NamedTuple):
    """How many loader processes keep decoding ahead of training."""

    recommended: int
    """At most as many as there are cores."""
    needed: int

    @property
    def suffice(self) -> bool:
        return self.recommended >= self.needed


def split(step_ms: float, alone_ms: Mapping[str, float]) -> dict[str, float]:
    """Shares of a step's time, which add up to one, from what its parts take alone.

    Each part takes its own time, or what the parts before it leave of the step: what does not fit in happens beside
    it. `rest` is what no part explains: the loop, the journal, and parts in each other's way.

    >>> split(10, {"waiting": 1, "network": 6, "losses": 1.5, "optimizer": 0.5, "views": 0.5})
    {'network': 0.6, 'losses': 0.15, 'optimizer': 0.05, 'waiting': 0.1, 'views': 0.05, 'rest': 0.05}
    """
    shares, left = {}, step_ms
    for part in PARTS:
        taken = min(max(0.0, alone_ms[part]), left)
        shares[part] = taken / step_ms
        left -= taken
    return shares | {"rest": left / step_ms}


def workers(tiles_per_s: float, waiting: float, one_process_tiles_per_s: float, cores: int) -> Workers:
    """Loader processes for steps that take `tiles_per_s` and would take more without their share of `waiting`.

    >>> workers(500, 0.5, 450, cores=16), workers(500, 0.5, 450, cores=2).suffice
    (Workers(recommended=3, needed=3), False)
    """
    unhindered = tiles_per_s / max(1 - waiting, 1e-3)
    needed = max(1, math.ceil(unhindered / one_process_tiles_per_s))
    return Workers(min(needed, cores), needed)


def smallest_fast(pairs_per_s: Mapping[int, float]) -> int:
    """The smallest batch within 5 % of the best rate.

    >>> smallest_fast({64: 700, 128: 960, 256: 1000, 512: 990})
    128
    """
    return min(batch for batch, rate in pairs_per_s.items() if rate >= CLOSE * max(pairs_per_s.values()))


def batches_to_try(batch: int, larger: bool) -> list[int]:
    """Halves and quarters of a batch and, where they may be `larger`, up to eight times as much; the smallest first.

    >>> batches_to_try(256, larger=True), batches_to_try(16, larger=False)
    ([64, 128, 256, 512, 1024, 2048], [8, 16])
    """
    smaller = [batch // by for by in (4, 2) if batch % by == 0 and batch // by >= SMALLEST_BATCH]
    return [*smaller, batch, *([batch * by for by in (2, 4, 8)] if larger else [])]


def measured_batch(batch: int, tile_s: float, seconds: float) -> int:
    """The batch to measure with: the recipe's, or the largest half, quarter ... of it that `seconds` allow.

    tile_s: seconds of a step for each of its tiles.

    >>> measured_batch(256, tile_s=0.0005, seconds=90), measured_batch(256, tile_s=0.15, seconds=90)
    (256, 32)
    """
    while batch % 2 == 0 and batch // 2 >= SMALLEST_BATCH and STEPS_TIMED * batch * tile_s > seconds:
        batch //= 2
    return batch
