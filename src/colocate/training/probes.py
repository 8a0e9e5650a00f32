"""Probes of frozen cells: k nearest neighbours and logistic regression, learned from some images, judged on others."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor, nn

from colocate.base.errors import UserError
from colocate.base.rng import uniforms
from colocate.base.text import counted
from colocate.core.settings import IMAGENET_MEAN, IMAGENET_STD, ProbeConfig
from colocate.datasets.labelled import Labelled
from colocate.models.backbones import batch_norms, taking

Network = TypeVar("Network", bound=nn.Module)


class ProbeScore(NamedTuple):
    """How well cells were told apart, and from how many."""

    dice: float
    """Over all test cells pooled; 1 where there is no positive one, and none was predicted."""
    memory: int
    """Training cells that were searched."""
    predicted: Bool[Tensor, "n g f"]
    """The cells of each test image that were called positive."""


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

    Raises ValueError: no images to learn from, or fewer training cells than `k`.
    """
    features = cell_features(backbone, train_images, mean, std, batch)
    if features.shape[0] * features.shape[1] * features.shape[2] < k or k < 1:
        raise ValueError(f"{tuple(features.shape[:3])} training cells (images, rows, columns) are fewer than k = {k}")
    grid = (features.shape[1], features.shape[2])
    labels = cell_labels(train_masks, grid)
    queries = cell_features(backbone, test_images, mean, std, batch)
    truth = cell_labels(test_masks, grid)
    positive = labels.flatten().to(features)[:, None]
    share = neighbour_shares(features.flatten(0, 2), positive, queries.flatten(0, 2), k)
    predicted = (share > 0.5).view(truth.shape)
    _, shared, positives = agreement(truth.flatten(1).int(), predicted.flatten(1).int())
    return ProbeScore(2 * shared / positives if positives else 1.0, labels.numel(), predicted)


@torch.no_grad()
def cell_features(
    backbone: nn.Module,
    images: UInt8[Tensor, "n 3 h w"],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    batch: int = 32,
) -> Float[Tensor, "n g f c"]:
    """The backbone's cells of every image, in evaluation mode, on the CPU. Raises UserError as `taking` does."""
    was_training = backbone.training
    backbone.eval()
    with taking(backbone, images):
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


def neighbour_shares(
    memory: Float[Tensor, "m c"], shares: Float[Tensor, "m j"], queries: Float[Tensor, "q c"], k: int, chunk: int = 1024
) -> Float[Tensor, "q j"]:
    """The mean of `shares` over each query's k most similar (cosine) remembered vectors.

    >>> memory, positive = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([[1.0], [1.0], [0.0]])
    >>> neighbour_shares(memory, positive, torch.tensor([[5.0, 1.0], [0.0, 2.0]]), k=2)
    tensor([[1.0000],
            [0.5000]])
    """
    table = F.normalize(memory, dim=1)
    means = [shares[(part @ table.T).topk(k).indices].mean(1) for part in F.normalize(queries, dim=1).split(chunk)]
    return torch.cat(means) if means else shares.new_zeros(0, shares.shape[1])


class Agreement(NamedTuple):
    """How far truth and finding of one image agree."""

    dice: float | None
    """Mean over the classes but background that are there in truth or found; 1 where none is, None where nothing
    counts."""
    shared: int
    """Cells or pixels of all those classes that were found rightly."""
    positives: int
    """The true plus the found ones."""


def agreement(truth: Int[Tensor, "g f"], found: Int[Tensor, "g f"], ignored: int | None = None) -> Agreement:
    """Compare the class of each cell or pixel of one image with what was found; class 0 is background.

    Those whose truth is the class `ignored` do not count.

    >>> agreement(torch.tensor([[0, 1, 1, 2]]), torch.tensor([[1, 1, 1, 1]]), ignored=2)
    Agreement(dice=0.8, shared=2, positives=5)
    """
    counts = torch.ones_like(truth, dtype=torch.bool) if ignored is None else truth != ignored
    if not counts.any():
        return Agreement(None, 0, 0)
    each: list[float] = []
    shared = positives = 0
    for number in sorted({*truth[counts].unique().tolist(), *found[counts].unique().tolist()} - {0}):
        true, called = counts & (truth == number), counts & (found == number)
        both, sides = int((true & called).sum()), int(true.sum() + called.sum())
        each.append(2 * both / sides)
        shared, positives = shared + both, positives + sides
    return Agreement(sum(each) / len(each) if each else 1.0, shared, positives)


