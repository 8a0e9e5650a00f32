"""Precise location matching with every pair of cells intersected: n^4 work, and S held whole.

Source: arXiv:2212.12105, section 3: S[i, j] = area(cell i of one view, cell j of the other) / area(cell i), in the
coordinates of the tile that both views were cut from. w_i = sum_j S[i, j]; k'_i = sum_j S[i, j] / w_i * k_j.
"""

from __future__ import annotations

import torch
from torch import Tensor

from colocate.core.geometry import Crop

Box = tuple[float, float, float, float]


def crop_to_tile(crop: Crop, view: int) -> list[list[float]]:
    """The 3 x 3 affine map from a point (x, y, 1) of the unit square of a view to source pixels of its tile.

    A view is what a chain of image operations makes of a tile: cut, mirror, then transpose. The map goes backwards:
    transpose the point, mirror it, then scale and shift it into the cut.
    """
    (first_row, last_row), (first_col, last_col) = crop.rows[view].tolist(), crop.cols[view].tolist()
    top, bottom = min(first_row, last_row), max(first_row, last_row)
    left, right = min(first_col, last_col), max(first_col, last_col)
    transposed = [[0, 1, 0], [1, 0, 0], [0, 0, 1]] if bool(crop.transpose[view]) else _IDENTITY
    upside_down = [[1, 0, 0], [0, -1, 1], [0, 0, 1]] if first_row > last_row else _IDENTITY
    sideways = [[-1, 0, 1], [0, 1, 0], [0, 0, 1]] if first_col > last_col else _IDENTITY
    cut = [[right - left, 0, left], [0, bottom - top, top], [0, 0, 1]]
    return _product(cut, _product(sideways, _product(upside_down, transposed)))


_IDENTITY = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def _product(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
    return [[sum(a[i][k] * b[k][j] for k in range(3)) for j in range(3)] for i in range(3)]


def cell_boxes(crop: Crop, view: int, height: int, width: int) -> list[Box]:
    """(left, top, right, bottom) in source pixels of each cell, row by row: the box around its four mapped corners."""
    (a, b, c), (d, e, f), _ = crop_to_tile(crop, view)
    boxes = []
    for row in range(height):
        for col in range(width):
            corners = [(x / width, y / height) for x in (col, col + 1) for y in (row, row + 1)]
            xs = [a * x + b * y + c for x, y in corners]
            ys = [d * x + e * y + f for x, y in corners]
            boxes.append((min(xs), min(ys), max(xs), max(ys)))
    return boxes


def shared_area(one: Box, other: Box) -> float:
    """Area of the intersection of two boxes."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)


def overlap_matrix(own: Crop, other: Crop, cells: tuple[int, int], other_cells: tuple[int, int]) -> Tensor:
    """S of each pair of views, b x n x m, one pair of cells after another."""
    whole = []
    for view in range(len(own.rows)):
        mine, theirs = cell_boxes(own, view, *cells), cell_boxes(other, view, *other_cells)
        whole.append([[shared_area(i, j) / shared_area(i, i) for j in theirs] for i in mine])
    return torch.tensor(whole, dtype=torch.float64)


def pooled(shares: Tensor, cells: Tensor) -> Tensor:
    """k' of every cell from S and the other view's cells (b x m x d), in plain loops."""
    b, n, m = shares.shape
    result = torch.zeros(b, n, cells.shape[2], dtype=cells.dtype)
    for view in range(b):
        for i in range(n):
            weight = sum(shares[view, i].tolist())
            for j in range(m):
                if weight > 0:
                    result[view, i] += shares[view, i, j] / weight * cells[view, j]
    return result


def overlap_matrix_batched(own: Crop, other: Crop, cells: int) -> Tensor:
    """S as a batched n^4 broadcast, float32, intersecting boxes as torchvision.ops.box_iou does: for benchmarks."""
    mine, theirs = _boxes_batched(own, cells)[:, :, None], _boxes_batched(other, cells)[:, None]
    top_left = torch.maximum(mine[..., :2], theirs[..., :2])
    bottom_right = torch.minimum(mine[..., 2:], theirs[..., 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    area = (mine[..., 2] - mine[..., 0]) * (mine[..., 3] - mine[..., 1])
    return sides[..., 0] * sides[..., 1] / area


def pooled_batched(shares: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Weights, and k' as one product with the whole of S."""
    weight = shares.sum(2)
    return weight, (shares / weight.clamp_min(1e-12)[:, :, None]) @ cells


def _boxes_batched(crop: Crop, cells: int) -> Tensor:
    """b x n x 4 boxes (left, top, right, bottom), by mapping every cell's corners at once."""
    edge = torch.arange(cells + 1) / cells
    down, across = torch.meshgrid(edge, edge, indexing="ij")
    turned = crop.transpose[:, None, None]
    u, v = torch.where(turned, down, across), torch.where(turned, across, down)
    rows, cols = crop.rows.float()[:, :, None, None], crop.cols.float()[:, :, None, None]
    x, y = cols[:, 0] + u * (cols[:, 1] - cols[:, 0]), rows[:, 0] + v * (rows[:, 1] - rows[:, 0])
    points = torch.stack([x, y], -1)
    corners = torch.stack([points[:, a : cells + a, c : cells + c] for a in (0, 1) for c in (0, 1)])
    return torch.cat([corners.amin(0), corners.amax(0)], -1).flatten(1, 2)
