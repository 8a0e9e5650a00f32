"""Settings of evaluations. Without torch: options are read, and results tabulated, before it is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, TypeAlias

import tyro

from colocate.base.errors import UserError
from colocate.core.settings import ProbeConfig
from colocate.training.optim import learning_rate
from colocate.training.recipe import MachineConfig, Precision

MOST = 100
"""Detections of a class in an image that COCO's average precision counts."""


@dataclass(frozen=True)
class FitConfig:
    """Optimiser and schedule of fine-tuning."""

    steps: int | None = None
    """Optimiser steps; None: `epochs`."""
    epochs: int = 20
    """How many times each training image is seen."""
    batch: int = 16
    """Images per step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum 0.9, or AdamW."""
    lr: float = 0.02
    """Peak learning rate."""
    weight_decay: float = 1e-4
    """Weight decay."""
    warmup: float = 0.02
    """Share of the steps in which the rate rises from zero."""
    drops: tuple[float, ...] = (0.8,)
    """Shares of the steps after which the rate falls to a tenth; none: it follows a cosine to zero."""
    clip: float | None = None
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"fit.{name} is 1 or more, not {value}")
        if not (self.lr > 0 and self.weight_decay >= 0) or (self.clip is not None and not self.clip > 0):
            raise UserError("fit.lr and fit.clip are positive, and fit.weight_decay 0 or more")
        if not all(0 <= share < 1 for share in (self.warmup, *self.drops)):
            raise UserError("warmup and drops are shares of the steps, in [0, 1)")

    def planned(self, images: int) -> int:
        """Number of optimiser steps for a number of training images."""
        return self.steps or -(-self.epochs * images // self.batch)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step (0 is the first).

        >>> config = FitConfig(lr=1.0, warmup=0.2, drops=(0.5, 0.9))
        >>> [round(config.rate(step, 10), 3) for step in range(10)]
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.01]
        """
        warmup = self.warmup * steps
        if not self.drops:
            return learning_rate(self.lr, step, steps, warmup)
        fallen = sum(step >= drop * steps for drop in self.drops)
        return self.lr * min(1.0, (step + 1) / max(1.0, warmup)) * 0.1**fallen


@dataclass(frozen=True)
class Engine:
    """Single-device settings of fine-tuning; run one seed on each GPU to use several."""

    accelerator: str = "auto"
    """auto, cpu, gpu."""
    precision: Precision = "32"
    """Arithmetic of the networks."""
    workers: int | None = None
    """Processes that read and decode images; None: one per available core, at most 8."""
    log_every: int = 10
    """Steps between two rows of the journal."""
    save_every: int = 500
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "an evaluation runs on one device: instead of torchrun, start one command per device, each with its "
                "own --first-seed and --seeds"
            )
        self.machine()  # checks the rest

    def machine(self) -> MachineConfig:
        """The same settings for pretraining's engine."""
        return MachineConfig(
            self.accelerator, 1, 1, self.workers, log_every=self.log_every, save_every=self.save_every, journals=()
        )


@dataclass(frozen=True)
class InstancesConfig:
    """Mask R-CNN with a feature pyramid, as the paper trains it on GlaS."""

    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=5000, warmup=1000 / 5000))
    short_side: tuple[int, int] = (400, 522)
    """Training images are resized so that their short side lies in this range, in px."""
    test_short_side: int = 522
    """Short side of test images, in px."""
    long_side: int = 1333
    """Largest long side, in px."""
    symmetries: bool = False
    """All flips and quarter turns of training images; otherwise only horizontal flips."""
    norm: Literal["tuned", "frozen"] = "tuned"
    """Batch norm: tuned on whole batches, in the feature pyramid too; or frozen at the weights' own statistics."""
    detections: int = 100
    """Largest number of objects found in an image."""
    proposals: int = 512
    """Proposals per image that the heads learn from."""
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Sides of the anchors at the five levels of the pyramid, in px."""

    @property
    def counted(self) -> int:
        """Most detections of a class in an image that average precision counts: COCO's 100, or all."""
        return max(MOST, self.detections)

    def __post_init__(self) -> None:
        low, high = self.short_side
        if not 0 < low <= high <= self.long_side or not 0 < self.test_short_side <= self.long_side:
            raise UserError("short_side is a range, and with test_short_side at most long_side, in px")
        if len(self.anchors) != 5 or min(self.detections, self.proposals) < 1:
            raise UserError("anchors are five sides, detections and proposals 1 or more")


