"""Random numbers as pure functions of (seed, place): no generator, no state to save or share."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(index: Int[Tensor, " b"], *key: int, count: int) -> Float[Tensor, "b count"]:
    """`count` uniform numbers in [0, 1) for each index, a pure function of (key, index): the same on every machine.

    >>> a = uniforms(torch.tensor([3, 7]), 0, 1, count=2)
    >>> torch.equal(a[1:], uniforms(torch.tensor([7]), 0, 1, count=2))
    True
    """
    with np.errstate(over="ignore"):
        state = np.zeros(1, np.uint64)
        for part in key:
            state = _mix(state + np.uint64(part % 2**64) + _STEP)
        state = _mix(state + index.cpu().numpy().astype(np.uint64) + _STEP)
        bits = _mix(state[:, None] + _STEP * np.arange(1, count + 1, dtype=np.uint64))
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def seed_torch(index: int, *key: int) -> None:
    """Seed torch's global generators by what they are for, as `uniforms` is."""
    torch.manual_seed(int(uniforms(torch.tensor([index]), *key, count=1).item() * 2**53))
