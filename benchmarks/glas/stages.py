"""The proof's stages: each is stopped when time is over, and goes on when it is asked again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from colocate.checkpoint import checkpoints
from colocate.evaluate.candidates import find_candidate
from colocate.evaluate.fit import FitConfig
from colocate.evaluate.instances import InstancesConfig
from colocate.evaluate.presets import smoke_instances
from colocate.evaluate.protocol import Protocol, evaluate
from colocate.evaluate.tasks import InstancesTask
from colocate.methods.concl import ConCLConfig
from colocate.methods.moco import MoCoConfig
from colocate.optim import OptimConfig
from colocate.recipe import MachineConfig, Precision, Recipe
from colocate.recipes import find_recipe, small
from colocate.train import Interrupted, pretrain

MORE = 75  # exit status: time was over and there is more to do (EX_TEMPFAIL of sysexits.h)


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    px: int
    """Side of the views."""
    stride: int
    batch: int
    epochs: int
    steps: int | None
    """Steps of pretraining, in place of epochs."""
    queue: int
    lr: float
    precision: Precision
    instances: InstancesConfig
    machine: MachineConfig


# 4,300 tiles: 240 epochs are a million pairs, at some 2,500 a second seven minutes of one large GPU. 1,500 steps of
# Mask R-CNN in place of the paper's 5,000 are what ten minutes hold; both are sizes to be raised where time allows.
SIZES = {
    "gpu": Size(
        *(224, 32, 256, 240, None, 4096, 0.03, "bf16-mixed", InstancesConfig(FitConfig(steps=1500))),
        MachineConfig(save_every=200),
    ),
    "smoke": Size(
        *(64, 16, 16, 1, 6, 64, 0.03, "32"),
        replace(smoke_instances(), fit=replace(smoke_instances().fit, steps=6, batch=2), proposals=8),
        MachineConfig("cpu", workers=0, save_every=2, log_every=2, journals=()),
    ),
}


def recipe_of(name: str, size: Size, data: Path, out: Path) -> Recipe:
    """A recipe's small form (a few thousand tiles: a key that follows sooner, all symmetries) at a size.

    The queue is an epoch long at most, or a tile's own past keys would be among its negatives; the rate is the
    paper's for 256, scaled to the batch.
    """
    recipe = small(find_recipe(name))
    method = recipe.method
    if isinstance(method, ConCLConfig):
        method = replace(method, moco=replace(method.moco, queue_length=size.queue))
    elif isinstance(method, MoCoConfig):
        method = replace(method, queue_length=size.queue)
    return replace(
        recipe,
        method=method,
        encoder=replace(recipe.encoder, output_stride=size.stride),
        views=replace(recipe.views, size=size.px),
        optim=OptimConfig(lr=size.lr, scale_lr=True, warmup_epochs=2),
        machine=size.machine,
        data=str(data / "tiles.csv"),
        out=str(out / "runs" / name),
        batch=size.batch,
        epochs=size.epochs,
        steps=size.steps,
        precision=size.precision,
        data_licence="GlaS: research only; EBHI-Seg, LC25000: see their pages",
    )


def run(data: Path, out: Path, names: list[str], seeds: int, split: str, size: Size, minutes: float) -> int:
    """Pretrain every recipe, then evaluate all with seed 0, all with seed 1, ...; returns 0 when all is done, else 75.

    `random` is no recipe: its backbone is not trained. What is done already is not done again.
    """
    say = Console(stderr=True, highlight=False).print
    try:
        with _deadline(minutes):
            for name in names:
                if name != "random":
                    _pretrain(recipe_of(name, size, data, out), say)
            words = ["random" if name == "random" else f"{name}={out / 'runs' / name}" for name in names]
            candidates = [find_candidate(word) for word in words]
            protocol = Protocol(
                str(data / "glas"), str(out / "results"), split, seeds=seeds, precision="32", machine=size.machine
            )
            evaluate(InstancesTask(size.instances), protocol, candidates)
    except Interrupted as stop:
        say(f"time is over ({stop}); give the same command to go on", soft_wrap=True)
        return MORE
    say(f"all is done: {len(names)} backbones, {seeds} seeds in {out / 'results'}", soft_wrap=True)
    return 0


def _pretrain(recipe: Recipe, say: Any) -> None:
    run = Path(recipe.out)
    if (run / "done").exists():
        say(f"{recipe.name}: pretrained", soft_wrap=True)
        return
    say(f"{recipe.name}: pretraining{' goes on' if checkpoints(run / 'checkpoints') else ''}", soft_wrap=True)
    pretrain(recipe, resume=True)
    (run / "done").touch()


@contextmanager
def _deadline(minutes: float) -> Iterator[None]:
    """After so many minutes the process gets SIGTERM: training saves itself, all else stops where it is."""

    def over(number: int, frame: FrameType | None) -> None:
        raise Interrupted("between two trainings")

    before = signal.signal(signal.SIGTERM, over)
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
