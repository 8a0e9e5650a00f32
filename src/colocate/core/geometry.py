"""Crops, their cells, and the two matrices that do all the work: one for the rows, one for the columns.

Everything here is pure and exact. Crops are axis-aligned, so whatever happens between two of them, or between a tile
and a view of it, is an outer product of something along rows and something along columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from colocate.base.distributed import to_device


class Crop(NamedTuple):
    """Where b views lie on their tiles, in source pixels (x to the right, y down, the tile's top left edge is 0).

    `rows` and `cols` hold two *signed* ends: the first lands at the view's top (left) edge, so a flip is a pair of
    swapped ends. With `transpose` the view's axes are swapped after that, which gives the quarter turns: a view is
    `A_rows X A_cols^T`, or the transpose of it.

    >>> upright = Crop.of([[0, 0, 100, 100]])           # top, left, bottom, right
    >>> mirrored = Crop.of([[0, 100, 100, 0]])          # left and right swapped: a horizontal flip
    >>> mirrored.area()
    tensor([10000.], dtype=torch.float64)
    """

    rows: Float[Tensor, "b 2"]
    cols: Float[Tensor, "b 2"]
    transpose: Bool[Tensor, " b"]

    @classmethod
    def of(cls, corners: object, transpose: object = None) -> Crop:
        """Crops from b rows of (top, left, bottom, right), signed as above; none transposed by default.

        Raises:
            ValueError: rows of another length, or not one `transpose` for each.
        """
        ends = torch.as_tensor(corners, dtype=torch.float64)
        turned = ends.new_zeros(len(ends)) if transpose is None else transpose
        turned = torch.as_tensor(turned, dtype=torch.bool, device=ends.device)
        if ends.shape[1:] != (4,) or turned.shape != ends.shape[:1]:
            said = f"corners {tuple(ends.shape)} and transpose {tuple(turned.shape)}"
            raise ValueError(f"{said} are not b rows of top, left, bottom, right and one transpose for each")
        return cls(ends[:, 0::2], ends[:, 1::2], turned)

    def select(self, item: slice | Tensor) -> Crop:
        """The crops of some of the views: a slice, a mask or numbers, as for a tensor's first axis."""
        return Crop(self.rows[item], self.cols[item], self.transpose[item])

    def area(self) -> Float[Tensor, " b"]:
        """Area in square source pixels."""
        return ((self.rows[:, 1] - self.rows[:, 0]) * (self.cols[:, 1] - self.cols[:, 0])).abs()

    def view_axes(self) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b 2"]]:
        """The ends that the view's own vertical and horizontal axis run between (swapped where transposed)."""
        turned = self.transpose[:, None]
        return torch.where(turned, self.cols, self.rows), torch.where(turned, self.rows, self.cols)


def bounding_box(first: Crop, second: Crop) -> Crop:
    """The smallest upright crops that hold both of each pair."""
    rows, cols = torch.cat([first.rows, second.rows], 1), torch.cat([first.cols, second.cols], 1)
    ends = [torch.stack([axis.amin(1), axis.amax(1)], 1) for axis in (rows, cols)]
    return Crop(ends[0], ends[1], torch.zeros_like(first.transpose))


def cell_edges(ends: Float[Tensor, "b 2"], cells: int) -> Float[Tensor, "b edges"]:
    """The `cells` + 1 edges of equal cells between two signed ends.

    >>> cell_edges(torch.tensor([[8.0, 0.0]]), 4)
    tensor([[8., 6., 4., 2., 0.]])
    """
    steps = torch.arange(cells + 1, dtype=ends.dtype, device=ends.device) / cells
    return ends[:, :1] * (1 - steps) + ends[:, 1:] * steps


def cell_centres(crop: Crop, cells: int | tuple[int, int]) -> Float[Tensor, "b n 2"]:
    """(x, y) of the middle of every cell of a view's grid, row by row, in source pixels.

    >>> cell_centres(Crop.of([[0, 8, 4, 0]]), (1, 2))          # mirrored: the view's left half shows the right one
    tensor([[[6., 2.],
             [2., 2.]]], dtype=torch.float64)
    """
    vertical, horizontal = (
        (edges[:, 1:] + edges[:, :-1]) / 2
        for edges in map(cell_edges, crop.view_axes(), grid_size(cells))
    )  # fmt: skip
    h, w = vertical.shape[1], horizontal.shape[1]
    down, across = vertical[:, :, None].expand(-1, h, w).flatten(1), horizontal[:, None].expand(-1, h, w).flatten(1)
    turned = crop.transpose[:, None]
    return torch.stack([torch.where(turned, down, across), torch.where(turned, across, down)], 2)


CRUMB = 1e-9  # of a cell: where edges meet, rounding leaves as little, and cells would share what they only touch


def shared_fraction(
    ends: Float[Tensor, "b 2"], cells: int, other_ends: Float[Tensor, "b 2"], other_cells: int
) -> Float[Tensor, "b cells other_cells"]:
    """How much of each cell of one axis lies in each cell of another, as a fraction of the first one's length.

    >>> shared_fraction(torch.tensor([[0.0, 4.0]]), 2, torch.tensor([[1.0, 5.0]]), 2)
    tensor([[[0.5000, 0.0000],
             [0.5000, 0.5000]]])
    """
    low, high = _intervals(ends, cells)
    other_low, other_high = _intervals(other_ends, other_cells)
    start = torch.maximum(low[:, :, None], other_low[:, None, :])
    stop = torch.minimum(high[:, :, None], other_high[:, None, :])
    shares = (stop - start).clamp_min(0) / (high - low)[:, :, None]
    return torch.where(shares > CRUMB, shares, 0)


def _intervals(ends: Float[Tensor, "b 2"], cells: int) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
    edges = cell_edges(ends, cells)
    return torch.minimum(edges[:, :-1], edges[:, 1:]), torch.maximum(edges[:, :-1], edges[:, 1:])


def resampling(
    ends: Float[Tensor, "b 2"],
    size: int,
    length: int,
    sigma_px: Float[Tensor, " b"] | None = None,
    device: torch.device | None = None,
) -> Float[Tensor, "b size length"]:
    """Matrices that cut `ends` out of an axis of `length` pixels, resize to `size` and blur, all in one.

    Row i holds the weight of each source pixel in pixel i of the view: a triangle as wide as the reduction (torch's
    antialiased bilinear filter) convolved with a Gaussian of `sigma_px` *view* pixels, in closed form, cut at 4 sigma
    and renormalised at the crop's edges. Pixels outside the crop are never read. A signed (flipped) crop reverses
    the rows. `ends` should be whole numbers, as a crop-then-resize has them. Parameters on the host and matrices on
    `device` cost no synchronisation: the widest kernel of the batch, which sets the work, is known before the copy.
    """
    sigma_px = ends.new_zeros(len(ends)) if sigma_px is None else sigma_px.to(ends.dtype)
    scale = ((ends[:, 1] - ends[:, 0]) / size).abs()
    support = (scale.clamp_min(1) + 4 * sigma_px * scale).max().item() if len(ends) else 0.0
    taps = min(math.ceil(2 * support) + 1, length)

    device = device or ends.device
    ends, sigma_px = to_device(ends, device), to_device(sigma_px, device)
    low, high = ends.amin(1)[:, None, None], ends.amax(1)[:, None, None]
    step = ((ends[:, 1] - ends[:, 0]) / size)[:, None, None]  # source pixels a view pixel, signed
    reach = step.abs().clamp_min(1)  # half the triangle's foot: no narrower than one source pixel when enlarging
    sigma = (sigma_px[:, None, None] * step.abs()).clamp_min(1e-4)  # the floor keeps "no blur" out of a division
    centre = ends[:, :1, None] + (torch.arange(size, dtype=ends.dtype, device=ends.device)[None, :, None] + 0.5) * step

    first = (centre - support).floor().clamp(0, length - taps)
    pixel = first + torch.arange(taps, device=ends.device)
    kernel = triangle_with_blur(pixel + 0.5 - centre, reach, sigma)
    kernel = kernel.masked_fill((pixel < low) | (pixel >= high), 0.0)
    kernel = kernel / kernel.sum(2, keepdim=True)
    return kernel.new_zeros(len(ends), size, length).scatter_(2, pixel.long(), kernel)


def triangle_with_blur(
    offset: Float[Tensor, "b size taps"], reach: Float[Tensor, "b 1 1"], sigma: Float[Tensor, "b 1 1"]
) -> Float[Tensor, "b size taps"]:
    """A triangle of half-width `reach` convolved with a Gaussian, zero beyond `reach` + 4 sigma.

    The triangle is the second difference of a ramp, so the convolution is that of the Gaussian's second integral
    `x Phi(x / sigma) + sigma phi(x / sigma)`. The cut keeps denormal tails out of the matrix products.
    """
    kernel = (_ramp(offset + reach, sigma) - 2 * _ramp(offset, sigma) + _ramp(offset - reach, sigma)) / reach
    return kernel.masked_fill(offset.abs() >= reach + 4 * sigma, 0.0).clamp_min(0)


def _ramp(x: Tensor, sigma: Tensor) -> Tensor:
    z = x / sigma
    return x * 0.5 * (1 + torch.erf(z * math.sqrt(0.5))) + sigma * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def coarser(grid: Float[Tensor, "b c h w"], most: int) -> Float[Tensor, "b c g f"]:
    """A grid of cells averaged by area to at most `most` x `most`; a smaller one stays as it is."""
    if max(grid.shape[2:]) <= most:
        return grid
    unit = torch.tensor([[0.0, 1.0]], dtype=torch.float32, device="cpu")
    rows, cols = (to_device(shared_fraction(unit, min(n, most), unit, n)[0], grid) for n in grid.shape[2:])
    return rows @ grid @ cols.T


def exact(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def grid_size(cells: int | tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of a grid given as one number or two."""
    return (cells, cells) if isinstance(cells, int) else cells
