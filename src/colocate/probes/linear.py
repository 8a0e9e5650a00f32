"""Logistic regression on frozen cells: the least that a decoder could do."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


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

    Raises:
        ValueError: no cells.
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
