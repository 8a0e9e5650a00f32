"""A run: its folder, its devices, its state to save and go on from, and signals that stop it."""

from __future__ import annotations

import os
import shlex
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from colocate.base.errors import TileError, UserError
from colocate.base.files import absolute, write_atomically
from colocate.base.processes import cores
from colocate.base.text import counted, reason, say
from colocate.data.index import Index
from colocate.data.inspect import labels_note, looks_like_labels
from colocate.data.loader import spaced
from colocate.methods.method import Method
from colocate.slides.listing import are_slides
from colocate.slides.settings import check_mpp
from colocate.training import checkpoint
from colocate.training.journal import begun
from colocate.training.recipe import (
    MachineConfig,
    Precision,
    Recipe,
    StoredMethod,
    differences,
    from_json,
    placed,
    read_recipe,
    to_json,
)


def launch(machine: MachineConfig, precision: Precision, batch: int) -> Fabric:
    """Lightning's Fabric on a machine, its processes started.

    Raises UserError: a machine that is not there, or a batch that its devices cannot share.
    """
    devices, nodes = machine.devices or "auto", machine.nodes
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun has decided
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    gpus = torch.cuda.device_count() if machine.accelerator != "cpu" else 1
    several = nodes > 1 or (gpus if devices == "auto" else int(devices)) > 1
    # Its successor is not in all versions of torch that we take, and sends buffers once.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    try:
        fabric = Fabric(
            accelerator=machine.accelerator,
            devices=devices,
            num_nodes=nodes,
            # Queues are equal everywhere by construction, and batch norm keeps each process's own statistics.
            strategy=DDPStrategy(broadcast_buffers=False) if several else "auto",
            precision="32-true" if precision == "32" else precision,
        )
    except (RuntimeError, ValueError, ImportError, MisconfigurationException) as error:
        said = f"accelerator {machine.accelerator}, devices {devices}, nodes {nodes}: {error}"
        raise UserError(f"{said} (--accelerator auto takes what is there)") from error
    if fabric.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if precision == "16-mixed" and fabric.device.type == "cpu":
        raise UserError("precision 16-mixed needs a GPU: give --precision 32 or bf16-mixed")
    # Of mixed precision it would round what networks are given, the corners of crops too: from 256 px on by pixels.
    fabric.strategy.precision.convert_input = lambda data: data
    fabric.launch()
    mkldnn = torch.backends.mkldnn.is_available() and fabric.device.type == "cpu" and fabric.is_global_zero
    if precision == "bf16-mixed" and mkldnn and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        say("this CPU has no instructions for bfloat16 and imitates it, ten times slower: --precision 32 is faster")
    if batch % fabric.world_size:
        raise UserError(f"a batch of {batch} cannot be shared evenly by {fabric.world_size} devices")
    return fabric


def workers(machine: MachineConfig) -> int:
    """Loader processes per device."""
    return min(8, cores()) if machine.workers is None else machine.workers