def check_counted(data: Labelled, numbers: Sequence[int], what: str) -> None:
    """Raise UserError if no pixel of these images counts; `what` they are, in words."""
    if data.ignored is not None and all((data.mask(number) == data.ignored).all() for number in numbers):
        raise UserError(
            f"{data.name}: all pixels of its {counted(len(numbers), what)} are of the ignored class {data.ignored}: "
            "nothing can be learned from or judged by them"
        )


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
    they are; networks without batch norm come back unchanged. Raises UserError as `taking` does.
    """
    settled = copy.deepcopy(network).eval()
    norms = batch_norms(settled)
    momenta = [norm.momentum for norm in norms]
    if norms:
        for norm in norms:
            norm.train()  # and nothing else: dropout stays off
            setattr(norm, "alone", True)  # of several processes one asks: no other would answer  # noqa: B010
        for turn, part in enumerate(_normalised(settled, images, mean, std, batch)):
            for norm in norms:
                norm.momentum = 1 / (turn + 1)  # the running average becomes the plain mean
            with taking(settled, part):
                settled(part)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return settled.eval()


def _normalised(
    network: nn.Module, images: UInt8[Tensor, "n 3 h w"], mean: Sequence[float], std: Sequence[float], batch: int
) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """The images in equal batches, normalised, on the network's device."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    centre, spread = (torch.tensor(tuple(v), device=device).view(3, 1, 1) for v in (mean, std))
    parts = images.tensor_split(-(-len(images) // batch)) if len(images) else ()
    return ((part.to(device).float() / 255 - centre) / spread for part in parts)


@final
class Linear(NamedTuple):
    """A linear classifier of features, which it standardises first."""

    centre: Float[Tensor, " c"]
    spread: Float[Tensor, " c"]
    weight: Float[Tensor, "k c"]
    bias: Float[Tensor, " k"]

    def shares(self, features: Float[Tensor, "m c"]) -> Float[Tensor, "m k"]:
        """The probability of each class."""
        return F.linear((features - self.centre) / self.spread, self.weight, self.bias).softmax(1)


def fit_linear(
    features: Float[Tensor, "m c"], shares: Float[Tensor, "m k"], decay: float = 1e-3, steps: int = 100
) -> Linear:
    """Multinomial logistic regression from cells to the shares of the classes in them.

    Minimises the mean cross-entropy against `shares` (rows that sum to 1) plus decay / 2 times the squared weights of
    standardised features, by L-BFGS from zero: nothing is random, and the minimum is unique.

    Raises ValueError: no cells.
    """
    if not len(features):
        raise ValueError("there are no cells to learn from")
    centre, spread = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    standard = (features - centre) / spread
    weight = torch.zeros(shares.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(shares.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-7)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(standard, weight, bias), shares) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return Linear(centre, spread, weight.detach(), bias.detach())


SETTLE = 64  # images whose statistics batch norms take; more change nothing that could be seen


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

    Raises UserError: no images to learn from or to test on, no cells whose pixels count, or fewer than neighbours; and
    what `look` raises.
    """
    if not train or not test:
        raise UserError(f"{data.name}: a probe needs images to learn from ({len(train)}) and to test on ({len(test)})")
    share = max(1, config.memory // len(train))
    parts = [_some(*_labelled(look(number), data, number), share, seed, number) for number in train]
    features, shares = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    if not len(features):
        raise UserError(
            f"{data.name}: in no cell of its {counted(len(train), 'training image')} do half of the pixels count: "
            "nothing can be learned from them"
        )
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
        scores[~_counting(data)] = 0
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
    backbone: Network,
    image: Callable[[int], UInt8[Tensor, "3 _ _"]],
    sizes: Mapping[int, tuple[int, int]],
    mean: Sequence[float],
    std: Sequence[float],
) -> Network:
    """A copy whose batch norms hold the statistics of training images (of the middle of each, all of one size).

    sizes: height and width of these, by their numbers.
    """
    some = list(sizes)[:: -(-len(sizes) // SETTLE)]
    height, width = (max(32, min(sizes[number][side] for number in some) // 32 * 32) for side in (0, 1))
    images = torch.stack([_middle(image(number), height, width) for number in some])
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

    White is added at the right and bottom up to whole cells (to 32 px, of which those of most are parts).

    Raises UserError: `config.mpp`, and an image that does not say its own; and as `taking` does.
    """

    def scale(number: int) -> float:
        own = data.items[number].mpp
        if config.mpp is not None and math.isnan(own):
            raise UserError(f"{data.name}: {data.items[number].name} does not say its mpp: leave mpp out")
        return 1.0 if config.mpp is None else own / config.mpp

    def size(number: int) -> tuple[int, int]:
        item, times = data.items[number], scale(number)
        return max(1, round(item.height * times)), max(1, round(item.width * times))

    def seen(number: int) -> UInt8[Tensor, "3 h w"]:
        image = data.image(number)
        if config.mpp is None:
            return image
        resized = F.interpolate(image[None].float(), size(number), mode="bilinear", antialias=True)[0]
        return resized.round().to(torch.uint8)

    if config.statistics == "images":
        backbone = settled(backbone, seen, {number: size(number) for number in train}, mean, std)
    stride = config.stride
    whole = stride if 32 % stride else 32

    def look(number: int) -> Cells:
        image = seen(number)
        height, width = image.shape[1:]
        padded = F.pad(image, (0, -width % whole, 0, -height % whole), value=255)
        grid = cell_features(backbone, padded[None], mean, std)[0]
        return Cells(grid[: -(-height // stride), : -(-width // stride)], stride / scale(number))

    return look


def _labelled(cells: Cells, data: Labelled, number: int) -> tuple[Float[Tensor, "m c"], Float[Tensor, "m k"]]:
    """An image's cells and the share of each class in them; cells that are mostly ignored pixels are left out."""
    grid, side_px = cells
    classes = data.pixel_classes(number, data.mask(number))
    counting = _counting(data)[:, None, None]
    count = ((classes == torch.arange(len(counting))[:, None, None]) & counting).float()
    inside = [_inside(cells, side_px, pixels) for cells, pixels in zip(grid.shape[:2], classes.shape, strict=True)]
    area = (inside[0] @ count @ inside[1].T).flatten(1).T / side_px**2
    known = area.sum(1)
    keep = known > 0.5
    return grid.flatten(0, 1)[keep], area[keep] / known[keep, None]


def _counting(data: Labelled) -> Bool[Tensor, " k"]:
    """Which of the classes of pixels count; the ignored one may be a number beside them."""
    return torch.tensor([number != data.ignored for number in range(len(data.pixel_names))])


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
