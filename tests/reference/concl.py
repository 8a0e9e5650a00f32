"""ConCL's concepts in plain loops over tiles, clusters and cells; and the published way of carrying them.

Source: arXiv:2207.06733 (ConCL), section 3: concepts are k-means clusters of a reference view's cells; a concept's
prototype is the mean of the cells that it covers in a view. `rounded` is inferred from the published implementation's
values alone: the reference view's map of clusters is cut at the view's place rounded to whole cells, then each cell of
the view takes the cluster most frequent in its block.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from colocate.core.geometry import Crop
from tests.reference.overlap import overlap_matrix

Vector = list[float]


class KMeans(NamedTuple):
    """What k-means found, and how sure it is."""

    cluster: Tensor
    """b x m."""
    empty: int
    """How often a cluster had no points."""
    margin: float
    """The closest decision between two different things; below the rounding of other code, it may decide otherwise."""


def k_means(points: Tensor, clusters: int, iterations: int) -> KMeans:
    """k-means by cosine of each set of points (b x m x c), a set, a point and a cluster at a time.

    Centres start at points number floor((i + 0.5) m / k). Then, `iterations` times, each point joins the centre of
    largest cosine (the first of equal ones), and a centre becomes the sum of its points at unit length; the first
    centre without points becomes the point that fits its own centre worst, the second the next worst, and so on (such
    points still count where they had joined). At last each point joins a centre once more.
    """
    found, empty, margin = [], 0, math.inf
    for some in points.double().tolist():
        unit = [_unit(point) for point in some]
        centres = [unit[math.floor((i + 0.5) * len(unit) / clusters)] for i in range(clusters)]
        for _ in range(iterations):
            own, fit, margin = _join(unit, centres, margin)
            worst = sorted(range(len(unit)), key=lambda point: fit[point])
            seeds = 0
            for number in range(clusters):
                members = [unit[i] for i in range(len(unit)) if own[i] == number]
                if members:
                    centres[number] = _unit([sum(values) for values in zip(*members, strict=True)])
                else:
                    centres[number] = unit[worst[seeds]]
                    seeds += 1
            empty += seeds
            for better, good in pairwise(worst[: seeds + 1]):
                if unit[better] != unit[good]:
                    margin = min(margin, fit[good] - fit[better])
        own, _, margin = _join(unit, centres, margin)
        found.append(own)
    return KMeans(torch.tensor(found), empty, margin)


def _join(points: list[Vector], centres: list[Vector], margin: float) -> tuple[list[int], list[float], float]:
    """Each point's centre, its cosine to it, and the margin, narrowed by the nearest miss."""
    own, fit = [], []
    for point in points:
        cosines = [_dot(point, centre) for centre in centres]
        best = max(cosines)
        own.append(cosines.index(best))
        fit.append(best)
        others = [c for c, centre in zip(cosines, centres, strict=True) if centre != centres[own[-1]]]
        margin = min([margin, *(best - other for other in others)])
    return own, fit, margin


def _dot(one: Vector, other: Vector) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _unit(vector: Vector) -> Vector:
    length = math.sqrt(_dot(vector, vector))
    return [value / length for value in vector]


def carried(
    cluster: Tensor, clusters: int, grid: tuple[int, int], reference: Crop, view: Crop, cells: tuple[int, int]
) -> Tensor:
    """The share of each of a view's n cells that each cluster of the reference view's m cells covers: b x n x k.

    Of the part of a cell that the reference view saw; nothing where it saw none.
    """
    area = overlap_matrix(view, reference, cells, grid)
    b, n, m = area.shape
    shares = torch.zeros(b, n, clusters, dtype=torch.float64)
    for tile in range(b):
        for i in range(n):
            seen = sum(area[tile, i].tolist())
            for j in range(m):
                if seen > 0:
                    shares[tile, i, int(cluster[tile, j])] += area[tile, i, j] / seen
    return shares


