"""Losses as pure functions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from colocate.core.geometry import exact

LOGITS_AT_ONCE = 1 << 25  # on a GPU: enough to keep it busy, and 128 MiB


def info_nce(
    query: Float[Tensor, "r d"],
    key: Float[Tensor, "r d"],
    negatives: Float[Tensor, "m d"],
    weight: Float[Tensor, " r"] | None = None,
    *,
    temperature: float = 0.2,
    count: int | None = None,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE (arXiv:1807.03748) of r pairs against m shared negatives, in one pass that never holds its logits.

    All three are normalised here; `negatives` get no gradient. The result is the sum over rows of weight x loss,
    divided by `count` (default: r; give the full number of pairs where rows of weight zero were left out). Gradients
    reach `query`, and `key` and `weight` if they require one.

    Loss and gradient come out of the same pass over chunks of rows, so memory is O(chunk x m + r x d) instead of
    O(r x m); by default 512 rows on a CPU, whose cache then holds them, else 128 MiB of logits. The softmax is in
    float32 at least, also under autocast.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive or wants a gradient, which it would
            not get.

    >>> q = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> info_nce(q, q, torch.tensor([[-1.0, 0.0]]), temperature=1.0)   # mean of log(1 + e^-2) and log(1 + e^-1)
    tensor(0.2201)
    """
    if query.shape != key.shape or negatives.shape[1:] != query.shape[1:]:
        raise ValueError(
            f"queries {tuple(query.shape)}, keys {tuple(key.shape)} and negatives {tuple(negatives.shape)} do not fit"
        )
    if weight is not None and weight.shape != query.shape[:1]:
        raise ValueError(f"weights {tuple(weight.shape)} do not fit {len(query)} queries: give one number for each")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise ValueError("the temperature gets no gradient here: give a number, such as temperature.item()")
    with torch.autocast(query.device.type, enabled=False):
        query, key = F.normalize(exact(query), dim=1), F.normalize(exact(key), dim=1)
        scale = torch.ones_like(query[:, 0]) if weight is None else weight.to(query)
        scale = scale / (len(query) if count is None else count)
        negatives = F.normalize(exact(negatives.detach()).to(query), dim=1)
        if chunk is None:
            chunk = 512 if query.device.type == "cpu" else max(1, LOGITS_AT_ONCE // max(1, len(negatives)))
        return _InfoNCE.apply(query, key, negatives, scale, float(temperature), chunk)  # type: ignore[no-any-return]


class _InfoNCE(Function):
    """d loss / d query needs the softmax that the loss needs: both are made while a chunk's logits are at hand.

    Takes unit vectors, so logits lie within 1 / temperature of zero: their exponentials need no shift until that
    nears what float32 can hold, and two passes over each chunk are saved.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "r d"],
        key: Float[Tensor, "r d"],
        negatives: Float[Tensor, "m d"],
        scale: Float[Tensor, " r"],
        temperature: float,
        chunk: int,
    ) -> Float[Tensor, ""]:
        needs_query, needs_key, _, needs_scale = ctx.needs_input_grad[:4]
        grad_query = torch.empty_like(query) if needs_query else None
        pull = torch.empty_like(scale)  # scale * (p_positive - 1) / temperature, a row
        losses = torch.empty_like(scale)
        loss = query.new_zeros(())
        sharp = temperature < 1 / 40 and len(negatives) > 0
        bits = math.log2(math.e) / temperature  # logits to base 2: exp2 takes a third of exp's time
        block = 1024 if query.device.type == "cpu" else max(len(negatives), 1)  # a core's cache holds chunk x block
        for start in range(0, len(query), chunk):
            rows = slice(start, start + chunk)
            q, k, s = query[rows] * bits, key[rows], scale[rows]
            positive = (q * k).sum(1)
            top = torch.maximum(positive, (q @ negatives.T).amax(1)) if sharp else torch.zeros_like(positive)
            others, pushed = torch.zeros_like(positive), torch.zeros_like(q)
            for some in negatives.split(block):
                logits = q @ some.T
                weights = (logits.sub_(top[:, None]) if sharp else logits).exp2_()
                others += weights.sum(1)
                if grad_query is not None:
                    pushed.addmm_(weights, some)
            total = others + (positive - top).exp2()
            losses[rows] = total.log2() + top - positive
            loss += (s * losses[rows]).sum() * math.log(2)
            pull[rows] = -s * others / total / temperature
            if grad_query is not None:
                grad_query[rows] = pushed * (s / total / temperature)[:, None]
        if grad_query is not None:
            grad_query.addcmul_(pull[:, None], key)
        each = losses * math.log(2) if needs_scale else None
        ctx.save_for_backward(grad_query, pull[:, None] * query if needs_key else None, each)
        return loss

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch's decorator hides the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        query, key, scale = (None if grad is None else upstream * grad for grad in ctx.saved_tensors)
        return query, key, None, scale, None, None


@torch.no_grad()
def sinkhorn(scores: Float[Tensor, "m k"], temperature: float = 0.05, iterations: int = 3) -> Float[Tensor, "m k"]:
    """Assign m vectors to k prototypes so that every prototype gets the same share: each row is a distribution.

    The entropic transport problem of SwAV (arXiv:2006.09882, equation 3): exp(scores / temperature), its columns and
    rows scaled in turn to equal sums (Sinkhorn-Knopp), as logarithms: whole rows would be too small for float32 at low
    temperatures. No gradient passes.

    >>> sinkhorn(torch.tensor([[0.9, 0.8], [0.9, 0.1]])).round()   # both prefer the first, and share
    tensor([[0., 1.],
            [1., 0.]])
    """
    shares = exact(scores) / temperature
    for _ in range(iterations):
        shares = shares.log_softmax(0).log_softmax(1)
    return shares.exp()


def vicreg_invariance(
    x: Float[Tensor, "b *k d"], y: Float[Tensor, "b *k d"], weight: Float[Tensor, "b *k"] | None = None
) -> Float[Tensor, ""]:
    """Mean squared error (VICReg, arXiv:2105.04906, equation 5), each pair of vectors times its weight if given.

    The mean is over all pairs and dimensions, not over the sum of weights.

    Raises:
        ValueError: shapes that do not fit.
    """
    if x.shape != y.shape or (weight is not None and weight.shape != x.shape[:-1]):
        weights = "" if weight is None else f" and weights {tuple(weight.shape)}"
        raise ValueError(f"vectors {tuple(x.shape)} and {tuple(y.shape)}{weights} do not fit")
    error = (exact(x) - exact(y)).square().mean(-1)
    return (error if weight is None else error * weight.to(error)).mean()


def vicreg_variance(x: Float[Tensor, "b *k d"]) -> Float[Tensor, ""]:
    """How far the standard deviation of each dimension over the b samples falls short of 1, on average.

    VICReg, arXiv:2105.04906, equations 1 and 2; for k vectors a sample (VICRegL, arXiv:2210.01571), each on its own.
    Raises ValueError for fewer than two samples, which have no variance.

    >>> vicreg_variance(torch.tensor([[0.0, 1.0], [0.0, 3.0]])) > 0.49   # the first dimension has collapsed
    tensor(True)
    """
    _check_several(x)
    return F.relu(1 - (exact(x).var(0) + 1e-4).sqrt()).mean()


def vicreg_covariance(x: Float[Tensor, "b *k d"]) -> Float[Tensor, ""]:
    """Sum of squared covariances between different dimensions over the b samples, divided by their number d.

    VICReg, arXiv:2105.04906, equations 3 and 4; for k vectors a sample, each on its own, then the mean.
    Raises ValueError for fewer than two samples, which have no covariance.
    """
    _check_several(x)
    samples = exact(x).reshape(len(x), -1, x.shape[-1])  # b k d
    centred = (samples - samples.mean(0)).transpose(0, 1)  # k b d
    with torch.autocast(x.device.type, enabled=False):
        covariance = centred.mT @ centred / (len(x) - 1)
    squares = covariance.square()
    off_diagonal = squares.sum((1, 2)) - squares.diagonal(dim1=1, dim2=2).sum(1)
    return (off_diagonal / x.shape[-1]).mean()


def _check_several(x: Float[Tensor, "b *k d"]) -> None:
    if len(x) < 2:
        raise ValueError(f"variance and covariance over the batch need two samples or more, not {len(x)}")
