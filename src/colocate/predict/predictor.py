"""What a slide is looked at with: a fine-tuned network, or whatever else labels windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final

import torch
from jaxtyping import UInt8
from lightning.fabric import Fabric
from torch import Tensor

from ..errors import UserError
from ..evaluate.instances import Detector
from ..evaluate.saved import SavedModel
from ..evaluate.semantics import Segmenter
from .stitch import Found

MOST_CLASSES = 255
BACKGROUND = "background"
ALIKE = 1.1  # resolutions that differ by less are taken for one


class Classes(NamedTuple):
    """What a window shows."""

    classes: UInt8[Tensor, "s s"]
    """The class of each pixel: 0, 1, ..."""
    confidence: UInt8[Tensor, "s s"]
    """Its probability in 255ths."""


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
    look: Callable[[UInt8[Tensor, "b 3 s s"]], Sequence[Found] | Sequence[Classes]]
    """Objects of each window (instances), or the classes of its pixels (semantics)."""
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
    """A kept model on its device; objects whose score is above `least`; `mpp` where it does not say its own.

    Raises:
        UserError: the resolution is unknown, or said twice and not alike; too many classes.
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

    def look(windows: UInt8[Tensor, "b 3 s s"]) -> list[Found] | list[Classes]:
        try:
            with fabric.autocast():
                if isinstance(network, Detector):
                    return [Found(*labels) for labels in network.label(windows, least)]
                assert isinstance(network, Segmenter)
                return [Classes(*labels) for labels in zip(*network.label(windows), strict=True)]
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{len(windows)} windows of {windows.shape[-1]} px do not fit in the device's memory: "
                "give a smaller --batch or --window"
            ) from error

    known = {"task": facts.task, "data": facts.data, "versions": facts.versions}
    labels = (facts.classes, mpp or facts.mpp or 0.0, saved.fingerprint, known)
    return Predictor(facts.task, *labels, look, facts.ignored)
