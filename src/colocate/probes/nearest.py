"""Probes: what a frozen backbone's cells know, asked without training a decoder.

`nearest_neighbour_probe` is the whole thing; its four steps (`cell_features`, `cell_labels`, `neighbour_vote`, `dice`)
stand on their own, for other labels, other classifiers and images of several sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from ..looks import IMAGENET_MEAN, IMAGENET_STD

Network = TypeVar("Network", bound=nn.Module)


class ProbeScore(NamedTuple):
    """How well cells were told apart, and from how many."""

    dice: float
    """Over all test cells pooled."""
    image_dice: float
    """Mean over test images; an image without the class, and none predicted, counts as 1."""
    memory: int
    """Training cells that were searched."""
    predicted: Bool[Tensor, "n g f"]
    """The cells of each test image that were called positive."""
    truth: Bool[Tensor, "n g f"]


@torch.no_grad()
def nearest_neighbour_probe(
    backbone: nn.Module,
    train_images: UInt8[Tensor, "m 3 h w"],
    train_masks: Bool[Tensor, "m y x"],
    test_images: UInt8[Tensor, "n 3 h w"],
    test_masks: Bool[Tensor, "n y x"],
    k: int = 20,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    batch: int = 32,
) -> ProbeScore:
    """Segment test images by what the most similar training cells are: nothing is trained, nothing is random.

    A cell belongs to the class when more than half of its pixels do. Every training cell is remembered; a test cell is
    called positive when more than half of its `k` nearest (cosine) are. Masks may be finer or coarser than the images,
    if they cover the same tissue. `backbone` maps normalised images to one grid
    of features and is used as it is: batch norms with statistics of other images (or none, as in a random network)
    want `settle_batch_norm` first.

    Raises:
        ValueError: no images to learn from, or fewer training cells than `k`.
    """
    features = cell_features(backbone, train_images, mean, std, batch)
    if features.shape[0] * features.shape[1] * features.shape[2] < k or k < 1:
        raise ValueError(f"{tuple(features.shape[:3])} training cells (images, rows, columns) are fewer than k = {k}")
    grid = (features.shape[1], features.shape[2])
    labels = cell_labels(train_masks, grid)
    queries = cell_features(backbone, test_images, mean, std, batch)
    truth = cell_labels(test_masks, grid)
    share = neighbour_vote(features.flatten(0, 2), labels.flatten(), queries.flatten(0, 2), k)
    predicted = (share > 0.5).view(truth.shape)
    pooled = dice(predicted.flatten()[None], truth.flatten()[None]).item()
    each = dice(predicted.flatten(1), truth.flatten(1)).mean().item()
    return ProbeScore(pooled, each, labels.numel(), predicted, truth)


@torch.no_grad()
def cell_features(
    backbone: nn.Module,
    images: UInt8[Tensor, "n 3 h w"],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    batch: int = 32,
) -> Float[Tensor, "n g f c"]:
    """The backbone's cells of every image, in evaluation mode, on the CPU."""
    was_training = backbone.training
    backbone.eval()
    grids = [backbone(part).float().cpu() for part in _normalised(backbone, images, mean, std, batch)]
    backbone.train(was_training)
    if not grids:
        raise ValueError("no images to take features from")
    return torch.cat(grids).permute(0, 2, 3, 1).contiguous()


def cell_labels(masks: Bool[Tensor, "n h w"], grid: tuple[int, int]) -> Bool[Tensor, "n g f"]:
    """Which cells of a grid over each mask have more than half of their pixels in it.

    >>> cell_labels(torch.tensor([[[True, True, True, False], [False, True, False, False]]]), (1, 2))
    tensor([[[ True, False]]])
    """
    return F.adaptive_avg_pool2d(masks.to(torch.float64)[:, None], grid)[:, 0] > 0.5


def neighbour_vote(
    memory: Float[Tensor, "m c"], labels: Bool[Tensor, " m"], queries: Float[Tensor, "q c"], k: int
) -> Float[Tensor, " q"]:
    """The share of positive labels among each query's k most similar (cosine) remembered vectors.

    >>> memory = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> neighbour_vote(memory, torch.tensor([True, True, False]), torch.tensor([[5.0, 1.0], [0.0, 2.0]]), k=2)
    tensor([1.0000, 0.5000])
    """
    return neighbour_shares(memory, labels.to(memory)[:, None], queries, k)[:, 0]


def neighbour_shares(
    memory: Float[Tensor, "m c"], shares: Float[Tensor, "m j"], queries: Float[Tensor, "q c"], k: int, chunk: int = 1024
) -> Float[Tensor, "q j"]:
    """The mean of `shares` over each query's k most similar (cosine) remembered vectors."""
    table = F.normalize(memory, dim=1)
    means = [shares[(part @ table.T).topk(k).indices].mean(1) for part in F.normalize(queries, dim=1).split(chunk)]
    return torch.cat(means) if means else shares.new_zeros(0, shares.shape[1])


def dice(predicted: Bool[Tensor, "n m"], truth: Bool[Tensor, "n m"]) -> Float[Tensor, " n"]:
    """Dice of each row: twice the shared positives over all positives; 1 where there are none on either side.

    >>> dice(torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]]))
    tensor([0.6667])
    """
    shared, all_positives = 2 * (predicted & truth).sum(1), predicted.sum(1) + truth.sum(1)
    return torch.where(all_positives > 0, shared / all_positives.clamp_min(1), 1.0)


@torch.no_grad()
def settle_batch_norm(
    network: Network,
    images: UInt8[Tensor, "n 3 h w"],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    batch: int = 32,
) -> Network:
    """A copy whose batch norms hold the statistics of these images (the mean over batches), in evaluation mode.

    A network that was never trained carries means of 0 and variances of 1, one that was carries those of augmented
    views: to compare weights and not bookkeeping, both are given those of the probe's training images. Weights stay as
    they are; networks without batch norm come back unchanged.
    """
    settled = copy.deepcopy(network).eval()
    norms = batch_norms(settled)
    momenta = [norm.momentum for norm in norms]
    if norms:
        for norm in norms:
            norm.train()  # and nothing else: dropout stays off
        for turn, part in enumerate(_normalised(settled, images, mean, std, batch)):
            for norm in norms:
                norm.momentum = 1 / (turn + 1)  # the running average becomes the plain mean
            settled(part)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return settled.eval()


def batch_norms(network: nn.Module) -> list[Any]:
    """The batch norms of a network."""
    return [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def _normalised(
    network: nn.Module, images: UInt8[Tensor, "n 3 h w"], mean: Sequence[float], std: Sequence[float], batch: int
) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """The images in equal batches, normalised, on the network's device."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    centre, spread = (torch.tensor(tuple(v), device=device).view(3, 1, 1) for v in (mean, std))
    parts = images.tensor_split(-(-len(images) // batch)) if len(images) else ()
    return ((part.to(device).float() / 255 - centre) / spread for part in parts)
