"""The ways to judge a backbone: each takes one to training and test images, and gives a record of every test image."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Bool, Int32, Int64, UInt8
from PIL import Image
from torch import Tensor

from colocate.base.errors import UserError
from colocate.data.inspect import contact_sheet
from colocate.data.loader import spaced
from colocate.datasets.labelled import Labelled
from colocate.evaluate.candidates import Candidate
from colocate.evaluate.decoders import (
    Detector,
    InstancesConfig,
    Segmenter,
    SemanticsConfig,
    class_target,
    instance_target,
)
from colocate.evaluate.fit import Engine, Examples, fit
from colocate.evaluate.metrics import FAMILIES
from colocate.evaluate.metrics.objects import Objects, label_map, shared_pixels
from colocate.models.backbones import Backbone
from colocate.pretrain.probes import ProbeConfig, frozen_cells, probe, settled

SIDE_PX = 192
TRUE, FOUND, MISSED = (0, 158, 115), (213, 94, 0), (240, 228, 66)  # Okabe and Ito: green, vermilion, yellow
SHEET = 8


@final
class Overlays:
    """Pictures of a few test images, evenly spaced: green where truth and prediction agree, vermilion where something
    was found that is not there, yellow where something was missed."""

    def __init__(self, data: Labelled, test: Sequence[int]) -> None:
        self.data = data
        self.wanted = set(spaced(test, SHEET))
        self.pictures: list[tuple[Image.Image, str, str]] = []

    def objects(self, number: int, truth: Int32[Tensor, "h w"], found: Int32[Tensor, "h w"]) -> None:
        """Outlines of objects: found ones green where they share half of themselves and a true one, else vermilion;
        true ones that no found one matches yellow."""
        if number not in self.wanted:
            return
        shared = shared_pixels(truth, found)
        union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
        good = shared > 0.5 * union
        good[0], good[:, 0] = False, False
        hit, met = torch.from_numpy(good.any(0)), torch.from_numpy(good.any(1))
        right = torch.where(hit[found.long()], found, 0)
        lines = [
            (_edges(torch.where(met[truth.long()], 0, truth)), MISSED),
            (_edges(torch.where(hit[found.long()], 0, found)), FOUND),
            (_edges(right), TRUE),
        ]
        picture = self.data.image(number).permute(1, 2, 0).clone()
        for edges, colour in lines:
            picture[edges] = torch.tensor(colour, dtype=torch.uint8)
        matched = int(good.any(0).sum())
        self._add(number, picture, f"{matched} of {_count(truth)}, {_count(found) - matched} false")

    def classes(self, number: int, truth: Int64[Tensor, "h w"], found: Int64[Tensor, "h w"]) -> None:
        """Pixels of other classes than background (0): tinted by whether they were called right."""
        if number not in self.wanted:
            return
        counted = torch.ones_like(truth, dtype=torch.bool)
        if self.data.ignored is not None:
            counted = truth != self.data.ignored
        picture = self.data.image(number).permute(1, 2, 0).clone()
        for where, colour in (
            ((truth == found) & (truth > 0), TRUE),
            ((truth != found) & (found > 0) & counted, FOUND),
            ((truth != found) & (truth > 0) & (found == 0) & counted, MISSED),
        ):
            tint = torch.tensor(colour, dtype=torch.float32)
            picture[where] = (0.55 * picture[where].float() + 0.45 * tint).to(torch.uint8)
        right = float((truth == found)[counted].float().mean()) if counted.any() else 1.0
        self._add(number, picture, f"{right:.0%} of pixels right")

    def _add(self, number: int, picture: UInt8[Tensor, "h w 3"], words: str) -> None:
        image = Image.fromarray(np.ascontiguousarray(picture.numpy()))
        image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
        self.pictures.append((image, self.data.items[number].name, words))

    def write(self, path: Path) -> None:
        """The pictures on one sheet. Raises UserError where it cannot be written."""
        if self.pictures:
            contact_sheet(self.pictures, path, SIDE_PX, columns=4)


def _edges(ids: Int32[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """Pixels of objects within two pixels of another id."""
    near = F.pad(ids[None].float(), (2, 2, 2, 2), mode="replicate")
    largest, smallest = F.max_pool2d(near, 5, 1)[0], -F.max_pool2d(-near, 5, 1)[0]
    return (largest != smallest) & (ids > 0)


def _count(ids: Int32[Tensor, "h w"]) -> int:
    return int((ids.unique() > 0).sum())


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
        _teach(model, Examples(data, self.config.alter, instance_target, trial.seed), trial, outcome)
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
        _teach(model, Examples(data, self.config.alter, class_target, trial.seed), trial, outcome)
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