@dataclass(frozen=True)
class SemanticsConfig:
    """A U-Net, as the paper trains it on BCSS: 20 epochs, AdamW, crops of 256 px."""

    fit: FitConfig = field(
        default_factory=lambda: FitConfig(batch=32, optimizer="adamw", lr=5e-4, weight_decay=0.02, drops=())
    )
    crop: int = 256
    """Side of the training crops, in px."""
    symmetries: bool = True
    """All flips and quarter turns of training crops; otherwise only horizontal flips."""
    encoder: Literal["tuned", "frozen"] = "tuned"
    """tuned: the backbone learns too; frozen: only the decoder does (batch norm then keeps the statistics that came
    with the weights, or with random weights those of the training images)."""

    def __post_init__(self) -> None:
        if self.crop < 32 or self.crop % 32:
            raise UserError(f"crop is a multiple of 32 px, not {self.crop}")


@dataclass(frozen=True)
class ContoursConfig(SemanticsConfig):
    """A U-Net of the classes inside of objects, and of their borders."""

    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            steps=1000, batch=8, optimizer="adamw", lr=5e-4, weight_decay=0.02, warmup=0.1, drops=()
        )
    )
    border: int = 6
    """Width of the border within an object, in px; at most half of a thin object."""
    counted: ClassVar[int] = MOST
    """Most detections of a class in an image that average precision counts."""
    smallest: int = 30
    """Least area inside an object's border, in px: anything smaller is not an object."""
    stain: float = 0.4
    """How much stains vary between training crops: haematoxylin, eosin and DAB are scaled by 1 +- this, and shifted by
    +- an eighth of it in optical density. A few patients do not show how much stains vary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.border, self.smallest) < 1 or not 0 <= self.stain < 1:
            raise UserError("border and smallest are 1 or more, in px; stain is 0 or more, and below 1")


Task: TypeAlias = InstancesConfig | ContoursConfig | SemanticsConfig | ProbeConfig
"""The settings of a way to judge a backbone."""
TASKS: dict[str, type[Task]] = {
    "instances": InstancesConfig,
    "contours": ContoursConfig,
    "semantics": SemanticsConfig,
    "probe": ProbeConfig,
}
OBJECTS = ("coco", "glas", "panoptic")
METRICS = {"instances": OBJECTS, "contours": OBJECTS, "semantics": ("semantic",), "probe": ("probe",)}
"""Families of scores of each task, as `metrics.FAMILIES` names them."""


def name_of(task: Task) -> str:
    """The name of the task that these are settings of."""
    return next(name for name, kind in TASKS.items() if kind is type(task))


QUICK = FitConfig(steps=60, batch=8, optimizer="adamw", lr=1e-3, weight_decay=0.02, drops=())
SMOKE: dict[str, Task] = {
    "instances": InstancesConfig(
        FitConfig(steps=150, batch=4, lr=0.01, warmup=0.1),
        (100, 131),
        131,
        proposals=64,
        anchors=(8, 16, 32, 64, 128),
    ),
    "contours": ContoursConfig(QUICK, crop=96),
    "semantics": SemanticsConfig(QUICK, crop=96),
}
"""Tiny settings, to see that all is in place: minutes on a CPU."""


def task_for(name: str, data: str = "", smoke: bool = False) -> Task:
    """The settings of a task: its defaults on a prepared data set (empty: those of any), or tiny ones.

    Raises UserError: no such task, or `data` is no prepared data set.
    """
    if name not in TASKS:
        raise UserError(f"no task {name!r}: there are {', '.join(TASKS)}")
    if smoke and name in SMOKE:
        return SMOKE[name]
    if smoke or not data:
        return TASKS[name]()
    from colocate.datasets.labelled import Labelled
    from colocate.evaluation.protocol import USUAL

    return USUAL.get(name, lambda _: TASKS[name]())(Labelled.open(data))


VERSION = 1  # of results; to be raised when the same settings would give other numbers


@dataclass(frozen=True)
class Protocol:
    """Settings of an evaluation whatever the task: data, seeds, output folder."""

    data: str = ""
    """A data set that `colocate prepare` wrote."""
    out: str = "results"
    """Folder of results: each is written once, and a command that was stopped continues."""
    split: str | None = None
    """The split; None: the first of the data set."""
    fraction: float = 1.0
    """Share of the training images to learn from, taken case by case in an order drawn for each seed."""
    seeds: int = 3
    """Repetitions: initial weights, order, augmentation and choice of images differ."""
    first_seed: int = 0
    """Number of the first seed."""
    allow_leakage: bool = False
    """Evaluate even if test images or their patients are in the pretraining or training data; results say so."""
    keep_models: bool = False
    """Keep each fine-tuned model: model.safetensors and model.json beside its result, for `colocate predict`."""
    engine: Annotated[Engine, tyro.conf.arg(name="")] = field(default_factory=Engine)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"fraction is a share of the training images, above 0 and at most 1, not {self.fraction}")
        if self.seeds < 1:
            raise UserError(f"seeds must be 1 or more, not {self.seeds}")
