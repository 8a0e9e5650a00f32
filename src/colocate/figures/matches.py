"""Two crops of a tile and the cells that they share, as `overlap` has them: the picture of what PLM trains on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Polygon, Rectangle
from torch import Tensor

from ..geometry import Crop, cell_edges
from ..matching import Match, overlap
from ..views import View, ViewConfig, sample_views
from .style import CELLS, INK, SMALL, halo, picture

EPOCHS = 12  # pairs of views of a tile to choose an instructive one from
LEAST_SHARED = 0.4  # of a cell, for it to be drawn


class DrawnPair(NamedTuple):
    """A tile, two views of it as training drew them, and how their cells overlap."""

    tile: UInt8[Tensor, "3 h w"]
    first: View
    second: View
    match: Match
    """From the first view's cells to the second's."""
    grid: tuple[int, int]
    """Of the first view."""
    config: ViewConfig
    epoch: int


def training_pair(
    tile: UInt8[Tensor, "3 h w"],
    number: int,
    config: ViewConfig,
    seed: int,
    grid: tuple[int, int],
    mpp: float = float("nan"),
) -> DrawnPair:
    """The views that training with this seed saw of tile `number`, in the epoch (of the first few) that shows most.

    That is one in which the views share much but not all, and were turned differently.
    """
    pairs = []
    for epoch in range(EPOCHS):
        batch = sample_views(
            tile[None], config, seed=seed, epoch=epoch, index=torch.tensor([number]), mpp=torch.tensor([mpp])
        )
        match = overlap(batch.first.crop, batch.second.crop, grid)
        pairs.append(DrawnPair(tile, batch.first, batch.second, match, grid, config, epoch))
    return max(pairs, key=_instructive)


def _instructive(pair: DrawnPair) -> float:
    enough = (pair.match.weight > LEAST_SHARED).double().mean().item()
    return min(enough, 1.1 - enough) + 0.25 * (_turning(pair.first.crop) != _turning(pair.second.crop))


def _turning(crop: Crop) -> tuple[bool, bool, bool]:
    upside, sideways = ((ends[0, 0] > ends[0, 1]).item() for ends in (crop.rows, crop.cols))
    return bool(upside), bool(sideways), bool(crop.transpose[0])


def matched_cells(match: Match, cell: int) -> list[tuple[int, float]]:
    """The other view's cells that share tissue with `cell` of the first pair, and what share of `cell` each holds.

    >>> left, whole = Crop.of([[0, 0, 8, 4]]), Crop.of([[0, 0, 8, 8]])
    >>> matched_cells(overlap(left, whole, cells=2), cell=1)
    [(0, 1.0)]
    """
    shares = match.fractions()[0, cell] * match.weight[0, cell]
    return [(int(other), float(shares[other])) for other in shares.nonzero().squeeze(1)]


def cell_box(crop: Crop, grid: tuple[int, int], cell: int) -> tuple[float, float, float, float]:
    """Top, left, bottom and right, in source pixels, of the tissue under a cell of the first view of `crop`.

    >>> cell_box(Crop.of([[0, 8, 8, 0]]), (2, 2), cell=0)      # mirrored: the first cell is the tile's top right
    (0.0, 4.0, 4.0, 8.0)
    """
    row, col = divmod(cell, grid[1])
    down, across = crop.view_axes()
    vertical = sorted(cell_edges(down[:1], grid[0])[0, row : row + 2].tolist())
    horizontal = sorted(cell_edges(across[:1], grid[1])[0, col : col + 2].tolist())
    rows, cols = (horizontal, vertical) if crop.transpose[0] else (vertical, horizontal)
    return rows[0], cols[0], rows[1], cols[1]


def chosen_cells(match: Match, grid: tuple[int, int], count: int) -> list[int]:
    """Up to `count` cells of the first pair that the other view saw well, as far from each other as can be."""
    weight = match.weight[0]
    open_cells = (weight > LEAST_SHARED).nonzero().squeeze(1)
    if not len(open_cells):
        open_cells = weight.nonzero().squeeze(1)
    place = torch.stack([open_cells // grid[1], open_cells % grid[1]], 1).double()
    chosen: list[int] = []
    distance = -(place - place.mean(0)).norm(dim=1) if len(place) else place.sum(1)  # starts in the middle
    for _ in range(min(count, len(open_cells))):
        at = int((distance + 1e-3 * weight[open_cells]).argmax())  # of equally far ones the one seen best
        chosen.append(int(open_cells[at]))
        new = (place - place[at]).norm(dim=1)
        distance = new if len(chosen) == 1 else torch.minimum(distance, new)
    return sorted(chosen)


def draw_pair(axes: tuple[Axes, Axes, Axes], pair: DrawnPair, count: int = 6) -> None:
    """The tile with both crops, the first view with a few of its cells, the second with the cells that they match.

    Opacity in the second view follows the area shared, relative to each cell's best match.
    """
    where, own, other = axes
    chosen = chosen_cells(pair.match, pair.grid, min(count, len(CELLS)))
    picture(where, pair.tile.permute(1, 2, 0).numpy())
    for axis, view, grid in ((own, pair.first, pair.grid), (other, pair.second, pair.match.grid)):
        picture(axis, shown(view, pair.config))
        _draw_grid(axis, grid, pair.config.size)
    for name, view, dashes in (("1", pair.first, "-"), ("2", pair.second, (0, (3.5, 2.5)))):
        _draw_crop(where, view.crop, name, dashes)
    for number, (cell, colour) in enumerate(zip(chosen, CELLS, strict=False), 1):
        top, left, bottom, right = cell_box(pair.first.crop, pair.grid, cell)
        where.add_patch(Rectangle((left, top), right - left, bottom - top, fc=to_rgba(colour, 0.5), ec=colour, lw=0.8))
        _draw_cell(own, pair.grid, pair.config.size, cell, colour, 0.45)
        _label(own, pair.grid, pair.config.size, [(cell, 1.0)], number, colour)
        matched = matched_cells(pair.match, cell)
        most = max(share for _, share in matched)
        for found, share in matched:
            _draw_cell(other, pair.match.grid, pair.config.size, found, colour, 0.6 * share / most)
        _label(other, pair.match.grid, pair.config.size, matched, number, colour)


def shown(view: View, config: ViewConfig) -> UInt8[np.ndarray, "s s 3"]:
    """The first view's pixels as the network saw them, normalisation undone."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (config.mean, config.std))
    pixels = (view.images[0] * std + mean).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(1, 2, 0).numpy()


