"""Apply a fine-tuned model to windows of a slide, which other processes read ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from lightning_fabric import Fabric
from torch import Tensor

from colocate.base.errors import UserError
from colocate.data.loader import read_ahead
from colocate.evaluation.contours import ContourSegmenter
from colocate.evaluation.decoders import Segmenter
from colocate.evaluation.metrics.objects import Found
from colocate.evaluation.saved import SavedModel
from colocate.prediction.outputs import UNSEEN
from colocate.prediction.stitch import Window
from colocate.slides.slide import Slide


def read_regions(
    slide: Slide, places: Shaped[np.ndarray, "n 2"], side: int, mpp: float, batch: int, workers: int
) -> Iterator[UInt8[Tensor, "b 3 side side"]]:
    """Read regions of `side` px of `mpp` whose top left corners are at `places` (level0 x, y), batch after batch.

    Only what is read ahead is in memory. Raises TileError if the slide is damaged.
    """
    some = [places[start : start + batch] for start in range(0, len(places), batch)]
    return read_ahead(partial(_regions, slide, side, mpp), range(len(some)), some.__getitem__, workers)


def _regions(slide: Slide, side: int, mpp: float, places: Shaped[np.ndarray, "b 2"]) -> UInt8[Tensor, "b 3 s s"]:
    regions = [slide.read(x, y, side, side, mpp) for x, y in places.tolist()]
    return torch.from_numpy(np.stack(regions)).permute(0, 3, 1, 2)


BACKGROUND = "background"
MOST_CLASSES = 255
ALIKE = 1.1  # resolutions that differ by less are taken for one


class Classes(NamedTuple):
    """What a window shows."""

    classes: UInt8[Tensor, "s s"]
    """The class of each pixel: 0, 1, ...; `UNSEEN` where there is no tissue."""
    confidence: UInt8[Tensor, "s s"]
    """Its probability in 255ths."""

    def paste(self, window: Window, classes: UInt8[np.ndarray, "h w"], confidence: UInt8[np.ndarray, "h w"]) -> None:
        """Write the core of a window into those of the whole picture."""
        core, inside = window.core.slices(), window.core.slices(window.top, window.left)
        classes[core] = self.classes.numpy()[inside]
        confidence[core] = self.confidence.numpy()[inside]


@final
@dataclass(frozen=True)
class Predictor:
    """Labels windows of slides: with objects, or with a class for each pixel."""

    task: Literal["instances", "semantics"]
    classes: tuple[str, ...]
    """Instances: the names of classes 1, 2, ...; semantics: of classes 0, 1, ..."""
    mpp: float
    """Micrometres per pixel of the windows."""
    fingerprint: str
    """Equal for what labels equally."""
    facts: dict[str, Any]
    """What else is to be known of it."""
    look: Callable[[UInt8[Tensor, "b 3 s s"], Bool[Tensor, "b s s"] | None], Sequence[Found] | Sequence[Classes]]
    """Objects of each window (instances), or the classes of its pixels (semantics), given where tissue is (None: all
    over): of glass, which they have rarely seen, networks say anything."""
    ignored: int | None = None
    """Semantics: the class that is never predicted."""

    @property
    def shown(self) -> dict[int, str]:
        """The classes that are outlined, by number; semantics: but for background."""
        if self.task == "instances":
            return dict(enumerate(self.classes, start=1))
        return {
            number: name
            for number, name in enumerate(self.classes)
            if number != self.ignored and name.lower() != BACKGROUND
        }


def predictor(saved: SavedModel, fabric: Fabric, least: float, mpp: float | None = None) -> Predictor:
    """Put a kept model on its device; objects need a score above `least`; `mpp`: where the model does not say its own.

    Raises UserError: the resolution is unknown, or said twice and not alike; too many classes for a byte.
    """
    network, facts = saved.network, saved.facts
    if facts.mpp is None and mpp is None:
        raise UserError(
            f"the images that this model learned from ({facts.data['name']}) do not say at which resolution it sees "
            "tissue, or differ: give --model-mpp"
        )
    if facts.mpp and mpp and not 1 / ALIKE <= mpp / facts.mpp <= ALIKE:
        raise UserError(
            f"this model learned at {facts.mpp:g} micrometres per pixel, not at {mpp:g}: leave --model-mpp out"
        )
    if len(facts.classes) > MOST_CLASSES:
        raise UserError(f"a map of a slide holds {MOST_CLASSES} classes, and this model has {len(facts.classes)}")
    fabric.to_device(network)

    def look(windows: UInt8[Tensor, "b 3 s s"], tissue: Bool[Tensor, "b s s"] | None) -> list[Found] | list[Classes]:
        try:
            with fabric.autocast():
                if isinstance(network, Segmenter):
                    classes, confidence = network.label(windows)
                    if tissue is not None:
                        classes[~tissue] = UNSEEN
                    return [Classes(*labels) for labels in zip(classes, confidence, strict=True)]
                if isinstance(network, ContourSegmenter):
                    return network.label(windows, least, tissue)
                return network.label(windows, least)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{len(windows)} windows of {windows.shape[-1]} px do not fit in the device's memory: "
                "give a smaller --batch or --window"
            ) from error

    learned = "contours" if isinstance(network, ContourSegmenter) else facts.task
    known = {"task": learned, "data": facts.data, "versions": facts.versions}
    labels = (facts.classes, mpp or facts.mpp or 0.0, saved.fingerprint, known)
    return Predictor(facts.task, *labels, look, facts.ignored)
