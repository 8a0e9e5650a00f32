"""A U-Net that tells touching objects apart: beside the classes inside of objects it learns a class of their borders.

Inside, border and background are the three classes of Caicedo et al. 2019 (doi:10.1002/cyto.a.23863), near kin to the
contours of DCAN (arXiv:1604.02677). It needs no GPU, which Mask R-CNN would want.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int32, UInt8
from scipy import ndimage
from skimage.segmentation import find_boundaries, relabel_sequential, watershed
from torch import Tensor, nn

from colocate.base.processes import first_defaults
from colocate.core.views import jitter_stain, stain_matrix
from colocate.datasets.labelled import Labelled
from colocate.evaluation.decoders import Segmenter, cropped
from colocate.evaluation.metrics.objects import Found, Objects
from colocate.evaluation.settings import ContoursConfig
from colocate.models.backbones import Backbone

BORDER_COUNTS = 3
"""A border weighs so many times its probability: where it is missed two objects become one (docs/LOG.md)."""
GLASS = (225, 256)
"""Brightness of empty glass."""


@final
class ContourSegmenter(nn.Module):
    """U-Net of contours: (images, targets) to a named loss; `predict` gives the objects of one image."""

    def __init__(
        self, config: ContoursConfig, backbone: Backbone, classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.config = config
        self.unet = Segmenter(config, backbone, classes + 2, None, mean, std)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return self.unet(images, targets)

    def predict(self, image: UInt8[Tensor, "3 h w"]) -> Objects:
        """The objects of an image."""
        ids, classes, scores = self.label(image[None], 0.0)[0]
        return Objects.of_ids(ids, classes)._replace(scores=scores)

    @first_defaults()
    def label(
        self, windows: UInt8[Tensor, "b 3 h w"], least: float, tissue: Bool[Tensor, "b h w"] | None = None
    ) -> list[Found]:
        """The objects of each window whose score is above `least`; what is no `tissue` parts them."""
        scores = self.unet.scores(windows).float().softmax(1).cpu()
        likely = (scores if tissue is None else scores * tissue[:, None]).numpy()
        return [parted(one[1:-1], one[-1], self.config.smallest, least) for one in likely]


def parted(
    inside: Float32[np.ndarray, "k h w"], border: Float32[np.ndarray, "h w"], smallest: int, least: float
) -> Found:
    """Part objects by probabilities of the k classes inside of them, and of their borders.

    What is connected inside is an object, and takes in the border around it, up to where another one's begins (by
    watershed). Its class is what most of it is inside, its score the mean probability that its pixels are an object's.
    """
    likely = inside.sum(0) + border
    core = inside.sum(0) / (1 + (BORDER_COUNTS - 1) * border)
    seeds, _ = cast(Any, ndimage.label(core > 0.5, np.ones((3, 3))))
    seeds[np.bincount(seeds.ravel())[seeds] < smallest] = 0
    ids = relabel_sequential(watershed(-core, seeds, mask=likely > 0.5))[0].astype(np.int32)
    numbers = np.arange(1, ids.max() + 1)
    scores = ndimage.mean(likely, ids, numbers)
    kept = numbers[scores > least]
    classes = np.stack([ndimage.sum_labels(one, ids, kept) for one in inside]).argmax(0) + 1
    renumbered = np.zeros(len(numbers) + 1, np.int32)
    renumbered[kept] = np.arange(1, len(kept) + 1)
    return Found(torch.from_numpy(renumbered[ids]), classes.tolist(), scores[kept - 1].tolist())


def on_glass(
    image: UInt8[Tensor, "3 h w"],
    mask: Int32[Tensor, "h w"],
    draws: Float[Tensor, " k"],
    side: int,
    symmetries: bool,
    stain: float,
) -> tuple[UInt8[Tensor, "3 s s"], Int32[Tensor, "s s"]]:
    """A square anywhere in the image with a rim of glass (annotated regions rarely hold any, and slides do), whose
    stains are stronger or weaker by up to `stain`."""
    rim = 4 * (side // 4,)
    glass = GLASS[0] + int(draws[5] * (GLASS[1] - GLASS[0]))
    image, mask = cropped(F.pad(image, rim, value=glass), F.pad(mask, rim), draws, side, symmetries)
    scale, shift = (stain * (2 * some[None].float() - 1) for some in (draws[6:9], draws[9:12]))
    jittered = jitter_stain(image[None] / 255, *stain_matrix(1 + scale, shift / 8))[0]
    return (255 * jittered).round().clamp(0, 255).to(torch.uint8), mask


def contour_target(data: Labelled, number: int, mask: Int32[Tensor, "h w"], border: int) -> dict[str, Tensor]:
    """Training target: the class of each pixel inside of objects, 0 between them, and the class after the last for
    their borders."""
    classes = data.pixel_classes(number, mask)
    return {"classes": classes.masked_fill(torch.from_numpy(borders(mask.numpy(), border)), len(data.classes) + 1)}


def borders(ids: Int32[np.ndarray, "h w"], width: int) -> Bool[np.ndarray, "h w"]:
    """The pixels of objects less than `width` px from their edges, and less than half as far as their innermost."""
    edges = find_boundaries(ids, mode="inner")
    if not edges.any():
        return edges
    distance = cast(Any, ndimage.distance_transform_edt(~edges))
    places = ids - ids.min()  # what was added around an image is -1
    deepest = np.zeros(places.max() + 1)
    np.maximum.at(deepest, places, distance)
    return (ids > 0) & (distance < np.minimum(width, deepest[places] / 2))
