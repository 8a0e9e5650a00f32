"""Draw two crops of a tile and the cells that they share by `overlap`: what PLM trains on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Polygon, Rectangle
from torch import Tensor

from colocate.core.geometry import Crop, cell_edges
from colocate.core.matching import SharedArea, overlap
from colocate.core.settings import ViewConfig
from colocate.core.views import View, sample_views
from colocate.data.loader import spaced
from colocate.pages.style import CELLS, INK, SMALL, halo, picture
from colocate.training.recipe import Recipe

Box = tuple[float, float, float, float]  # top, left, bottom, right

LEAST_SHARED = 0.4  # of a cell, for it to be drawn
CHOICE = 12  # epochs that the pair of views is taken from


class DrawnPair(NamedTuple):
    """A tile, two views of it as training drew them, and how their cells overlap."""

    tile: UInt8[Tensor, "3 h w"]
    first: View
    second: View
    match: SharedArea
    """From the first view's cells to the second's."""
    grid: tuple[int, int]
    """Of the first view."""
    config: ViewConfig
    epoch: int


def training_pair(
    tile: UInt8[Tensor, "3 h w"], number: int, recipe: Recipe, grid: tuple[int, int], mpp: float, epochs: int
) -> DrawnPair:
    """Draw the views of tile `number` as training by a recipe did, in one of the first `epochs`.

    It is the one of at most CHOICE epochs in which about half of the cells are shared: such a pair shows most.
    """
    pairs = [pair_of_epoch(tile, number, recipe, grid, mpp, epoch) for epoch in range(min(CHOICE, epochs))]
    return min(pairs, key=lambda pair: abs((pair.match.weight > LEAST_SHARED).double().mean().item() - 0.55))


def pair_of_epoch(
    tile: UInt8[Tensor, "3 h w"], number: int, recipe: Recipe, grid: tuple[int, int], mpp: float, epoch: int
) -> DrawnPair:
    """Draw the views of tile `number` as training by a recipe did in an epoch."""
    which = {"seed": recipe.seed, "epoch": epoch, "index": torch.tensor([number]), "mpp": torch.tensor([mpp])}
    batch = sample_views(tile[None], recipe.views, **which)
    match = overlap(batch.first.crop, batch.second.crop, grid)
    return DrawnPair(tile, batch.first, batch.second, match, grid, recipe.views, epoch)


def matched_cells(match: SharedArea, cell: int) -> list[tuple[int, float]]:
    """The other view's cells that share tissue with `cell` of the first pair, and what share of `cell` each holds.

    >>> left, whole = Crop.of([[0, 0, 8, 4]]), Crop.of([[0, 0, 8, 8]])
    >>> matched_cells(overlap(left, whole, cells=2), cell=1)
    [(0, 1.0)]
    """
    shares = match.fractions()[0, cell] * match.weight[0, cell]
    return [(int(other), float(shares[other])) for other in shares.nonzero().squeeze(1)]


def cell_box(crop: Crop, grid: tuple[int, int], cell: int) -> Box:
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


def chosen_cells(match: SharedArea, count: int) -> list[int]:
    """Up to `count` cells of the first pair that the other view saw well, evenly spaced; else of those that it saw."""
    weight = match.weight[0]
    seen = weight > LEAST_SHARED if (weight > LEAST_SHARED).any() else weight > 0
    return spaced(seen.nonzero().squeeze(1).tolist(), count)


def box_in_view(crop: Crop, size: int, box: Box) -> Box:
    """Place of a box of the tile (top, left, bottom, right) in the first view of `crop`, in view pixels.

    >>> box_in_view(Crop.of([[0, 8, 8, 0]]), 16, (0.0, 2.0, 4.0, 6.0))      # mirrored
    (0.0, 4.0, 8.0, 12.0)
    """
    rows, cols = (
        sorted(((edge - ends[0, 0]) / (ends[0, 1] - ends[0, 0])).item() * size for edge in edges)
        for ends, edges in ((crop.rows, box[0::2]), (crop.cols, box[1::2]))
    )
    rows, cols = (cols, rows) if crop.transpose[0] else (rows, cols)
    return rows[0], cols[0], rows[1], cols[1]


def draw_pair(axes: tuple[Axes, Axes, Axes], pair: DrawnPair) -> None:
    """The tile with both crops, the first view with a few of its cells, the second with the cells that they match.

    In the second view the outline is where the cell's tissue truly lies; matched cells are filled, the more of the
    cell's area they share, the stronger (relative to its best match).
    """
    where, own, other = axes
    size = pair.config.size
    chosen = chosen_cells(pair.match, len(CELLS))
    picture(where, pair.tile.permute(1, 2, 0).numpy())
    for axis, view, grid in ((own, pair.first, pair.grid), (other, pair.second, pair.match.grid)):
        picture(axis, shown(view, pair.config))
        _draw_grid(axis, grid, size)
    for name, view, dashes in (("1", pair.first, "-"), ("2", pair.second, (0, (3.5, 2.5)))):
        _draw_crop(where, view.crop, name, dashes)
    for number, (cell, colour) in enumerate(zip(chosen, CELLS, strict=False), 1):
        tissue = cell_box(pair.first.crop, pair.grid, cell)
        _draw_cell(where, tissue, colour, fill=0.25, edge=0.9)
        _draw_cell(own, box_in_view(pair.first.crop, size, tissue), colour, fill=0.25, edge=1.5, number=number)
        matched = matched_cells(pair.match, cell)
        most = max(share for _, share in matched)
        for found, share in matched:
            box = cell_box(pair.second.crop, pair.match.grid, found)
            _draw_cell(other, box_in_view(pair.second.crop, size, box), colour, fill=0.5 * share / most)
    for number, (cell, colour) in enumerate(zip(chosen, CELLS, strict=False), 1):  # above every filled cell
        truth = box_in_view(pair.second.crop, size, cell_box(pair.first.crop, pair.grid, cell))
        _draw_cell(other, truth, colour, edge=1.5, number=number)


def shown(view: View, config: ViewConfig) -> UInt8[np.ndarray, "s s 3"]:
    """The first view's pixels as the network saw them, normalisation undone."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (config.mean, config.std))
    pixels = (view.images[0] * std + mean).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(1, 2, 0).numpy()


