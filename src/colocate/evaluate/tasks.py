"""The ways to judge a backbone: each takes one to training and test images, and gives a record of every test image."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, final

import tyro
from torch import Tensor

from ..backbones import Backbone
from ..data import Labelled
from ..errors import UserError
from ..probes.labelled import ProbeConfig, frozen_cells, probe, settled
from . import instances, semantics
from .candidates import Candidate
from .examples import Examples
from .fit import Engine, fit
from .instances import Detector, InstancesConfig
from .metrics import FAMILIES, Objects, label_map
from .overlays import Overlays
from .semantics import Segmenter, SemanticsConfig


@final
@dataclass
class Outcome:
    """What one seed gave."""

    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    """Objects found, in COCO's form of results; image_id is the number of the image in the data set."""
    model: dict[str, Tensor] | None = None


@final
@dataclass(frozen=True)
class Trial:
    """One backbone, one seed, one choice of images."""

    candidate: Candidate
    data: Labelled
    train: Sequence[int]
    test: Sequence[int]
    seed: int
    folder: Path
    identity: str
    engine: Engine


class Task(ABC):
    """A way to judge a backbone."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    """Families of scores, as `metrics.FAMILIES` names them."""

    @abstractmethod
    def run(self, trial: Trial, overlays: Overlays) -> Outcome:
        """Learn from the training images, and judge by the test images."""


@final
@dataclass(frozen=True)
class InstancesTask(Task):
    """Instance segmentation: Mask R-CNN with a feature pyramid."""

    config: Annotated[InstancesConfig, tyro.conf.arg(name="")] = field(default_factory=InstancesConfig)
    name: ClassVar[str] = "instances"
    metrics: ClassVar[tuple[str, ...]] = ("coco", "glas", "panoptic")

    def run(self, trial: Trial, overlays: Overlays) -> Outcome:
        data, outcome = trial.data, Outcome()
        if data.kind != "instances":
            raise UserError(f"{data.name} has no instances, only classes of pixels: colocate evaluate semantics")
        backbone = _backbone(trial, frozen=self.config.norm == "frozen")
        normalised = (trial.candidate.mean, trial.candidate.std)
        model = Detector(self.config, backbone, len(data.classes), *normalised)
        _teach(model, Examples(data, self.config.alter, instances.target, trial.seed), trial, outcome)
        for number in trial.test:
            with _clock(outcome, "predict"):
                found = model.predict(data.image(number))
            with _clock(outcome, "measure"):
                ids = data.mask(number)
                numbers = ids.unique()
                truth = Objects.of_ids(ids, data.object_classes(number, numbers[numbers > 0].long()).tolist())
                outcome.records.append({name: FAMILIES[name].record(truth, found) for name in self.metrics})
                outcome.predictions += found.to_coco(number)
            overlays.objects(number, ids, label_map(found))
        outcome.model = model.state_dict()
        return outcome


@final
@dataclass(frozen=True)
class SemanticsTask(Task):
    """Semantic segmentation: a U-Net."""

    config: Annotated[SemanticsConfig, tyro.conf.arg(name="")] = field(default_factory=SemanticsConfig)
    name: ClassVar[str] = "semantics"
    metrics: ClassVar[tuple[str, ...]] = ("semantic",)

    def run(self, trial: Trial, overlays: Overlays) -> Outcome:
        data, outcome = trial.data, Outcome()
        backbone = _backbone(trial, frozen=self.config.encoder == "frozen")
        normalised = (trial.candidate.mean, trial.candidate.std)
        model = Segmenter(self.config, backbone, len(data.pixel_names), data.ignored, *normalised)
        _teach(model, Examples(data, self.config.alter, semantics.target, trial.seed), trial, outcome)
        for number in trial.test:
            with _clock(outcome, "predict"):
                found = model.predict(data.image(number))
            with _clock(outcome, "measure"):
                truth = data.pixel_classes(number, data.mask(number))
                record = FAMILIES["semantic"].record(truth, found, data.pixel_names, data.ignored)
                outcome.records.append({"semantic": record})
            overlays.classes(number, truth, found)
        outcome.model = model.state_dict()
        return outcome


@final
@dataclass(frozen=True)
class ProbeTask(Task):
    """Segmentation by frozen cells, without a decoder."""

    config: Annotated[ProbeConfig, tyro.conf.arg(name="")] = field(default_factory=ProbeConfig)
    name: ClassVar[str] = "probe"
    metrics: ClassVar[tuple[str, ...]] = ("probe",)

    def run(self, trial: Trial, overlays: Overlays) -> Outcome:
        data, candidate, outcome = trial.data, trial.candidate, Outcome()
        backbone = candidate.build(trial.seed, cell_stride=self.config.stride)
        # Random weights come with no statistics at all.
        config = replace(self.config, statistics="images") if candidate.origin == "random" else self.config
        with _clock(outcome, "predict"):
            look = frozen_cells(backbone, data, trial.train, config, candidate.mean, candidate.std)
            for number, found in probe(look, data, trial.train, trial.test, config, trial.seed):
                truth = data.pixel_classes(number, data.mask(number))
                outcome.records.append({"probe": FAMILIES["probe"].record(truth, found, data.ignored)})
                overlays.classes(number, truth, found)
        return outcome


def _backbone(trial: Trial, frozen: bool) -> Backbone:
    """The candidate's backbone. Random weights have no statistics to be frozen: they take the training images'."""
    candidate = trial.candidate
    backbone = candidate.build(trial.seed)
    if not frozen or candidate.origin != "random":
        return backbone
    return settled(backbone, trial.data, trial.train, candidate.mean, candidate.std)


def _teach(model: Detector | Segmenter, examples: Examples, trial: Trial, outcome: Outcome) -> None:
    with _clock(outcome, "train"):
        where = (trial.folder, trial.identity, trial.engine)
        fit(model, examples, trial.train, model.config.fit, *where, ready=lambda _: model.ready())


class _clock:
    """Adds the time spent in it to an outcome's seconds."""

    def __init__(self, outcome: Outcome, name: str) -> None:
        self.outcome, self.name = outcome, name

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self.began
        self.outcome.seconds[self.name] = self.outcome.seconds.get(self.name, 0.0) + spent