def planned_steps(recipe: Recipe, tiles: int) -> int:
    """Optimiser steps of the whole run on so many tiles."""
    return recipe.steps or max(1, recipe.epochs * max(1, tiles // recipe.batch) // recipe.accumulate)


def prepare_folder(run: Path, recipe: Recipe, resume: bool) -> None:
    """Make the run folder with recipe.json and tiles.arrow, or check that it can be gone on with.

    Raises UserError: it holds another run, or data that are not the same; or the data cannot be read at all.
    """
    stored = run / "recipe.json"
    if begun(run, resume):
        before = read_recipe(stored)
        if changed := _changes(recipe, before):
            told = f"{run} is a run of another recipe ({'; '.join(changed)})"
            more = f" (and --init {run / 'backbone.safetensors'} to train on from its weights)"
            raise UserError(f"{told}: give the same, or another --out{more}")
        old = Index.open(run / "tiles.arrow")
        if (recipe.data, recipe.root) == (before.data, before.root) and old.origin == _origin(recipe):
            return
        moved = _index(run / "moved.arrow", recipe)
        scaled = recipe.views.mpp is not None and not np.array_equal(moved.mpp, old.mpp, equal_nan=True)
        if moved.fingerprint != old.fingerprint or scaled:
            raise UserError(f"{recipe.data} does not hold the tiles that {run} was started with: give the same data")
        (run / "moved.arrow").replace(run / "tiles.arrow")
        (run / "skipped.csv").unlink(missing_ok=True)  # which names tiles by their old place
    else:
        for name in ("skipped.csv", "probes.csv", "best/backbone.safetensors", "best/backbone.json"):
            (run / name).unlink(missing_ok=True)  # of a start that was refused, or ended before it had saved anything
        _index(run / "tiles.arrow", recipe)
    write_atomically(stored, to_json(recipe))


MADE = ("recipe.json", "tiles.arrow", "moved.arrow")  # before the first step


@contextmanager
def nothing_left_if_refused(run: Path) -> Iterator[None]:
    """Remove again what a run makes before its first step, if it is refused there; slides that were cut stay cut."""
    before = {path.name for path in run.iterdir()}
    try:
        yield
    except UserError:
        if {path.name for path in run.iterdir()} - before <= {*MADE, "tiles"}:
            for name in {*MADE} - before:
                (run / name).unlink(missing_ok=True)
        raise


def _changes(recipe: Recipe, before: Recipe) -> list[str]:
    return [f"{name} is {now}, was {then}" for name, (now, then) in differences(placed(recipe), placed(before)).items()]


def _origin(recipe: Recipe) -> tuple[str, str | None]:
    """Where the recipe's data lie, as an index tells it: "tiles" is elsewhere in another working folder."""
    data, root = (path and str(absolute(Path(path).expanduser())) for path in (recipe.data, recipe.root))
    return data or "", root


def _index(path: Path, recipe: Recipe) -> Index:
    if recipe.tile_mpp is not None:
        check_mpp(recipe.tile_mpp, "--tile-mpp")
    data = Path(recipe.data).expanduser()
    if are_slides(data):
        if recipe.root is not None:
            raise UserError(
                f"--root {recipe.root} goes with lists and tables of tiles, and {data} holds slides: leave it out"
            )
        from colocate.slides.tile import cut_for_training

        data = cut_for_training(data, path.parent / "tiles", recipe.tiling, recipe.tile_mpp)
    root = None if recipe.root is None else Path(recipe.root)
    index = Index.build(data, path, root=root, mpp=recipe.tile_mpp, hold_out=recipe.hold_out, origin=_origin(recipe))
    if len(index) < recipe.batch:
        path.unlink()
        raise UserError(
            f"{recipe.data} holds {counted(len(index), 'tile')}, fewer than a batch: give --batch {len(index)} or less"
        )
    if recipe.views.mpp is not None and (unsaid := int(np.isnan(index.mpp).sum())):  # a late batch may have the first
        path.unlink()
        told = f"{counted(unsaid, 'tile')} of {recipe.data} have no mpp, which --views.mpp {recipe.views.mpp:g} needs"
        raise UserError(f"{told}: give --tile-mpp, or a table with mpp")
    note_labels(index)
    planned = planned_steps(recipe, len(index))
    if recipe.steps is None and planned < ENOUGH:
        asked = f"{counted(recipe.epochs, 'epoch')} of {counted(len(index), 'tile')}"
        say(f"note: {asked} are {counted(planned, 'step')}; {ENOUGH:,} are known to help: --steps {ENOUGH}")
    for part in ("optim", "method"):
        epochs = getattr(getattr(recipe, part), "warmup_epochs", 0)
        whole = planned * recipe.accumulate / max(1, len(index) // recipe.batch)  # the run, in epochs
        if epochs >= whole:
            tenth = f"{whole / 10:.2g}" if part == "optim" else f"{whole // 10:.0f}"  # a method counts whole epochs
            say(f"note: the warm-up takes the whole run: give a shorter one, such as --{part}.warmup-epochs {tenth}")
    return index


ENOUGH = 1200  # steps of 64 tiles, after which features were better in docs/results/race.md
SAMPLED = 16  # tiles that are looked at


def note_labels(index: Index) -> None:
    """Say so where tiles look like masks of labels, by a few of them; those that cannot be read are for training."""
    labels = opened = 0
    for number in spaced(range(len(index)), SAMPLED):
        with suppress(TileError):
            channels = index.read(number).flatten(1)
            labels += looks_like_labels(torch.stack([torch.bincount(one, minlength=256) for one in channels]).numpy())
            opened += 1
    if note := labels_note(labels, opened):
        say(f"note: {note}")


def state(
    step: int, recipe: Recipe, index: Index, fabric: Fabric, method: Method, optimizer: Optimizer
) -> dict[str, Any]:
    """All that a run needs to go on after `step`; what is random or scheduled follows from the step."""
    return {
        "step": step,
        "recipe": to_json(recipe),
        "data": index.fingerprint,
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "precision": fabric.strategy.precision.state_dict(),
    }


def restore(run: Path, recipe: Recipe, index: Index, fabric: Fabric, method: Method, optimizer: Optimizer) -> int:
    """Load the last checkpoint of a run, if it has one; returns the step to go on from.

    Raises UserError: a checkpoint that is cut short, of another recipe or other data, or of another version's networks.
    """
    paths = checkpoint.checkpoints(run / "checkpoints")
    if not paths:
        return 0
    stored = checkpoint.load_checkpoint(paths[-1])
    changed = _changes(recipe, from_json(stored["recipe"], str(paths[-1])))
    if stored["data"] != index.fingerprint:
        changed.append("the tiles are not the same")
    if changed:
        raise UserError(f"{paths[-1]} is a checkpoint of another recipe ({'; '.join(changed)})")
    try:
        method.load_state_dict(stored["method"])
        optimizer.load_state_dict(stored["optimizer"])
        fabric.strategy.precision.load_state_dict(stored["precision"])
    except (RuntimeError, ValueError, LookupError) as error:
        raise UserError(
            f"{paths[-1]} does not fit the networks as they are built now ({reason(error)}): go on with the versions "
            f"of colocate, timm and torch that {run / 'backbone.json'} names, or start a new run"
        ) from error
    return int(stored["step"])


def resume_command(run: Path, *options: str) -> str:
    """What to type to go on with a run, with further options."""
    stored = run / "recipe.json"
    try:
        trust = ["--trust"] if isinstance(read_recipe(stored).method, StoredMethod) else []
    except UserError:  # the command will say what is wrong with it
        trust = []
    return " ".join(["colocate pretrain --from", shlex.quote(str(stored)), *options, "--resume", *trust])


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C instead of dying of them; a second Ctrl-C leaves at once."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    numbers = (signal.SIGTERM, signal.SIGINT) if current_thread() is main_thread() else ()  # others get none
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
