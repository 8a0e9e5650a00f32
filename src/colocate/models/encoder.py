"""Encoders: a backbone with projectors, batch norm over groups or devices, the slow key encoder, queues of keys."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from colocate.base.distributed import Shuffle, gather, summed, world
from colocate.base.errors import UserError
from colocate.core.geometry import coarser, exact
from colocate.models.backbones import batch_norms, keep_paths


def group_batch_norm(module: nn.Module, size: int) -> nn.Module:
    """Let every 2D batch norm in `module` take its statistics over groups of `size` views, in place.

    One process then behaves as several would: the reference trains on 4 x 64. A batch that is no larger than `size`
    is one group.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            _take_statistics(part, size)
    return module


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """Let every batch norm in `module` take its statistics over the batches of all processes, in place.

    Weights keep their names. Any number of processes then computes in training what one would on the whole batch;
    torch's own (nn.SyncBatchNorm) does the same, on GPUs only.

    Raises:
        UserError: there is none.
    """
    norms = batch_norms(module)
    if not norms:
        raise UserError("the network has no batch norm to be synchronised: leave --sync-norm out")
    for part in norms:
        _take_statistics(part, None)
    return module


def is_local_norm(module: nn.Module) -> bool:
    """Whether a layer is a batch norm whose statistics tell one process's, or one group's, views from others'."""
    return isinstance(module, _BatchNorm) and not (isinstance(module, _OtherStatistics) and module.group is None)


class _OtherStatistics(_BatchNorm):
    """Comes before a class of batch norm; in training, statistics are those of groups or of all processes."""

    group: int | None
    """Views in a group; None: all processes."""
    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor, *args: Any) -> Tensor:
        if self.group is None:
            several = world()[1] > 1 and not getattr(self, "alone", False)
        else:
            several = len(input) >= 2 * self.group
        if not (self.training and several):
            return super().forward(input, *args)
        out = _synchronised_norm(self, input) if self.group is None else _grouped_norm(self, input, self.group)
        return self.act(self.drop(out)) if isinstance(self, BatchNormAct2d) else out


def _take_statistics(norm: _BatchNorm, group: int | None) -> None:
    if not isinstance(norm, _OtherStatistics):
        norm.__class__ = _with_other_statistics(type(norm))  # the same module with another forward
    norm.group = group  # pyright: ignore[reportArgumentType]