def crop_corners(crop: Crop) -> list[list[float]]:
    """Corners (x, y in pixels of the tile) of the first crop, from its view's top left on, clockwise in the view.

    >>> crop_corners(Crop.of([[0, 8, 8, 0]]))      # mirrored: the view's top left is the tile's top right
    [[8.0, 0.0], [0.0, 0.0], [0.0, 8.0], [8.0, 8.0]]
    """
    (down, across), turned = crop.view_axes(), bool(crop.transpose[0])
    ends = [(down[0, v].item(), across[0, h].item()) for v, h in ((0, 0), (0, 1), (1, 1), (1, 0))]
    return [[v, h] if turned else [h, v] for v, h in ends]


def _draw_crop(axes: Axes, crop: Crop, name: str, dashes: object) -> None:
    """The crop's outline on its tile; its name stands where the view has its top left."""
    outline = np.array(crop_corners(crop))
    style = {"fill": False, "joinstyle": "miter", "clip_on": False}
    axes.add_patch(Polygon(outline, ec=INK, lw=2.6, ls="-", **style))
    axes.add_patch(Polygon(outline, ec="white", lw=1.2, ls=dashes, **style))
    x, y = (outline[0] + 0.1 * (outline[2] - outline[0])).tolist()
    _write(axes, x, y, name, "white")


def _draw_grid(axes: Axes, grid: tuple[int, int], size: int) -> None:
    for count, draw in ((grid[0], axes.axhline), (grid[1], axes.axvline)):
        for line in range(1, count):
            draw(size * line / count, color="white", lw=0.5, alpha=0.45)


def _draw_cell(
    axes: Axes, box: Box, colour: str, *, fill: float = 0, edge: float = 0, number: int | None = None
) -> None:
    """Fill a box with so opaque a colour, outline it, write a number in its middle: each where it is given."""
    top, left, bottom, right = box
    if fill:
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fc=to_rgba(colour, fill), ec="none"))
    if edge:
        line = Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=edge, joinstyle="miter")
        line.set_path_effects(halo(edge + 1.2))
        axes.add_patch(line)
    if number is not None:
        _write(axes, (left + right) / 2, (top + bottom) / 2, str(number), colour)


def _write(axes: Axes, x: float, y: float, words: str, colour: str) -> None:
    look = {"fontsize": SMALL, "fontweight": "bold", "ha": "center", "va": "center", "clip_on": True}
    axes.text(x, y, words, color=colour, path_effects=halo(), **look)
