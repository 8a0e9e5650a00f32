"""Which cells of one view belong to which cells of the other: the match that dense contrast follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from colocate.base.distributed import to_device
from colocate.core.geometry import Crop, cell_centres, exact, grid_size, shared_fraction


class Match(ABC):
    """b pairs of views, matched: each of one's own n cells has a partner made of the other view's m cells."""

    weight: Float[Tensor, "b n"]
    """How much each of one's own cells counts, in [0, 1]."""

    @abstractmethod
    def ranking(self) -> Float[Tensor, "b n"]:
        """How good each own cell's match is; what it means is the rule's, larger is better."""

    @abstractmethod
    def pool(self, cells: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """Each own cell's partner, out of the other view's cells."""

    def best(self, count: int) -> Int[Tensor, "b k"]:
        """The `count` best matched of one's own cells (all, where there are fewer), in the order of the grid."""
        return self.ranking().sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values


@final
@dataclass(frozen=True, eq=False)
class SharedArea(Match):
    """The overlap of b pairs of views as an outer product.

    `rows` and `cols` carry one's own grid (h x w) onto the other's (g x f), each row summing to one, or to zero
    where nothing is shared. `swap` marks the pairs of which exactly one view is transposed; there `rows` meets the
    other's columns.
    """

    rows: Float[Tensor, "b h g"]
    cols: Float[Tensor, "b w f"]
    swap: Bool[Tensor, " b"]
    seen: Float[Tensor, "b n"]
    """How much of each of the n = h * w cells the other view saw at all, in [0, 1]: w_i = sum_j S[i, j]."""
    weight: Float[Tensor, "b n"]
    """How much each cell counts: the same, unless changed."""
    grid: tuple[int, int]
    """Rows and columns of the *other* view's grid."""

    def ranking(self) -> Float[Tensor, "b n"]:
        """How much of the cell the other view saw; among equals, how much of that lies in a single cell.

        Without the second, cells that were seen whole (often most of them) would be taken from the view's top.
        """
        single = (self.rows.amax(2)[:, :, None] * self.cols.amax(2)[:, None, :]).flatten(1)
        return (self.seen * 1e6).round() + single / 2

    def pool(self, cells: Num[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """The other view's cells averaged by shared area: sum_j S[i, j] / w_i * cells_j, zero where w_i = 0.

        n^3 work for n x n cells, and no (n * n) x (n * n) matrix. Of whole numbers the averages are float32.
        """
        cells = cells if cells.is_floating_point() else exact(cells)
        b, _, d = cells.shape
        field = cells.reshape(b, *self.grid, d)
        field = self._swapped(field, 1)
        rows = to_device(self.rows, cells)
        cols = to_device(self.cols, cells)
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
        swap = to_device(self.swap, field.device)
        return torch.where(swap.view(-1, *[1] * (field.ndim - 1)), turned, field)


@final
@dataclass(frozen=True, eq=False)
class Attended(Match):
    """Each cell's partner is a mean of the other view's cells under any weights: n^4 numbers."""

    shares: Float[Tensor, "b n m"]
    weight: Float[Tensor, "b n"]
    order: Float[Tensor, "b n"]

    def ranking(self) -> Float[Tensor, "b n"]:
        """As of the match that was attended."""
        return self.order

    def pool(self, cells: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """The other view's cells averaged by `shares`."""
        return self.shares.to(cells) @ cells


@final
@dataclass(frozen=True, eq=False)
class Nearest(Match):
    """Each cell's partner is one cell of the other view."""

    partner: Int[Tensor, "b n"]
    closeness: Float[Tensor, "b n"]
    """Cosine similarity to the partner, or minus the distance."""
    weight: Float[Tensor, "b n"]
    """One for each: nothing is known of how much they share."""

    def ranking(self) -> Float[Tensor, "b n"]:
        """How close the partner is."""
        return self.closeness

    def pool(self, cells: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """The partners."""
        return cells.take_along_dim(to_device(self.partner, cells.device)[:, :, None], 1)


def overlap(
    own: Crop, other: Crop, cells: int | tuple[int, int] = 7, other_cells: int | tuple[int, int] | None = None
) -> SharedArea:
    """Precise location matching (arXiv:2212.12105): every cell's share of every cell of the other view, exactly.

    `own` and `other` are b crops each of the same b tiles; `cells` is the grid of the first view (one number or
    rows, columns), `other_cells` that of the second (default: the same). The grids need not agree.

    Raises:
        ValueError: a crop without area (or of nan), not as many `other` as `own`, or some pairs need a swap of axes and
            others do not, on an `other_cells` grid that is not square.

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
    if len(own.transpose) != len(other.transpose):
        raise ValueError(f"{len(own.transpose)} and {len(other.transpose)} crops are no pairs: give two of each tile")
    if any(not ((area > 0) & area.isfinite()).all() for area in (own.area(), other.area())):
        raise ValueError("every crop must have an area above 0: of none, no cell has a share")
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
    seen = (seen_rows[:, :, None] * seen_cols[:, None, :]).flatten(1).clamp(0, 1)
    return SharedArea(_normalised(rows, seen_rows), _normalised(cols, seen_cols), swap, seen, seen, (g, f))


def _normalised(shares: Float[Tensor, "b n m"], seen: Float[Tensor, "b n"]) -> Float[Tensor, "b n m"]:
    return shares / torch.where(seen > 0, seen, torch.ones_like(seen))[:, :, None]


def attend(
    match: SharedArea, own: Float[Tensor, "b n d"], other: Float[Tensor, "b m d"], temperature: float = 0.2
) -> Attended:
    """Overlap pooling with attention: shares proportional to shared area times exp(cosine / temperature).

    Cells that share nothing stay out. An ablation of plain area; no gradient passes through the shares.
    """
    similar = _cosine(own.detach(), other.detach()) / temperature
    area = to_device(match.fractions(), similar)
    shares = (similar + area.log()).softmax(2)  # nan where nothing is shared
    return Attended(shares.where(area.amax(2, keepdim=True) > 0, 0), match.weight, match.ranking())


@torch.no_grad()
def most_similar(own: Float[Tensor, "b n c"], other: Float[Tensor, "b m c"]) -> Nearest:
    """The partner of largest cosine similarity (DenseCL, arXiv:2011.09157, on the backbone's features).

    >>> match = most_similar(torch.tensor([[[1.0, 0.0], [1.0, 2.0]]]), torch.tensor([[[0.0, 3.0], [4.0, 1.0]]]))
    >>> match.partner
    tensor([[1, 0]])
    """
    score, partner = _cosine(own, other).max(2)
    return Nearest(partner, score, torch.ones_like(score))


@torch.no_grad()
def nearest_feature(own: Float[Tensor, "b n d"], other: Float[Tensor, "b m d"]) -> Nearest:
    """The partner at the smallest Euclidean distance (VICRegL, arXiv:2210.01571, on the expanded cells)."""
    return _nearest(exact(own), exact(other))


def nearest_centre(
    own: Crop, other: Crop, cells: int | tuple[int, int] = 7, other_cells: int | tuple[int, int] | None = None
) -> Nearest:
    """The partner whose centre is nearest on the tile, in source pixels (VICRegL, arXiv:2210.01571).

    Centres are true ones: the middle of each cell, flips and quarter turns applied. Arguments as for `overlap`.
    """
    match = _nearest(cell_centres(own, cells), cell_centres(other, cells if other_cells is None else other_cells))
    return replace(match, closeness=match.closeness.round(decimals=6))  # so that what is equally near ranks equal


def _cosine(own: Float[Tensor, "b n d"], other: Float[Tensor, "b m d"]) -> Float[Tensor, "b n m"]:
    with torch.autocast(own.device.type, enabled=False):  # in bfloat16 too many would be equally similar
        return F.normalize(exact(own), dim=2) @ F.normalize(exact(other), dim=2).mT


def _nearest(own: Float[Tensor, "b n d"], other: Float[Tensor, "b m d"]) -> Nearest:
    # Differences, not |a|^2 - 2ab + |b|^2: near cells would drown in rounding.
    distance, partner = torch.cdist(own, other, compute_mode="donot_use_mm_for_euclid_dist").min(2)
    return Nearest(partner, -distance, torch.ones_like(distance))