@cache
def _with_other_statistics(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    return type(kind.__name__, (_OtherStatistics, kind), {})


def _grouped_norm(norm: _BatchNorm, x: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c h w"]:
    """Batch norm of x in groups, in one pass: the groups are folded into channels."""
    b, c = x.shape[:2]
    groups = b // size
    if b % groups:
        raise UserError(f"{b} views per device do not divide into groups of {size}: change batch or method.norm-group")
    folded = x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)  # b/g (g c) h w
    mean, var = _counted(norm)
    means, variances = mean.repeat(groups), var.repeat(groups)
    weight, bias = norm.weight.repeat(groups), norm.bias.repeat(groups)
    out = F.batch_norm(folded, means, variances, weight, bias, True, norm.momentum or 0.1, norm.eps)
    mean.copy_(means.view(groups, c).mean(0))
    var.copy_(variances.view(groups, c).mean(0))
    return out.unflatten(1, (groups, c)).transpose(0, 1).flatten(0, 1)


def _synchronised_norm(norm: _BatchNorm, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
    """The mean first, then squares about it: exact where the mean is large beside the deviation."""
    own = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    wide = exact(x)
    count = x.numel() // x.shape[1] * world()[1]
    mean = summed(wide.sum(own)) / count
    centred = wide - mean.view(shape)
    var = summed(centred.square().sum(own)) / count
    running_mean, running_var = _counted(norm)
    momentum = norm.momentum or 0.1
    running_mean.lerp_(mean.detach().to(running_mean), momentum)
    running_var.lerp_((var.detach() * count / max(1, count - 1)).to(running_var), momentum)
    scale = norm.weight / (var + norm.eps).sqrt()
    return (centred * scale.view(shape) + norm.bias.view(shape)).to(x.dtype)


def _counted(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Count one batch more; the running mean and variance, which it shall move."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    return norm.running_mean, norm.running_var


class Features(NamedTuple):
    """What an encoder makes of b views. None of it is normalised."""

    whole: Float[Tensor, "b d"]
    cells: Float[Tensor, "b n d"] | None
    """The n cells of the grid, row by row, projected; None for an encoder without a cell projector."""
    field: Float[Tensor, "b n c"]
    """The same cells as the backbone gave them."""
    grid: tuple[int, int]


def linear(channels: int, width: int) -> nn.Linear:
    """A linear layer that begins as the reference's: He's normal weights by fan-in, no bias."""
    layer = nn.Linear(channels, width)
    nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


class OnLastAxis(nn.Sequential):
    """Layers that take vectors, applied to the last axis of any shape."""

    def forward(self, x: Float[Tensor, "*some c"]) -> Float[Tensor, "*some d"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def projector(channels: int, hidden: int, width: int, norm: bool = False) -> nn.Sequential:
    """Linear, ReLU, Linear on the last axis: on a grid, the same as two 1 x 1 convolutions.

    `norm`: a batch norm after each linear layer, which then has no bias (SimCLR, arXiv:2002.05709).
    """
    if not norm:
        return nn.Sequential(linear(channels, hidden), nn.ReLU(inplace=True), linear(hidden, width))
    return OnLastAxis(
        *(nn.Linear(channels, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)),
        *(nn.Linear(hidden, width, bias=False), nn.BatchNorm1d(width)),
    )


class Expander(OnLastAxis):
    """VICReg's expander: twice Linear, batch norm, ReLU, then Linear without bias."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            *(nn.Linear(channels, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)),
            *(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)),
            nn.Linear(width, width, bias=False),
        )


@final
class Encoder(nn.Module):
    """Backbone, a projector of the pooled view and, where cells are learned from, one of cells.

    `align` (A in the PLM paper) is applied to matched cells after pooling. A backbone's grid finer than `most_cells`
    a side is averaged to that first.
    """

    def __init__(
        self,
        backbone: nn.Module,
        whole: nn.Module,
        cells: nn.Module | None = None,
        align: nn.Module | None = None,
        most_cells: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.whole = whole
        self.cells = cells
        self.align = align
        self.most_cells = most_cells

    def forward(self, images: Float[Tensor, "b c h w"]) -> Features:
        grid: Tensor = self.backbone(images)  # b c g f
        if self.most_cells is not None:
            grid = coarser(grid, self.most_cells)
        field = grid.flatten(2).mT
        cells = None if self.cells is None else self.cells(field)
        return Features(self.whole(field.mean(1)), cells, field, (grid.shape[2], grid.shape[3]))


@final
class Momentum(nn.Module):
    """A slow copy of an encoder: an exponential moving average of its parameters, with batch-norm buffers of its own.

    It takes no gradient. Where batch norm takes statistics of groups or of each process, the batch is shuffled over all
    of them before the forward and put back after, so that a view's statistics do not tell which tile it belongs to
    (MoCo, arXiv:1911.05722, section 3.3).
    """

    def __init__(self, encoder: Encoder, momentum: float) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        keep_paths(self.encoder)  # keys are whole
        self.momentum = momentum

    @property
    def shuffles(self) -> bool:
        """Whether batch statistics would tell some views of the batch from others."""
        return any(map(is_local_norm, self.encoder.modules()))

    @torch.no_grad()
    def follow(self, encoder: Encoder) -> None:
        """Move every parameter towards the encoder's by 1 - momentum."""
        torch._foreach_lerp_(list(self.encoder.parameters()), list(encoder.parameters()), 1 - self.momentum)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b c h w"]) -> Features:
        if not (self.training and self.shuffles):
            return self.encoder(images)
        shuffle = Shuffle(len(images), images.device)
        whole, cells, field, grid = self.encoder(shuffle.mixed(images))
        return Features(shuffle.back(whole), None if cells is None else shuffle.back(cells), shuffle.back(field), grid)


@final
class Queue(nn.Module):
    """The last `length` pushed vectors at unit length: a ring, first in, first out, that takes any number at once.

    It starts with random vectors, which the first push replaces by copies of what it brings: random negatives would
    reward features that are all the same, and in small runs the encoder collapses before they are used up.
    """

    vectors: Float[Tensor, "m d"]
    position: Tensor
    used: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"a queue holds at least one vector, not {length}")
        self.register_buffer("vectors", F.normalize(torch.randn(length, width), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))
        self.register_buffer("used", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def push(self, vectors: Float[Tensor, "b d"], valid: Bool[Tensor, " b"] | None = None) -> None:
        """Store the (valid) vectors of all processes, normalised, in place of the oldest ones."""
        new = F.normalize(gather(vectors).to(self.vectors), dim=1)
        if not len(new):
            return
        kept = torch.ones_like(new[:, 0], dtype=torch.bool) if valid is None else gather(valid.byte()).bool()
        # How many are valid is known to the device alone: asking for it here would wait for it.
        new, count = new[(~kept).byte().argsort(stable=True)], kept.sum()
        slot = torch.arange(len(self.vectors), device=new.device)
        turn = (slot - self.position) % len(slot)  # the slot takes the turn-th new vector, or one some rounds later
        last = turn + (count - 1 - turn).clamp_min(0) // len(slot) * len(slot)
        filled = torch.where(turn < count, last, slot % count.clamp_min(1))
        fresh = (count > 0) & ((turn < count) | ~self.used)
        self.vectors.copy_(torch.where(fresh[:, None], new[filled.clamp_max(len(new) - 1)], self.vectors))
        self.used.logical_or_(count > 0)
        self.position.copy_((self.position + count) % len(slot))
