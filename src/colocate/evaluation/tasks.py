"""Tasks that judge a backbone: each learns from training images, and gives a record of every test image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Int32, Int64
from PIL import Image
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.text import Count
from colocate.data.inspect import contact_sheet
from colocate.data.loader import spaced
from colocate.datasets.labelled import Labelled
from colocate.evaluation.candidates import Candidate
from colocate.evaluation.contours import ContourSegmenter, contour_target, on_glass
from colocate.evaluation.decoders import Detector, Pyramid, Segmenter, class_target, cropped, instance_target
from colocate.evaluation.fit import Examples, fit, flipped
from colocate.evaluation.metrics import FAMILIES, coco
from colocate.evaluation.metrics.objects import Objects, label_map, shared_pixels
from colocate.evaluation.settings import (
    OBJECTS,
    ContoursConfig,
    Engine,
    InstancesConfig,
    ProbeConfig,
    SemanticsConfig,
    Task,
)
from colocate.models.backbones import Backbone, batch_norms
from colocate.training.probes import Cells, check_counted, frozen_cells, probe, settled
from colocate.training.run import launch

SIDE_PX = 192
TRUE, FOUND, MISSED = (0, 158, 115), (213, 94, 0), (240, 228, 66)  # Okabe and Ito: green, vermilion, yellow
SHEET = 8


@final
class Overlays:
    """Pictures of a few test images, evenly spaced, and of the worst and the best: green where truth and prediction
    agree, vermilion where something was found that is not there, yellow where something was missed."""

    def __init__(self, data: Labelled, test: Sequence[int]) -> None:
        self.data = data
        self.wanted = spaced(test, SHEET)
        self.pictures: dict[int, tuple[Image.Image, str, str]] = {}
        """By the image's number; with its name and a few words."""
        self.worst: list[tuple[float, int]] = []
        """Share that is right and number of half a sheet's images, the worst first."""
        self.best: list[tuple[float, int]] = []

    def objects(self, number: int, truth: Int32[Tensor, "h w"], found: Int32[Tensor, "h w"]) -> None:
        """Tint objects: found ones green where they share half of themselves and a true one, else vermilion; true ones
        that no found one matches yellow."""
        shared = shared_pixels(truth, found)
        union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
        good = shared > 0.5 * union
        good[0], good[:, 0] = False, False
        hit, met = good.any(0)[found.numpy()], good.any(1)[truth.numpy()]
        true, false = ((shared[1:].sum(1) > 0).sum(), (shared[:, 1:].sum(0) > 0).sum() - good.sum())
        wrong = (found.numpy() > 0) & ~hit
        missed = (truth.numpy() > 0) & ~met & (found.numpy() == 0)
        share = float(good.sum() / (true + false)) if true + false else 1.0
        self._add(number, share, hit, wrong, missed, f"{good.sum()} of {true}, {false} false")

    def classes(self, number: int, truth: Int64[Tensor, "h w"], found: Int64[Tensor, "h w"]) -> None:
        """Tint pixels of other classes than background (0) by whether they were called right."""
        counted = np.ones(truth.shape, bool) if self.data.ignored is None else (truth != self.data.ignored).numpy()
        right, true, called = (truth == found).numpy(), (truth > 0).numpy(), (found > 0).numpy()
        share = float(right[counted].mean()) if counted.any() else None
        words = "no pixel counts" if share is None else f"{share:.0%} of pixels right"
        self._add(number, share, right & true, ~right & called & counted, ~right & true & ~called & counted, words)

    def _add(
        self,
        number: int,
        share: float | None,
        right: Bool[np.ndarray, "h w"],
        wrong: Bool[np.ndarray, "h w"],
        missed: Bool[np.ndarray, "h w"],
        words: str,
    ) -> None:
        if share is not None:
            self.worst = sorted([*self.worst, (share, number)])[: SHEET // 2]
            self.best = sorted([*self.best, (share, number)], key=lambda its: (-its[0], its[1]))[: SHEET // 2]
        kept = {*self.wanted, *(one for _, one in self.worst + self.best)}
        if number not in kept:
            return
        self.pictures = {one: its for one, its in self.pictures.items() if one in kept}
        picture = self.data.image(number).permute(1, 2, 0).numpy().astype(np.float32)
        for where, colour in ((right, TRUE), (wrong, FOUND), (missed, MISSED)):
            picture[where] = 0.55 * picture[where] + 0.45 * np.array(colour, np.float32)
        image = Image.fromarray(picture.astype(np.uint8))
        image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
        self.pictures[number] = (image, self.data.items[number].name, words)

    def write(self, folder: Path) -> None:
        """Write two sheets, overlays.png and worst-best.png. Raises UserError where they cannot be written."""
        extremes = dict.fromkeys(number for _, number in [*self.worst, *reversed(self.best)])  # of few images each once
        for name, numbers in (("overlays.png", self.wanted), ("worst-best.png", list(extremes))):
            if numbers:
                contact_sheet([self.pictures[one] for one in numbers], folder / name, SIDE_PX, columns=4)


@final
@dataclass
class Outcome:
    """Results of one seed."""

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
    scheme: str
    """The way of splitting."""
    train: Sequence[int]
    test: Sequence[int]
    seed: int
    folder: Path
    identity: str
    engine: Engine


def check_stages(task: Task, candidate: Candidate) -> None:
    """Raise UserError where a backbone has not the stages that a task takes: before hours of other work, not after."""
    early = candidate.cell_stride
    if isinstance(task, ProbeConfig):
        backbone = candidate.build(0, cell_stride=task.stride)
        last, remedy = task.stride, f"give --stride {early}"
    else:
        backbone = candidate.build(0)
        Pyramid(backbone)
        frozen = getattr(task, "encoder", "tuned") == "frozen"
        last, remedy = backbone.strides[-1] if frozen and not candidate.continued else 0, "give --encoder tuned"
    if early and early < last:
        told = f"{candidate.label} has cells of {early} px, and pretraining has not trained its later stages"
        raise UserError(f"{told}: {remedy}")
    kept = next((word for word in ("encoder", "norm") if getattr(task, word, "") == "frozen"), None)
    for norm in batch_norms(backbone) if kept and candidate.weights else ():  # random ones take the images' statistics
        if not norm.running_mean.any() and (norm.running_var == 1).all():
            told = f"{candidate.label} has batch norms that never saw an image, as in stages that were not trained"
            raise UserError(f"{told}: give --{kept} tuned")


def run(task: Task, trial: Trial, overlays: Overlays) -> Outcome:
    """Learn from the training images, and judge by the test images."""
    data, seed = trial.data, trial.seed
    match task:
        case InstancesConfig():
            examples = Examples(data, partial(flipped, symmetries=task.symmetries), instance_target, seed)
            return _objects(Detector, task, task.norm == "frozen", examples, trial, overlays)
        case ContoursConfig():
            alter = partial(on_glass, side=task.crop, symmetries=task.symmetries, stain=task.stain)
            examples = Examples(data, alter, partial(contour_target, border=task.border), seed)
            return _objects(ContourSegmenter, task, task.encoder == "frozen", examples, trial, overlays)
        case SemanticsConfig():
            return _semantics(task, trial, overlays)
        case ProbeConfig():
            return _probe(task, trial, overlays)


def _semantics(config: SemanticsConfig, trial: Trial, overlays: Overlays) -> Outcome:
    data, outcome = trial.data, Outcome()
    check_counted(data, trial.train, "training image")
    backbone = _backbone(trial, frozen=config.encoder == "frozen")
    normalised = (trial.candidate.mean, trial.candidate.std)
    model = Segmenter(config, backbone, len(data.pixel_names), data.ignored, *normalised)
    alter = partial(cropped, side=config.crop, symmetries=config.symmetries)
    for number, found in _learned(model, Examples(data, alter, class_target, trial.seed), trial, outcome):
        with _clock(outcome, "measure"):
            truth = data.pixel_classes(number, data.mask(number))
            record = FAMILIES["semantic"].record(truth, found, data.pixel_names, data.ignored)
            outcome.records.append({"semantic": record})
        overlays.classes(number, truth, found)
    return outcome


def _probe(config: ProbeConfig, trial: Trial, overlays: Overlays) -> Outcome:
    data, candidate, outcome = trial.data, trial.candidate, Outcome()
    device = launch(trial.engine.machine(), "32", batch=1).device
    backbone = candidate.build(trial.seed, cell_stride=config.stride).to(device)
    # Random weights come with no statistics at all.
    if candidate.origin == "random":
        config = replace(config, statistics="images")
    with _clock(outcome, "predict"), Count(len(trial.train) + len(trial.test), "image") as count:
        frozen = frozen_cells(backbone, data, trial.train, config, candidate.mean, candidate.std)

        def look(number: int) -> Cells:
            cells = frozen(number)
            count.advance()
            return cells

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
    sizes = {number: (item.height, item.width) for number in trial.train for item in [trial.data.items[number]]}
    return settled(backbone, trial.data.image, sizes, candidate.mean, candidate.std)


def _objects(
    network: Callable[..., Detector | ContourSegmenter],
    config: InstancesConfig | ContoursConfig,
    frozen: bool,
    examples: Examples,
    trial: Trial,
    overlays: Overlays,
) -> Outcome:
    """Teach a network of objects, whose batch norm is `frozen` or not, and judge what it finds in the test images."""
    data, candidate, outcome = trial.data, trial.candidate, Outcome()
    model = network(config, _backbone(trial, frozen), len(data.classes), candidate.mean, candidate.std)
    for number, found in _learned(model, examples, trial, outcome):
        with _clock(outcome, "measure"):
            ids = data.mask(number)
            numbers = ids.unique()
            truth = Objects.of_ids(ids, data.object_classes(number, numbers[numbers > 0].long()).tolist())
            records = {name: FAMILIES[name].record(truth, found) for name in OBJECTS if name != "coco"}
            outcome.records.append({"coco": coco.record(truth, found, config.counted)} | records)
            outcome.predictions += found.to_coco(number)
        overlays.objects(number, ids, label_map(found))
    return outcome


def _learned(
    model: Detector | Segmenter | ContourSegmenter, examples: Examples, trial: Trial, outcome: Outcome
) -> Iterator[tuple[int, Any]]:
    """Fine-tune a model; yield the number of each test image, and what the model finds in it."""
    with _clock(outcome, "train"):
        where = (trial.folder, trial.identity, trial.engine)
        fit(model, examples, trial.train, model.config.fit, *where)
    outcome.model = model.state_dict()
    with Count(len(trial.test), "test image") as count:
        for number in trial.test:
            with _clock(outcome, "predict"):
                found = model.predict(trial.data.image(number))
            yield number, found
            count.advance()


@contextmanager
def _clock(outcome: Outcome, name: str) -> Iterator[None]:
    """Add the time spent to the outcome's seconds."""
    began = time.perf_counter()
    yield
    outcome.seconds[name] = outcome.seconds.get(name, 0.0) + time.perf_counter() - began
