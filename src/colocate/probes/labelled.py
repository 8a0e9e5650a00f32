"""A probe of a labelled data set, of images of any sizes: cells of some are learned from, pixels of others judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from ..data import Labelled
from ..draws import uniforms
from ..errors import UserError
from .linear import fit_linear
from .nearest import Network, cell_features, neighbour_shares, settle_batch_norm

SETTLE = 64  # images whose statistics batch norms take; more change nothing that could be seen


@dataclass(frozen=True)
class ProbeConfig:
    """Segmentation by frozen cells, without a decoder."""

    classifier: Literal["linear", "nearest"] = "linear"
    """linear: logistic regression on cells; nearest: the vote of the most similar training cells (cosine)."""
    stride: int = 16
    """Pixels a cell: those of the stage of this stride are asked (most networks' last but one)."""
    mpp: float | None = None
    """Look at images at so many micrometres per pixel; they are judged at their own. None: as they are."""
    memory: int = 20_000
    """Most training cells to learn from or to search, drawn at random (the same for every backbone)."""
    neighbours: int = 20
    """Cells that vote."""
    decay: float = 0.1
    """Weight decay of the logistic regression."""
    statistics: Literal["own", "images"] = "own"
    """What batch norms normalise by: the statistics that came with the weights, or those of training images."""

    def __post_init__(self) -> None:
        if min(self.stride, self.memory, self.neighbours) < 1 or self.decay < 0:
            raise UserError("stride, memory and neighbours must be 1 or more, decay not negative")
        if self.mpp is not None and not 0 < self.mpp < 100:
            raise UserError(f"mpp must lie between 0 and 100 micrometres per pixel, not {self.mpp}")


class Cells(NamedTuple):
    """An image's frozen cells."""

    grid: Float[Tensor, "g f c"]
    side_px: float
    """The side of one, in the image's own pixels."""


Look = Callable[[int], Cells]
"""The cells of a labelled set's image, by its number; `functools.cache` keeps them for further probes."""


@torch.no_grad()
def probe(
    look: Look, data: Labelled, train: Sequence[int], test: Sequence[int], config: ProbeConfig, seed: int
) -> Iterator[tuple[int, Int64[Tensor, "h w"]]]:
    """Learn from the cells of images `train`; call the class of each pixel of images `test`, one image after another.

    A training cell counts as what its pixels are, in proportion. Class scores of test cells are interpolated to
    pixels; the ignored class is never called.

    Raises:
        UserError: no images to learn from or to test on, or fewer cells than neighbours; and what `look` raises.
    """
    if not train or not test:
        raise UserError(f"{data.name}: a probe needs images to learn from ({len(train)}) and to test on ({len(test)})")
    share = max(1, config.memory // len(train))
    parts = [_some(*_labelled(look(number), data, number), share, seed, number) for number in train]
    features, shares = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    call: Callable[[Tensor], Tensor]
    if config.classifier == "linear":
        call = fit_linear(features, shares, config.decay).shares
    elif len(features) < config.neighbours:
        raise UserError(f"{len(features)} training cells are fewer than the {config.neighbours} that vote")
    else:
        call = partial(neighbour_shares, features, shares, k=config.neighbours)
    for number in test:
        item = data.items[number]
        grid, side_px = look(number)
        scores = call(grid.flatten(0, 1)).view(*grid.shape[:2], -1).permute(2, 0, 1)
        if data.ignored is not None:
            scores[data.ignored] = 0
        yield number, at_pixels(scores, side_px, item.height, item.width).argmax(0)


def at_pixels(scores: Float[Tensor, "k g f"], side_px: float, height: int, width: int) -> Float[Tensor, "k h w"]:
    """The scores of cells of `side_px` pixels at each pixel of an image, interpolated between the cells' centres."""
    g, f = scores.shape[1:]

    def places(cells: int, pixels: int) -> Tensor:
        """Pixel centres in the coordinates of grid_sample: -1 and 1 are the outer edges of the first and last cell."""
        return (torch.arange(pixels) + 0.5) * (2 / (cells * side_px)) - 1

    rows, cols = torch.meshgrid(places(g, height), places(f, width), indexing="ij")
    where = torch.stack([cols, rows], 2)[None].to(scores)
    return F.grid_sample(scores[None], where, mode="bilinear", padding_mode="border", align_corners=False)[0]


@torch.no_grad()
def settled(
    backbone: Network, data: Labelled, train: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> Network:
    """A copy whose batch norms hold the statistics of training images (of the middle of each, all of one size)."""
    some = train[:: -(-len(train) // SETTLE)]
    height, width = (min(getattr(data.items[n], side) for n in some) for side in ("height", "width"))
    height, width = (max(32, side // 32 * 32) for side in (height, width))
    images = torch.stack([_middle(data.image(number), height, width) for number in some])
    return settle_batch_norm(backbone, images, mean, std, batch=8)


def _middle(image: UInt8[Tensor, "3 _ _"], height: int, width: int) -> UInt8[Tensor, "3 h w"]:
    image = F.pad(image, (0, max(0, width - image.shape[2]), 0, max(0, height - image.shape[1])), value=255)
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def frozen_cells(
    backbone: nn.Module,
    data: Labelled,
    train: Sequence[int],
    config: ProbeConfig,
    mean: Sequence[float],
    std: Sequence[float],
) -> Look:
    """What a backbone makes of each image; `train` are those whose statistics batch norms take, where they shall.

    Raises:
        UserError: when it looks, `config.mpp` and an image that does not say its own.
    """
    if config.statistics == "images":
        backbone = settled(backbone, data, train, mean, std)
    return partial(_cells, backbone, data, config.stride, config.mpp, mean, std)


def _cells(
    backbone: nn.Module,
    data: Labelled,
    stride: int,
    mpp: float | None,
    mean: Sequence[float],
    std: Sequence[float],
    number: int,
) -> Cells:
    """White is added at the right and bottom up to whole cells (and to 32 px, as ViTs want it)."""
    image, scale = data.image(number), 1.0
    if mpp is not None:
        own = data.items[number].mpp
        if math.isnan(own):
            raise UserError(f"{data.name}: {data.items[number].name} does not say its mpp: leave mpp out")
        scale = own / mpp
        size = [max(1, round(side * scale)) for side in image.shape[1:]]
        image = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0].round().to(torch.uint8)
    height, width = image.shape[1:]
    padded = F.pad(image, (0, -width % 32, 0, -height % 32), value=255)
    grid = cell_features(backbone, padded[None], mean, std)[0]
    return Cells(grid[: -(-height // stride), : -(-width // stride)], stride / scale)


def _labelled(cells: Cells, data: Labelled, number: int) -> tuple[Float[Tensor, "m c"], Float[Tensor, "m k"]]:
    """An image's cells and the share of each class in them; cells that are mostly ignored pixels are left out."""
    grid, side_px = cells
    classes = data.pixel_classes(number, data.mask(number))
    count = F.one_hot(classes, len(data.pixel_names)).permute(2, 0, 1).float()
    if data.ignored is not None:
        count[data.ignored] = 0
    inside = [_inside(cells, side_px, pixels) for cells, pixels in zip(grid.shape[:2], classes.shape, strict=True)]
    area = (inside[0] @ count @ inside[1].T).flatten(1).T / side_px**2
    known = area.sum(1)
    keep = known > 0.5
    return grid.flatten(0, 1)[keep], area[keep] / known[keep, None]


def _inside(cells: int, side_px: float, pixels: int) -> Float[Tensor, "g h"]:
    """How much of each pixel lies in each cell along one axis."""
    start = torch.arange(cells)[:, None] * side_px
    pixel = torch.arange(pixels)[None]
    return (torch.minimum(start + side_px, pixel + 1) - torch.maximum(start, pixel)).clamp(0, 1).float()


def _some(
    features: Float[Tensor, "m c"], shares: Float[Tensor, "m k"], most: int, seed: int, number: int
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n k"]]:
    """At most so many cells of an image, drawn by the seed and the image's number: the same for every backbone."""
    chosen = uniforms(torch.arange(len(features)), seed, number, count=1)[:, 0].argsort()[:most].sort().values
    return features[chosen], shares[chosen]
