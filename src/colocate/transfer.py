"""Small tensors from the host to a device, without waiting for what runs there."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(small: Tensor, to: Tensor | torch.device) -> Tensor:
    """`small` on the device `to`; given a tensor, on its device and of its dtype.

    A copy from ordinary memory waits until the GPU has done all that it was asked before; from pinned memory, which
    torch keeps and uses again, it does not.
    """
    device = to.device if isinstance(to, Tensor) else to
    if device.type == "cuda" and small.device.type == "cpu":
        small = small.pin_memory()
    return small.to(to, non_blocking=True)
