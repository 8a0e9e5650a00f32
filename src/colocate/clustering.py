"""Concepts: clusters of a tile's cells, carried from one view into another, and their mean features."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def k_means(points: Float[Tensor, "b m c"], clusters: int, iterations: int = 10) -> Int[Tensor, "b m"]:
    """The cluster of each of m points, b sets at once: k-means by cosine similarity.

    Centres start at points evenly spaced in order, so nothing is random. A cluster without points goes to the point
    that fits its own centre worst (the next empty one to the next worst). There is no loop over sets or clusters, and
    the host waits for nothing.

    Raises:
        ValueError: fewer points than clusters.

    >>> k_means(torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 2.0]]]), clusters=2)
    tensor([[0, 0, 1, 1]])
    """
    m = points.shape[1]
    if m < clusters:
        raise ValueError(f"{m} points cannot be {clusters} clusters")
    points = F.normalize(points.float(), dim=2)
    spaced = (2 * torch.arange(clusters, device=points.device) + 1) * m // (2 * clusters)
    centres = points[:, spaced]  # b k c
    with torch.autocast(points.device.type, enabled=False):  # cells of one tile differ by less than bfloat16 rounds
        for _ in range(iterations):
            similarity, cluster = (points @ centres.mT).max(2)  # b m
            members = F.one_hot(cluster, clusters).to(points)  # b m k
            empty = members.sum(1) == 0  # b k
            worst = similarity.topk(clusters, largest=False).indices  # b k
            turn = (empty.cumsum(1) - 1).clamp_min(0)
            seeds = points.gather(1, worst.gather(1, turn)[:, :, None].expand_as(centres))
            centres = F.normalize(torch.where(empty[:, :, None], seeds, members.mT @ points), dim=2)
        return (points @ centres.mT).argmax(2)


class Prototypes(NamedTuple):
    """Mean features of b tiles' k concepts, and how many cells' worth of the view each covers."""

    mean: Float[Tensor, "b k d"]
    cells: Float[Tensor, "b k"]


def prototypes(cells: Float[Tensor, "b n d"], shares: Float[Tensor, "b n k"]) -> Prototypes:
    """The cells' features averaged by each cell's share of each concept (ConCL, arXiv:2207.06733); zero where none."""
    shares = shares.to(cells)
    covered = shares.sum(1)
    return Prototypes(shares.mT @ cells / covered.clamp_min(1e-6)[:, :, None], covered)
