"""The whole step: a real run of a few steps, in a folder that is thrown away, and what its journal says."""

from __future__ import annotations

import math
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..data import Index
from ..errors import Interrupted
from ..journal import read_journal
from ..recipe import Recipe
from ..train import pretrain


class Whole(NamedTuple):
    """A step as it is in training."""

    pairs_per_s: float
    waiting: float
    """Share of the time."""
    peak_bytes: int
    """The most that torch held on the GPU; on a CPU, the most memory that the process has had resident."""
    steps: int
    """Over which this was measured."""


def whole_step(recipe: Recipe, index: Index, folder: Path, steps: int) -> Whole:
    """Pretrain for a few steps in `folder` and read the journal; its first row, which has the start in it, aside.

    Raises:
        UserError: see `pretrain`.
        Interrupted: asked to stop.
    """
    every = min(recipe.machine.log_every, steps)
    rows = math.ceil(steps / every) + 1
    machine = replace(recipe.machine, log_every=every, save_every=rows * every, keep=1, journals=())
    if not recipe.data:  # no one would find the tiles of a temporary folder again
        machine = replace(machine, cache=None, cache_gb=None)
    data = {"data": str(index.path), "root": None, "hold_out": ()}
    run = replace(recipe, out=str(folder), steps=rows * every, machine=machine, probe="", **data)
    on_gpu = torch.cuda.is_available() and recipe.machine.accelerator != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        pretrain(run)
    except Interrupted as stop:
        raise Interrupted("stopped before all was measured: nothing was written") from stop
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident_peak_bytes()
    return Whole(*pace(read_journal(folder)[1:]), peak, (rows - 1) * every)


def pace(rows: list[dict[str, float]]) -> tuple[float, float]:
    """Pairs a second and the share of waiting over rows of a journal that stand for as many pairs each.

    >>> [round(figure, 3) for figure in pace([{"pairs_per_s": 10, "waiting": 0.0}, {"pairs_per_s": 5, "waiting": 0.3}])]
    [6.667, 0.2]
    """
    times = [1 / row["pairs_per_s"] for row in rows]
    waited = sum(row["waiting"] * spent for row, spent in zip(rows, times, strict=True))
    return len(rows) / sum(times), waited / sum(times)


def resident_peak_bytes() -> int:
    """The most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB
