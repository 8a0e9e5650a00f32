"""Which cells of one view belong to which cells of the other: the match that dense contrast follows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .geometry import Crop, grid_size, shared_fraction


class Match(NamedTuple):
    """The overlap of b pairs of views as an outer product, ready to pool the other view's cells onto one's own.

    `rows` and `cols` carry one's own grid (h x w) onto the other's (g x f), each row summing to one, or to zero
    where nothing is shared. `swap` marks the pairs of which exactly one view is transposed; there `rows` meets the
    other's columns.
    """

    rows: Float[Tensor, "b h g"]
    cols: Float[Tensor, "b w f"]
    swap: Bool[Tensor, " b"]
    weight: Float[Tensor, "b n"]
    """How much of each of the n = h * w cells the other view saw at all, in [0, 1]: w_i = sum_j S[i, j]."""
    grid: tuple[int, int]
    """Rows and columns of the *other* view's grid."""

    def pool(self, cells: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """The other view's cells averaged by shared area: sum_j S[i, j] / w_i * cells_j, zero where w_i = 0.

        n^3 work for n x n cells, and no (n * n) x (n * n) matrix.
        """
        b, _, d = cells.shape
        field = cells.reshape(b, *self.grid, d)
        field = self._swapped(field, 1)
        rows = self.rows.to(cells, non_blocking=True)
        cols = self.cols.to(cells, non_blocking=True)
        field = (rows @ field.flatten(2)).unflatten(2, (-1, d))  # b h f d
        return (cols[:, None] @ field).flatten(1, 2)

    def fractions(self) -> Float[Tensor, "b n m"]:
        """The whole matrix S / w, for pictures and checks: n^4 numbers."""
        b, h, g = self.rows.shape
        w, f = self.cols.shape[1:]
        straight = torch.einsum("bhg,bwf->bhwgf", self.rows, self.cols)
        return self._swapped(straight, 3).reshape(b, h * w, g * f)

    def _swapped(self, field: Tensor, axis: int) -> Tensor:
        """`axis` and the one after it exchanged where the pair asks for it; `swap` is on the host, so no sync."""
        if not self.swap.any():
            return field
        turned = field.transpose(axis, axis + 1)
        if self.swap.all():
            return turned
        return torch.where(self.swap.to(field.device).view(-1, *[1] * (field.ndim - 1)), turned, field)


def overlap(
    own: Crop, other: Crop, cells: int | tuple[int, int] = 7, other_cells: int | tuple[int, int] | None = None
) -> Match:
    """Precise location matching (arXiv:2212.12105): every cell's share of every cell of the other view, exactly.

    `own` and `other` are b crops each of the same b tiles; `cells` is the grid of the first view (one number or
    rows, columns), `other_cells` that of the second (default: the same). The grids need not agree.

    Raises:
        ValueError: some pairs need a swap of axes and others do not, on an `other_cells` grid that is not square.

    >>> tile = Crop.of([[0, 0, 8, 8]])
    >>> right_half = Crop.of([[0, 4, 8, 8]])
    >>> match = overlap(tile, right_half, cells=2)
    >>> match.weight
    tensor([[0., 1., 0., 1.]], dtype=torch.float64)
    >>> match.pool(torch.tensor([[[1.0], [3.0], [5.0], [7.0]]])).squeeze()
    tensor([0., 2., 0., 6.])
    """
    h, w = grid_size(cells)
    g, f = grid_size(cells if other_cells is None else other_cells)
    swap = own.transpose != other.transpose
    swaps = bool(swap.any())
    if swaps and g != f and not swap.all():
        raise ValueError(f"a {g} x {f} grid cannot be both swapped and not within one batch: use square views")
    facing_rows, facing_cols = (f, g) if swaps else (g, f)
    own_vertical, own_horizontal = own.view_axes()
    other_vertical, other_horizontal = other.view_axes()
    across = swap[:, None]
    rows = shared_fraction(own_vertical, h, torch.where(across, other_horizontal, other_vertical), facing_rows)
    cols = shared_fraction(own_horizontal, w, torch.where(across, other_vertical, other_horizontal), facing_cols)
    seen_rows, seen_cols = rows.sum(2), cols.sum(2)
    weight = (seen_rows[:, :, None] * seen_cols[:, None, :]).flatten(1).clamp(0, 1)
    return Match(_normalised(rows, seen_rows), _normalised(cols, seen_cols), swap, weight, (g, f))


def _normalised(shares: Float[Tensor, "b n m"], seen: Float[Tensor, "b n"]) -> Float[Tensor, "b n m"]:
    return shares / torch.where(seen > 0, seen, torch.ones_like(seen))[:, :, None]
