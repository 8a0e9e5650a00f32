"""InfoNCE with its logits written out.

Source: arXiv:1807.03748, equation 4, as arXiv:1911.05722 (MoCo) puts it: cross entropy of
[q . k, q . n_1, ..., q . n_m] / temperature against class 0, every vector of unit length; here the sum over rows of
weight x loss, over a given count (arXiv:2212.12105 weights each cell by how much of it the other view saw).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    weight: Tensor | None = None,
    *,
    temperature: float = 0.2,
    count: int | None = None,
) -> Tensor:
    """The whole r x (1 + m) matrix of logits, and autograd's own gradients."""
    query, key, negatives = F.normalize(query, dim=1), F.normalize(key, dim=1), F.normalize(negatives, dim=1)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ negatives.T], 1) / temperature
    losses = F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device), reduction="none")
    weighted = losses if weight is None else weight * losses
    return weighted.sum() / (len(query) if count is None else count)
