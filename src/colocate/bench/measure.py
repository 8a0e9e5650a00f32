"""The order in which things are measured, and how much of the time each of them gets."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..data import Index, Tiles
from ..errors import UserError
from ..recipe import Recipe, to_json
from ..run import launch, workers
from ..text import counted
from . import advice
from .machine import this_machine
from .parts import Stage, first, free, pairs_per_s, parts_ms, tile_seconds, try_batches
from .report import PAPER_PAIRS, Report
from .tiles import decode_rate, decoded, open_tiles
from .whole import whole_step

SECONDS = 90.0
# Least and most repetitions, and the share of the time that they may take.
STEPS, ROUNDS, TRIALS = (2, 50, 0.2), (3, 20, 0.15), (2, 20, 0.03)
DISTURBED = 1.1
MOST_READY = 256  # tiles that lie ready; larger batches see them again


def bench(recipe: Recipe, seconds: float = SECONDS) -> Report:
    """Measure decoding, views, network, losses, optimiser and the whole step of a recipe on one device.

    seconds: about how long; where the device is too slow for the recipe's batch, a smaller one is measured.

    Raises:
        UserError: data that cannot be read, a machine that is not there, or a batch that does not fit on it.
        Interrupted: asked to stop.
    """
    if seconds <= 0:
        raise UserError(f"seconds must be positive, not {seconds:g}")
    recipe, notes = _on_one_device(recipe)
    try:
        return _measured(recipe, seconds, notes)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"a batch of {recipe.batch} does not fit in the GPU's memory: give --batch {max(1, recipe.batch // 2)}, "
            "--precision bf16-mixed or a smaller network"
        ) from error


def _measured(asked: Recipe, seconds: float, notes: list[str]) -> Report:
    say = partial(Console(stderr=True, highlight=False).print, soft_wrap=True, markup=False)
    recipe = asked
    with tempfile.TemporaryDirectory(prefix="colocate-bench-") as temporary:
        say("bench: looking for the tiles" if recipe.data else "bench: no --data, so tiles are made up")
        index = open_tiles(recipe, Path(temporary))
        fabric = launch(recipe.machine, recipe.precision, recipe.batch)
        say(f"bench: decoding, {counted(len(index), 'tile')}")
        decode = _decode(index, recipe, seconds)

        tiles = decoded(index, min(MOST_READY, recipe.batch), recipe.seed)
        tile_s = tile_seconds(recipe, fabric, tiles)
        free()
        recipe = replace(recipe, batch=advice.measured_batch(recipe.batch, tile_s, seconds))
        if recipe.batch < asked.batch:
            notes.append(
                f"measured with batches of {recipe.batch}: a step of {asked.batch} takes about "
                f"{asked.batch * tile_s:.0f} s here (raise --seconds to measure it)"
            )
        times = partial(_times, seconds, recipe.batch * tile_s)
        say(f"bench: whole steps of {counted(recipe.batch, 'tile')}, a real run")
        steps = max(STEPS[0], times(*STEPS) // recipe.accumulate)
        whole = whole_step(recipe, index, Path(temporary) / "run", steps)
        free()
        say("bench: views, network, losses, optimiser, each alone")
        stage = Stage(recipe, fabric)
        alone, failure = parts_ms(stage, first(tiles, recipe.batch), times(*ROUNDS))
        tried = try_batches(
            advice.batches_to_try(recipe.batch, larger=fabric.device.type == "cuda"),
            _rate(stage, tiles, seconds, tile_s, say),
        )

    if failure:
        notes.append(f"compiling failed, so networks run as they are ({failure})")
    step_ms = 1000 * recipe.batch / whole.pairs_per_s
    if alone["network"] + alone["losses"] > DISTURBED * step_ms:
        notes.append("parts took longer alone than within a step: something else was running; measure again without it")
    alone["waiting"] = whole.waiting * step_ms
    shares = advice.split(step_ms, alone)
    machine = this_machine(fabric.device)
    loaders = advice.workers(whole.pairs_per_s, shares["waiting"], decode[1], machine.cores)
    rates = tried.pairs_per_s or {recipe.batch: whole.pairs_per_s}
    return Report(
        date=datetime.datetime.now().astimezone().isoformat(" ", timespec="minutes"),
        machine=machine,
        recipe=json.loads(to_json(asked)),
        data=recipe.data or "made-up tissue, 224 px JPEG (no --data)",
        tiles=len(index),
        batch=recipe.batch,
        asked_batch=asked.batch,
        steps_measured=whole.steps,
        decode_tiles_per_s=decode,
        alone_ms=alone,
        step_ms=step_ms,
        step_share=shares,
        step_pairs_per_s=whole.pairs_per_s,
        ceiling_pairs_per_s=1000 * recipe.batch / alone["network"],
        ceiling_share=alone["network"] / step_ms,
        peak_memory_bytes=whole.peak_bytes,
        paper_pairs_minutes=PAPER_PAIRS / whole.pairs_per_s / 60,
        batch_pairs_per_s=rates,
        too_large_batch=tried.too_large,
        recommended_batch=advice.smallest_fast(rates),
        recommended_workers=loaders.recommended,
        needed_workers=loaders.needed,
        notes=tuple(notes),
    )


def _on_one_device(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """One device's share of a recipe, past warm-ups in which a method does less; and what was changed, in words."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("colocate bench measures one device: start it as one process, without torchrun or srun")
    machine = recipe.machine
    gpus = torch.cuda.device_count() if machine.accelerator != "cpu" else 0
    devices = (machine.devices or max(1, gpus)) * machine.nodes
    if recipe.batch % devices:
        raise UserError(f"a batch of {recipe.batch} cannot be shared evenly by {devices} devices")
    method: Any = recipe.method
    if getattr(method, "warmup_epochs", 0):
        method = replace(method, warmup_epochs=0)
    one = replace(recipe, batch=recipe.batch // devices, method=method, machine=replace(machine, devices=1, nodes=1))
    shared = f"one of {devices} devices is measured, with its share of the batch: {one.batch}"
    return one, [shared] if devices > 1 else []


def _decode(index: Index, recipe: Recipe, seconds: float) -> dict[int, float]:
    """Tiles a second by one loader process, and by as many as the recipe has; each on tiles of its own."""
    counts = sorted({1, workers(recipe.machine)})
    return {
        count: decode_rate(index, count, recipe.seed + 1 + turn, most_s=0.05 * seconds)
        for turn, count in enumerate(counts)
    }


def _times(seconds: float, step_s: float, least: int, most: int, share: float) -> int:
    """How often something that takes a step's time is repeated."""
    return max(least, min(most, int(share * seconds / step_s)))


def _rate(
    stage: Stage, tiles: Tiles, seconds: float, tile_s: float, say: Callable[[str], None]
) -> Callable[[int], float]:
    def rate(batch: int) -> float:
        say(f"bench: batches of {batch}")
        return pairs_per_s(stage, tiles, batch, _times(seconds, batch * tile_s, *TRIALS))

    return rate