def _corners(crop: Crop) -> Float[np.ndarray, "4 2"]:
    """(x, y) of the view's top left, top right, bottom right and bottom left corner on its tile."""
    (down, across), turned = crop.view_axes(), bool(crop.transpose[0])
    corners = [(down[0, v].item(), across[0, h].item()) for v, h in ((0, 0), (0, 1), (1, 1), (1, 0))]
    return np.array([(v, h) if turned else (h, v) for v, h in corners], dtype=np.float64)


def _draw_crop(axes: Axes, crop: Crop, name: str, dashes: object) -> None:
    """The crop's outline; its corner mark and name stand where the view has its top left."""
    corners = _corners(crop)
    style = {"fill": False, "joinstyle": "miter", "clip_on": False}
    axes.add_patch(Polygon(corners, ec=INK, lw=2.6, ls="-", **style))
    axes.add_patch(Polygon(corners, ec="white", lw=1.2, ls=dashes, **style))
    inward = corners[0] + 0.1 * (corners[2] - corners[0])
    axes.text(inward[0], inward[1], name, color="white", fontsize=SMALL, fontweight="bold", ha="center", va="center",
              path_effects=halo(2.5))  # fmt: skip


def _draw_grid(axes: Axes, grid: tuple[int, int], size: int) -> None:
    for count, draw in ((grid[0], axes.axhline), (grid[1], axes.axvline)):
        for line in range(1, count):
            draw(size * line / count, color="white", lw=0.5, alpha=0.45)


def _draw_cell(axes: Axes, grid: tuple[int, int], size: int, cell: int, colour: str, opacity: float) -> None:
    high, wide = size / grid[0], size / grid[1]
    row, col = divmod(cell, grid[1])
    axes.add_patch(Rectangle((col * wide, row * high), wide, high, fc=to_rgba(colour, opacity), ec="none"))
    if opacity > 0.25:
        axes.add_patch(Rectangle((col * wide, row * high), wide, high, fill=False, ec=colour, lw=1.1))


def _label(
    axes: Axes, grid: tuple[int, int], size: int, cells: list[tuple[int, float]], number: int, colour: str
) -> None:
    """The number at the cells' common centre, weighted by share."""
    total = sum(share for _, share in cells)
    row = sum(share * (cell // grid[1] + 0.5) for cell, share in cells) / total
    col = sum(share * (cell % grid[1] + 0.5) for cell, share in cells) / total
    at = (col * size / grid[1], row * size / grid[0])
    axes.text(*at, str(number), color=colour, fontsize=SMALL, fontweight="bold", ha="center", va="center",
              path_effects=halo(2.2))  # fmt: skip
