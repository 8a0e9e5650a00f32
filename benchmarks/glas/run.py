"""The stages of a proof, worked off in pieces: a piece goes on where the last one stopped, and ends when its time does.

Several processes may work in one folder at once, on one GPU or several: each takes stages that no other has in hand.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import final

import torch

from benchmarks.glas.archives import Packs, claim
from benchmarks.glas.plan import RANDOM, Plan, Stage, recipe_of
from colocate import checkpoint, train
from colocate.evaluate import protocol
from colocate.evaluate.candidates import find_candidate
from colocate.evaluate.fit import Engine
from colocate.evaluate.tasks import InstancesTask
from colocate.recipe import Recipe
from colocate.run import prepare_folder

LOG_EVERY, SAVE_EVERY = 20, 250  # steps
LOOK_AGAIN_S = 2.0  # while all that could be done is in other processes' hands


@final
class Deadline:
    """Once its time is over it sends this process SIGTERM, as a scheduler would, every second until its block ends.

    The loops of pretraining and fine-tuning save themselves and stop. Between them the signal is noted, and sent again,
    since it may have come just before a loop began to listen.
    """

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        self.asked = False
        self.left = threading.Event()
        self.thread = threading.Thread(target=self._ring, daemon=True)

    def __enter__(self) -> Deadline:
        self.before = signal.signal(signal.SIGTERM, self._note)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()
        self.thread.join()
        signal.signal(signal.SIGTERM, self.before)

    @property
    def over(self) -> bool:
        """Whether nothing new should be begun."""
        return self.asked or time.monotonic() >= self.ends

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def _ring(self) -> None:
        while not self.left.wait(1.0):
            if self.over:
                os.kill(os.getpid(), signal.SIGTERM)


@final
@dataclass(frozen=True)
class Proof:
    """A plan, its data, and the folder in which it is worked off.

    OUT/plan.json, OUT/runs/RECIPE, OUT/results/... (as `colocate evaluate` names them), OUT/claims. What is done is
    told by the runs and results themselves, so that the folder may be copied to another machine.
    """

    plan: Plan
    packs: Packs
    out: Path
    accelerator: str = "auto"
    workers: int | None = None

    @property
    def engine(self) -> Engine:
        """Where and how networks are taught."""
        return Engine(self.accelerator, self.plan.size.fit_precision, self.workers, LOG_EVERY, SAVE_EVERY)

    def recipe(self, name: str) -> Recipe:
        """How a recipe is pretrained."""
        return recipe_of(name, self.plan.size, self.packs.tiles, self.run(name), self.engine.machine())

    def run(self, name: str) -> Path:
        """The folder of a recipe's pretraining."""
        return self.out.absolute() / "runs" / name

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage has left all that it should."""
        if stage.does == "pretrain":
            return _steps_of(self.run(stage.recipe) / "backbone.json") >= self.plan.size.steps
        files = (self.out / "results").glob("*/result.json")
        return (stage.recipe, stage.split, stage.seed) in {_judged(file) for file in files}

    def is_ready(self, stage: Stage) -> bool:
        """Whether what a stage builds on is there."""
        if stage.does == "pretrain" or stage.recipe == RANDOM:
            return True
        return self.is_done(Stage("pretrain", stage.recipe))

    def left(self) -> list[Stage]:
        """The stages that are not done, in the order of their turn."""
        return [stage for stage in self.plan.stages() if not self.is_done(stage)]

    def do(self, stage: Stage) -> None:
        """Begin a stage, or go on with it. Raises Interrupted if it was stopped, having saved itself."""
        if stage.does == "pretrain":
            train.pretrain(self.recipe(stage.recipe), resume=True)
            return
        if stage.recipe == RANDOM:
            candidate = find_candidate(RANDOM, self.plan.size.backbone)
        else:
            candidate = find_candidate(f"{stage.recipe}={self.run(stage.recipe)}")
        wanted = protocol.Protocol(
            data=str(self.packs.labelled().folder),
            out=str(self.out / "results"),
            split=stage.split,
            seeds=1,
            first_seed=stage.seed,
            engine=self.engine,
        )
        protocol.evaluate(InstancesTask(self.plan.size.instances), wanted, [candidate])

    def settle(self) -> None:
        """Unpack what is packed; tell runs that were begun where their tiles lie now: the leakage check reads them."""
        self.packs.labelled()
        with claim(self.out / "claims" / "settling", wait=True):
            for name in self.plan.pretrained:
                if (self.run(name) / "recipe.json").exists():
                    prepare_folder(self.run(name), self.recipe(name), resume=True)

    def work(self, seconds: float, say: Callable[[str], object] = print) -> list[Stage]:
        """Work off stages until all are done or the time is over; returns those that are left.

        However short the time, one stage gets a step further.
        """
        with Deadline(seconds) as deadline:
            self.settle()
            while left := self.left():
                try:
                    if not any(self._take(stage, say) for stage in left if self.is_ready(stage)):
                        time.sleep(LOOK_AGAIN_S)
                except train.Interrupted as stop:
                    say(str(stop).partition(";")[0])
                    break
                if deadline.over:
                    break
        return self.left()

    def _take(self, stage: Stage, say: Callable[[str], object]) -> bool:
        """Do a stage, unless another process has it in hand."""
        with claim(self.out / "claims" / stage.name.replace(" ", "-")) as mine:
            if not mine or self.is_done(stage):
                return mine
            began = time.monotonic()
            say(f"{stage.name} ...")
            self.do(stage)
            say(f"{stage.name}: done ({time.monotonic() - began:.0f} s in this piece)")
        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()  # other processes may want it
        return True

    def progress(self, stage: Stage) -> str:
        """A stage that is left, and how far it has come."""
        saved = checkpoint.checkpoints(self.run(stage.recipe) / "checkpoints") if stage.does == "pretrain" else []
        if not saved:
            return stage.name
        return f"{stage.name} ({int(saved[-1].stem.removeprefix('step')):,} of {self.plan.size.steps:,} steps)"


def _steps_of(facts: Path) -> int:
    return int(json.loads(facts.read_text())["steps"]) if facts.exists() else 0


@cache
def _judged(result: Path) -> tuple[str, str, int]:
    """What a result is of; results are written whole and never changed."""
    facts = json.loads(result.read_text())
    return facts["backbone"]["label"], facts["dataset"]["split"], facts["seed"]