def prototypes(cells: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Each concept's mean over a view's cells (b x n x d) by its share of them (b x n x k), and the sum of shares."""
    b, n, k = shares.shape
    mean, covered = torch.zeros(b, k, cells.shape[2], dtype=cells.dtype), torch.zeros(b, k, dtype=cells.dtype)
    for tile in range(b):
        for concept in range(k):
            total = sum(shares[tile, :, concept].tolist())
            covered[tile, concept] = total
            for i in range(n):
                if total > 0:
                    mean[tile, concept] += shares[tile, i, concept] / total * cells[tile, i]
    return mean, covered


def rounded(cluster: Tensor, place: Tensor, flip: bool, size: int) -> Tensor:
    """The clusters (h x w) of one reference view as one view shows them by the published rule: size x size.

    `place` is (top, left, bottom, right) of the view as fractions of the reference view. Its ends are rounded to whole
    cells (halves to the even one), the cut is divided into size x size blocks that overlap where they do not come out
    even, and each takes its most frequent cluster, of equally frequent ones the first. A flip comes last.
    """
    height, width = cluster.shape
    (top, bottom), (left, right) = (
        (round(float(place[i]) * n), round(float(place[i + 2]) * n)) for i, n in ((0, height), (1, width))
    )
    cut = cluster[top:bottom, left:right].tolist()
    rows, cols = _blocks(bottom - top, size), _blocks(right - left, size)
    view = [[_most_frequent([cut[y][x] for y in down for x in across]) for across in cols] for down in rows]
    return torch.tensor([row[::-1] for row in view] if flip else view)


def _blocks(length: int, size: int) -> list[range]:
    """From floor(i n / size) to ceil((i + 1) n / size)."""
    return [range(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]


def _most_frequent(numbers: list[int]) -> int:
    return max(sorted(set(numbers)), key=numbers.count)


# The same as torch would be used without batching, for benchmarks: a loop over tiles and clusters ---------------------


def k_means_loop(points: Tensor, clusters: int, iterations: int) -> Tensor:
    """As `k_means`, b x m."""
    found = []
    for some in points:
        unit = F.normalize(some, dim=1)
        centres = unit[[math.floor((i + 0.5) * len(unit) / clusters) for i in range(clusters)]]
        for _ in range(iterations):
            fit, own = (unit @ centres.T).max(1)
            centres = torch.zeros_like(centres)
            occupied = own.unique().tolist()
            for number in occupied:
                centres[number] = F.normalize(unit[own == number].sum(0), dim=0)
            worst = fit.argsort()
            for turn, number in enumerate(sorted(set(range(clusters)) - set(occupied))):
                centres[number] = unit[worst[turn]]
        found.append((unit @ centres.T).argmax(1))
    return torch.stack(found)


def rounded_loop(cluster: Tensor, place: Tensor, flip: Tensor, size: int) -> Tensor:
    """As `rounded` for b tiles: b x h x w clusters, b x 4 places, b flips."""
    views = []
    for grid, ends, turned in zip(cluster, place.tolist(), flip.tolist(), strict=True):
        (height, width), clusters = grid.shape, int(grid.max()) + 1
        rows = slice(round(ends[0] * height), round(ends[2] * height))
        cols = slice(round(ends[1] * width), round(ends[3] * width))
        cut = F.one_hot(grid[rows, cols], clusters).permute(2, 0, 1).float()
        view = F.adaptive_avg_pool2d(cut, size).argmax(0)
        views.append(view.flip(1) if turned else view)
    return torch.stack(views)


def prototypes_loop(
    cells: Tensor, cluster: Tensor, other_cells: Tensor, other_cluster: Tensor
) -> tuple[Tensor, Tensor]:
    """Means of two views' cells (b x n x d) over each concept that both show, tile after tile: r x d each."""
    means: tuple[list[Tensor], list[Tensor]] = ([], [])
    for mine, own, theirs, other in zip(cells, cluster.flatten(1), other_cells, other_cluster.flatten(1), strict=True):
        for number in sorted(set(own.unique().tolist()) & set(other.unique().tolist())):
            means[0].append(mine[own == number].mean(0))
            means[1].append(theirs[other == number].mean(0))
    return torch.stack(means[0]), torch.stack(means[1])
