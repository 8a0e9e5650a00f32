"""Whose statistics batch norm takes: groups of a device's views, or the views of all devices."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .distributed import summed, world
from .errors import UserError
from .geometry import exact


def group_batch_norm(module: nn.Module, size: int) -> nn.Module:
    """Let every batch norm in `module` take its statistics over groups of `size` views, in place; weights keep names.

    One process then behaves as several would: the reference trains on 4 x 64. A batch that is no larger than `size`
    is one group.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            kind = _GroupedAct if isinstance(part, BatchNormAct2d) else _Grouped
            part.__class__ = kind  # pyright: ignore[reportAttributeAccessIssue]  # the same module with another forward
            part.group = size  # pyright: ignore[reportArgumentType]
    return module


def _grouped_norm(norm: nn.BatchNorm2d, x: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c h w"]:
    """Batch norm of x in groups, in one pass: the groups are folded into channels."""
    b, c = x.shape[:2]
    groups = max(1, b // size)
    if b % groups:
        raise UserError(f"{b} views a device do not divide into groups of {size}: change batch or method.norm-group")
    folded = x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)  # b/g (g c) h w
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    means, variances = mean.repeat(groups), var.repeat(groups)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    weight, bias = norm.weight.repeat(groups), norm.bias.repeat(groups)
    out = F.batch_norm(folded, means, variances, weight, bias, True, norm.momentum or 0.1, norm.eps)
    mean.copy_(means.view(groups, c).mean(0))
    var.copy_(variances.view(groups, c).mean(0))
    return out.unflatten(1, (groups, c)).transpose(0, 1).flatten(0, 1)


class _Grouped(nn.BatchNorm2d):
    group: int

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) < 2 * self.group:
            return super().forward(input)
        return _grouped_norm(self, input, self.group)


class _GroupedAct(BatchNormAct2d):
    group: int
    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        if not self.training or len(x) < 2 * self.group:
            return super().forward(x, *args)
        return self.act(self.drop(_grouped_norm(cast(nn.BatchNorm2d, self), x, self.group)))


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """Let every batch norm in `module` take its statistics over the batches of all processes, in place.

    Weights keep their names. Any number of processes then computes in training what one would on the whole batch;
    torch's own (nn.SyncBatchNorm) does the same, on GPUs only.

    Raises:
        UserError: there is none.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        raise UserError("the network has no batch norm to be synchronised: leave --sync-norm out")
    for part in norms:
        kind = _Synchronised1d if isinstance(part, nn.BatchNorm1d) else _Synchronised2d
        kind = _SynchronisedAct if isinstance(part, BatchNormAct2d) else kind
        part.__class__ = kind  # pyright: ignore[reportAttributeAccessIssue]  # as above
    return module


def is_local_norm(module: nn.Module) -> bool:
    """Whether a layer is a batch norm whose statistics tell one process's, or one group's, views from others'."""
    return isinstance(module, _BatchNorm) and not isinstance(module, _SYNCHRONISED)


def _several(norm: nn.Module) -> bool:
    return norm.training and world()[1] > 1


def _synchronised_norm(norm: _BatchNorm, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
    """The mean first, then squares about it: exact where the mean is large beside the deviation."""
    own = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    wide = exact(x)
    count = x.numel() // x.shape[1] * world()[1]
    mean = summed(wide.sum(own)) / count
    centred = wide - mean.view(shape)
    var = summed(centred.square().sum(own)) / count
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum or 0.1
    norm.running_mean.lerp_(mean.detach().to(norm.running_mean), momentum)
    norm.running_var.lerp_((var.detach() * count / max(1, count - 1)).to(norm.running_var), momentum)
    scale = norm.weight / (var + norm.eps).sqrt()
    return (centred * scale.view(shape) + norm.bias.view(shape)).to(x.dtype)


class _Synchronised1d(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return _synchronised_norm(self, input) if _several(self) else super().forward(input)


class _Synchronised2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _synchronised_norm(self, input) if _several(self) else super().forward(input)


class _SynchronisedAct(BatchNormAct2d):
    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        if not _several(self):
            return super().forward(x, *args)
        return self.act(self.drop(_synchronised_norm(cast(nn.BatchNorm2d, self), x)))


_SYNCHRONISED = (_Synchronised1d, _Synchronised2d, _SynchronisedAct)
