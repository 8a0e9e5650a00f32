"""Optimisers (the libraries') and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from colocate.base.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule: linear warm-up, then a cosine to zero."""

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    """SGD decays every weight, as in the paper; AdamW and LARS do not decay biases and norms, as in theirs."""
    lr: float = 0.03
    """Peak learning rate."""
    scale_lr: bool = False
    """Take `lr` as that for a batch of 256 and scale it linearly to the batch of one optimiser step."""
    momentum: float = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: float = 1e-4
    """Weight decay."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from zero."""
    clip: float | None = None
    """Largest norm of the gradient; larger ones are scaled down."""

    def __post_init__(self) -> None:
        able = 0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf and 0 <= self.momentum < 1
        if not (able and 0 <= self.warmup_epochs < math.inf):
            raise UserError(
                "optim: lr must be positive, weight_decay and warmup_epochs not negative, momentum in [0, 1)"
            )
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"optim.clip must be positive, not {self.clip}")


def peak_lr(config: OptimConfig, batch: int) -> float:
    """The highest learning rate for optimiser steps of `batch` tiles."""
    return config.lr * batch / 256 if config.scale_lr else config.lr


def learning_rate(peak: float, step: int, steps: int, warmup_steps: float = 0) -> float:
    """The learning rate of a step (0 is the first) of `steps`: nothing to save, nothing to resume.

    >>> [round(learning_rate(1.0, step, 8, warmup_steps=2), 3) for step in range(8)]
    [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067]
    """
    if step < warmup_steps:
        return peak * min(1.0, (step + 1) / warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def build_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a module's parameters that take gradients."""
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(
        module,
        opt="momentum" if config.name == "sgd" else config.name,  # timm's plain "sgd" is Nesterov's
        lr=config.lr,
        # timm's LARS adapts the rate only of what decays
        weight_decay=config.weight_decay or (1e-30 if config.name == "lars" else 0.0),
        momentum=config.momentum,
        filter_bias_and_bn=config.name != "sgd",
    )
