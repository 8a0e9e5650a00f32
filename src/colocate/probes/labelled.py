"""A probe of a labelled data set, of images of any sizes: cells of some are learned from, pixels of others judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

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
    """Pixels a cell."""
    memory: int = 20_000
    """Most training cells to learn from or to search, drawn at random (the same for every backbone)."""
    neighbours: int = 20
    """Cells that vote."""
    decay: float = 1e-3
    """Weight decay of the logistic regression."""

    def __post_init__(self) -> None:
        if min(self.stride, self.memory, self.neighbours) < 1 or self.decay < 0:
            raise UserError("stride, memory and neighbours must be 1 or more, decay not negative")


@torch.no_grad()
def probe(
    backbone: nn.Module,
    data: Labelled,
    train: Sequence[int],
    test: Sequence[int],
    config: ProbeConfig,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Iterator[tuple[int, Int64[Tensor, "h w"]]]:
    """Learn from the cells of images `train`; call the class of each pixel of images `test`, one image after another.

    A training cell counts as what its pixels are, in proportion. Class scores of test cells are interpolated to
    pixels; the ignored class is never called. Batch norms first take the statistics of training images.

    Raises:
        UserError: no images to learn from or to test on, or fewer cells than neighbours.
    """
    if not train or not test:
        raise UserError(f"{data.name}: a probe needs images to learn from ({len(train)}) and to test on ({len(test)})")
    backbone = settled(backbone, data, train, mean, std)
    share = max(1, config.memory // len(train))
    parts = [_some(*_cells(backbone, data, number, config.stride, mean, std), share, seed, number) for number in train]
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
        grid = _grid(backbone, data.image(number), config.stride, mean, std)
        scores = call(grid.flatten(0, 1)).view(*grid.shape[:2], -1).permute(2, 0, 1)
        if data.ignored is not None:
            scores[data.ignored] = 0
        fine = F.interpolate(scores[None], scale_factor=config.stride, mode="bilinear")[0]
        yield number, fine[:, : item.height, : item.width].argmax(0)


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


def _grid(
    backbone: nn.Module, image: UInt8[Tensor, "3 h w"], stride: int, mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "g f c"]:
    """An image's cells; white is added at its right and bottom up to whole cells (and to 32 px, as ViTs want it)."""
    height, width = image.shape[1:]
    padded = F.pad(image, (0, -width % 32, 0, -height % 32), value=255)
    grid = cell_features(backbone, padded[None], mean, std)[0]
    return grid[: -(-height // stride), : -(-width // stride)]


def _cells(
    backbone: nn.Module, data: Labelled, number: int, stride: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Float[Tensor, "m c"], Float[Tensor, "m k"]]:
    """An image's cells and the share of each class in them; cells that are mostly ignored pixels are left out."""
    grid = _grid(backbone, data.image(number), stride, mean, std)
    classes = data.pixel_classes(number, data.mask(number))
    height, width = classes.shape
    count = F.one_hot(classes, len(data.pixel_names)).permute(2, 0, 1).float()
    if data.ignored is not None:
        count[data.ignored] = 0
    area = F.avg_pool2d(F.pad(count, (0, -width % stride, 0, -height % stride)), stride).flatten(1).T
    known = area.sum(1)
    keep = known > 0.5
    return grid.flatten(0, 1)[keep], area[keep] / known[keep, None]


def _some(
    features: Float[Tensor, "m c"], shares: Float[Tensor, "m k"], most: int, seed: int, number: int
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n k"]]:
    """At most so many cells of an image, drawn by the seed and the image's number: the same for every backbone."""
    chosen = uniforms(torch.arange(len(features)), seed, number, count=1)[:, 0].argsort()[:most].sort().values
    return features[chosen], shares[chosen]
