"""Between processes: gathering, sums, shuffled views. With one process, nothing."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, final

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from colocate.base.errors import UserError


def to_device(small: Tensor, to: Tensor | torch.device) -> Tensor:
    """`small` on the device `to`; given a tensor, on its device and of its dtype.

    Apple's GPUs (mps) have no float64: there it becomes float32.

    A copy from ordinary memory waits until the GPU has done all that it was asked before; from pinned memory, which
    torch keeps and uses again, it does not.
    """
    device = to.device if isinstance(to, Tensor) else to
    if device.type == "mps" and small.dtype == torch.float64:
        small = small.float()
    if device.type == "cuda" and small.device.type == "cpu":
        small = small.pin_memory()
    return small.to(to, non_blocking=True)


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def any_process(asked: bool, device: torch.device) -> bool:
    """Whether it is so in any process."""
    if world()[1] == 1:  # no device is waited for
        return asked
    return bool(gather(torch.tensor([int(asked)], device=device)).any())


def first_of_all(place: Tensor) -> int:
    """The smallest number of any process, of those that are not below zero; -1 where all are."""
    return min((found for found in gather(place[None]).tolist() if found >= 0), default=-1)


def from_all(items: list[Any]) -> list[Any]:
    """The items of every process, in order of rank."""
    if world()[1] == 1:
        return items
    parts: list[Any] = [None] * world()[1]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


@torch.no_grad()
def as_in_first(module: nn.Module) -> None:
    """Give a module's buffers (the statistics of batch norms) the numbers of the first process."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if buffers and world()[1] > 1:
        numbers = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(numbers, 0)
        for buffer, own in zip(buffers, numbers.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(own.view_as(buffer))


def leave() -> None:
    """Close this process's group, if there is one: a process that ends with it open can die of its peers' ends."""
    if dist.is_available() and dist.is_initialized():
        _groups.cache_clear()
        dist.destroy_process_group()


def gather(x: Tensor) -> Tensor:
    """Every process's `x` (equal shapes), stacked along the first axis in order of rank. Carries no gradient."""
    _, processes = world()
    if processes == 1:
        return x.detach()
    x = x.detach().contiguous()
    everyone = x.new_empty(processes * len(x), *x.shape[1:])
    collect = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
    collect(everyone, x)
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
    return gather_with_gradient(x[None]).sum(0)


def own_part(x: Tensor) -> Tensor:
    """This process's share of what `gather` stacked."""
    rank, processes = world()
    return x.chunk(processes)[rank]


@final
class Shuffle:
    """Views of several processes mixed by chance, so that each has some of every other's, and put back.

    Every process of a group sends each of them as many views: what crosses the network does not grow with the number
    of processes, as gathering all views would. Groups are as large as divides a process's views evenly.

    Raises UserError: `count` views cannot be divided among any of several processes.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.size = math.gcd(count, world()[1])
        if self.size == 1 < world()[1]:
            raise UserError(
                f"{count} views per device cannot be mixed evenly among {world()[1]} devices, as batch norm of keys "
                "needs: give a --batch that is a multiple of the number of devices squared"
            )
        turns = 1 if self.size == 1 else 2  # before they are exchanged, and after
        self.orders = [to_device(torch.randperm(count), device) for _ in range(turns)]

    def mixed(self, x: Float[Tensor, "b *some"]) -> Float[Tensor, "b *some"]:
        """`x` of this and other processes."""
        x = x[self.orders[0]]
        return x if self.size == 1 else self._exchanged(x)[self.orders[1]]

    def back(self, x: Float[Tensor, "b *some"]) -> Float[Tensor, "b *some"]:
        """What other processes made of this one's views, in their first order."""
        if self.size > 1:
            x = self._exchanged(x[self.orders[1].argsort()])
        return x[self.orders[0].argsort()]

    def _exchanged(self, x: Tensor) -> Tensor:
        """Part k of process j goes to place j of process k: done twice, everything is where it was."""
        images = x.ndim == 4  # which are channels-last, and stay so
        own = (x.movedim(1, -1) if images else x).contiguous()
        received = torch.empty_like(own)
        dist.all_to_all_single(received, own, group=_groups(self.size, world()[1]))
        return received.movedim(-1, 1) if images else received


@cache
def _groups(size: int, processes: int) -> Any:
    """This process's group of `size` neighbours; None stands for all."""
    return None if size == processes else dist.new_subgroups(size)[0]
