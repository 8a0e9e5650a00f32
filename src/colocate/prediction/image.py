"""Apply a fine-tuned model to an image in memory: a NumPy array in, objects or the class of each pixel out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
import shapely
import torch
from jaxtyping import Float32, Int32, Shaped, UInt8
from lightning_fabric import Fabric
from PIL import Image
from shapely.geometry.base import BaseGeometry

from colocate.base.errors import UserError
from colocate.base.shapes import rasterise
from colocate.evaluation.saved import SavedModel
from colocate.evaluation.saved import load_model as read_model
from colocate.prediction.predictor import Predictor, predictor
from colocate.prediction.settings import DeviceConfig, PredictConfig
from colocate.prediction.stitch import Window, Windows, merge, pieces, windows_over
from colocate.slides.settings import check_mpp


@final
class Objects(NamedTuple):
    """What a model of instances found in an image."""

    outlines: list[BaseGeometry]
    """Polygons and MultiPolygons in pixels of the image (x to the right, y down from its top left corner)."""
    classes: list[str]
    scores: list[float]

    def labels(self, height: int, width: int) -> Int32[np.ndarray, "height width"]:
        """The number (1, 2, ...) of the object at each pixel; 0 where there is none."""
        ids = np.zeros((height, width), np.int32)
        for number, shape in enumerate(self.outlines, start=1):
            patch = rasterise(shape, height, width)
            ids[patch.place][patch.mask] = number
        return ids


@final
class ClassMap(NamedTuple):
    """What a model of semantics says of each pixel of an image."""

    classes: UInt8[np.ndarray, "h w"]
    """Numbers of `names`."""
    confidence: Float32[np.ndarray, "h w"]
    """The probability of that class."""
    names: tuple[str, ...]


@final
@dataclass(frozen=True)
class Model:
    """A fine-tuned model on its device."""

    saved: SavedModel
    fabric: Fabric

    @classmethod
    def open(cls, place: str | Path, accelerator: str = "auto") -> Model:
        """Load a result of `colocate evaluate --keep-models`, or a folder that holds just one.

        accelerator: auto, cpu or gpu.

        Raises UserError: there is no model or more than one, it is damaged, or the device is not there.
        """
        return cls(read_model(Path(place)), DeviceConfig(accelerator=accelerator).launch())

    @property
    def task(self) -> Literal["instances", "semantics"]:
        return self.saved.facts.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; of semantics they are numbered from 0, of instances from 1."""
        return self.saved.facts.classes

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel at which the model sees images; None where its training images did not say."""
        return self.saved.facts.mpp

    def predict(
        self,
        image: Shaped[np.ndarray, "..."],
        mpp: float | None = None,
        *,
        window: int | None = PredictConfig.window,
        overlap: int | None = PredictConfig.overlap,
        score: float = PredictConfig.score,
        batch: int = 4,
    ) -> Objects | ClassMap:
        """Find objects in an RGB image, or the class of each pixel.

        Large images are seen window by window, as slides are.

        Args:
            image: Red, green and blue of each pixel, uint8 (h, w, 3).
            mpp: Its micrometres per pixel; it is resized to what the model sees. None: it has the model's resolution.
            window: Side of the windows, in px of the model's resolution; None: 1024 for objects, 512 for classes.
            overlap: How much neighbouring windows share, in px; None: a quarter of the window, at least 32.
            score: Least score of an object.
            batch: Windows a forward pass.

        Raises:
            UserError: no RGB image of bytes, an impossible `mpp`, or one for a model that does not know its own.
        """
        if not hasattr(image, "dtype"):  # as arrays of h5py and zarr have
            kind = f"{type(image).__module__}.{type(image).__qualname__}"
            raise UserError(f"an image is a numpy array, not {kind}: give numpy.asarray of it, in RGB")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(f"an image is a uint8 array of height x width x 3, not {image.dtype} of {image.shape}")
        config = PredictConfig(window, overlap, score, device=DeviceConfig(batch))
        scale = 1.0
        if mpp is not None:
            check_mpp(mpp, "mpp")
            if self.mpp is None:
                raise UserError("the images that this model learned from do not say their mpp: leave mpp out")
            scale = self.mpp / mpp
        known = predictor(self.saved, self.fabric, config.score, None if self.mpp else 1.0)
        return look_over(known, image, config.windows(self.task), scale, config.device.batch)


def look_over(
    model: Predictor, image: UInt8[np.ndarray, "h w 3"], windows: tuple[int, int], scale: float = 1.0, batch: int = 4
) -> Objects | ClassMap:
    """What a model says of an image.

    windows: their side and overlap in px; scale: pixels of the image a pixel of a window.
    """
    height, width = image.shape[:2]
    grid = windows_over(width / scale, height / scale, *windows)
    found = _labelled(model, image if scale == 1 else _resized(image, grid.width, grid.height, scale), grid, batch)
    if model.task == "instances":
        merged = merge([piece for window, labels in found for piece in pieces(window, labels)])
        shapes = [shapely.transform(one.shape, lambda points: points * scale) for one in merged]
        return Objects(shapes, [model.shown[one.class_] for one in merged], [one.score for one in merged])
    classes, confidence = (np.zeros((grid.height, grid.width), np.uint8) for _ in range(2))
    for window, labels in found:
        labels.paste(window, classes, confidence)
    there = np.ix_(*(((np.arange(length) + 0.5) / scale).astype(int) for length in (height, width)))
    return ClassMap(classes[there], confidence[there].astype(np.float32) / 255, model.classes)


def _resized(
    image: UInt8[np.ndarray, "h w 3"], width: int, height: int, scale: float
) -> UInt8[np.ndarray, "height width 3"]:
    """The image in pixels `scale` times as large, white where the last of them reach beyond it."""
    high, wide = image.shape[:2]
    room = ((0, math.ceil(height * scale) - high + 1), (0, math.ceil(width * scale) - wide + 1), (0, 0))
    padded = Image.fromarray(np.pad(image, room, constant_values=255))
    box = (0.0, 0.0, width * scale, height * scale)
    return np.asarray(padded.resize((width, height), Image.Resampling.BICUBIC, box))


def _labelled(
    model: Predictor, image: UInt8[np.ndarray, "h w 3"], windows: Windows, batch: int
) -> Iterator[tuple[Window, Any]]:
    """Each window with what the model says of it, white beyond the image."""
    every, side = list(windows), windows.side
    for start in range(0, len(every), batch):
        some = every[start : start + batch]
        pixels = np.full((len(some), side, side, 3), 255, np.uint8)
        for place, window in zip(pixels, some, strict=True):
            part = image[window.view.slices()]
            place[: part.shape[0], : part.shape[1]] = part
        yield from zip(some, model.look(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), None), strict=True)
