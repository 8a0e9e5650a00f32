"""What crosses processes: gathering keys, and shuffling a batch over all of them. Without processes, nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .transfer import sent


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def leave() -> None:
    """Close this process's group, if there is one: a process that ends with it open can die of its peers' ends."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def gather(x: Tensor) -> Tensor:
    """Every process's `x` (equal shapes), stacked along the first axis in order of rank. Carries no gradient."""
    _, processes = world()
    if processes == 1:
        return x.detach()
    x = x.detach().contiguous()
    everyone = x.new_empty(processes * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(everyone, x)
    return everyone


def gather_with_gradient(x: Tensor) -> Tensor:
    """As `gather`, but each process's part receives the sum of all processes' gradients."""
    return x if world()[1] == 1 else _Gather.apply(x)  # type: ignore[no-any-return]


class _Gather(Function):
    """torch's own (torch.distributed.nn.functional.all_gather) is deprecated, and with gloo mixes up gradients that
    are not contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        everyone = grad_outputs[0].contiguous()
        dist.all_reduce(everyone)
        return own_part(everyone)


def summed(x: Tensor) -> Tensor:
    """The sum of every process's `x` (equal shapes), and of the gradients that reach it."""
    return x if world()[1] == 1 else _Sum.apply(x)  # type: ignore[no-any-return]


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = grad_outputs[0].clone()
        dist.all_reduce(total)
        return total


def own_part(x: Tensor) -> Tensor:
    """This process's share of what `gather` stacked."""
    rank, processes = world()
    return x.chunk(processes)[rank]


def shuffled_order(count: int, device: torch.device) -> Int[Tensor, " count"]:
    """A random order of the whole batch, the same on every process."""
    order = sent(torch.randperm(count), device)
    if world()[1] > 1:
        dist.broadcast(order, 0)
    return order
