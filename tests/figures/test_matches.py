"""The drawn cells show the same tissue: checked against positions painted into the tile, and against plain boxes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from colocate.core.geometry import Crop
from colocate.core.matching import overlap
from colocate.core.settings import ViewConfig
from colocate.core.views import AugmentParams, render, sample_views
from colocate.pages.matches import (
    LEAST_SHARED,
    box_in_view,
    cell_box,
    chosen_cells,
    draw_pair,
    matched_cells,
    training_pair,
)
from colocate.training.recipes import plm
from tests.strategies import SYMMETRIES, TILE, crop_pairs, crops, grids, placed

PLAIN = ViewConfig(size=40, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), jitter=(0.0, 0.0, 0.0, 0.0))


def identity_params(crop: Crop) -> AugmentParams:
    """Crop and resize alone."""
    unchanged = torch.tensor([[1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    zeros = torch.zeros(1, 3, dtype=torch.float64)
    return AugmentParams(crop, zeros[:, 0], unchanged, torch.zeros(1, dtype=torch.bool), zeros + 1, zeros)


def painted_centres(crop: Crop, grid: tuple[int, int]) -> list[tuple[float, float]]:
    """Where the middles of cells lie on the tile (y, x), read from the colours of the rendered view."""
    ramp = torch.arange(TILE)
    tile = torch.stack([ramp[:, None].expand(TILE, TILE), ramp.expand(TILE, TILE), torch.zeros(TILE, TILE)])
    view = render(tile.to(torch.uint8)[None], identity_params(crop), PLAIN).images[0]
    patches = view[:2].reshape(2, grid[0], PLAIN.size // grid[0], grid[1], PLAIN.size // grid[1])
    y, x = (patches.mean((2, 4)) * 255 + 0.5).flatten(1).tolist()
    return list(zip(y, x, strict=True))


@pytest.mark.parametrize("how", SYMMETRIES)
@pytest.mark.parametrize("grid", [(4, 4), (2, 5)])
def test_a_cells_box_is_where_the_rendered_view_shows_it(how: tuple[bool, bool, bool], grid: tuple[int, int]) -> None:
    crop = crops([placed((40, 200), (16, 136), how)])
    for cell, (y, x) in enumerate(painted_centres(crop, grid)):
        top, left, bottom, right = cell_box(crop, grid, cell)
        assert (top + bottom) / 2 == pytest.approx(y, abs=1.5)
        assert (left + right) / 2 == pytest.approx(x, abs=1.5)


@given(crop_pairs(most=1), grids, grids)
def test_matched_cells_are_those_whose_boxes_meet(pair: tuple[Crop, Crop], grid: tuple, other_grid: tuple) -> None:
    own, other = pair
    if own.transpose.ne(other.transpose).any() and other_grid[0] != other_grid[1]:
        other_grid = (other_grid[0], other_grid[0])
    match = overlap(own, other, grid, other_grid)
    others = [cell_box(other, other_grid, candidate) for candidate in range(other_grid[0] * other_grid[1])]
    for cell in range(grid[0] * grid[1]):
        top, left, bottom, right = cell_box(own, grid, cell)
        expected = {}
        for candidate, (t, l, b, r) in enumerate(others):  # noqa: E741
            shared = max(0.0, min(bottom, b) - max(top, t)) * max(0.0, min(right, r) - max(left, l))
            if shared > 1e-6:
                expected[candidate] = shared / ((bottom - top) * (right - left))
        found = {other_cell: share for other_cell, share in matched_cells(match, cell) if share > 1e-6}
        wanted = {key: share for key, share in expected.items() if share > 1e-6}
        assert found.keys() == wanted.keys() and found == pytest.approx(wanted, abs=1e-6)


@given(crop_pairs(most=1))
def test_a_box_keeps_its_place_in_the_view(pair: tuple[Crop, Crop]) -> None:
    crop, _ = pair
    for cell in range(12):
        row, col = divmod(cell, 4)
        box = box_in_view(crop, 24, cell_box(crop, (3, 4), cell))
        assert box == pytest.approx((row * 8, col * 6, row * 8 + 8, col * 6 + 6), abs=1e-6)


@given(crop_pairs(most=1))
def test_chosen_cells_were_seen_and_differ(pair: tuple[Crop, Crop]) -> None:
    match = overlap(*pair, cells=5)
    chosen = chosen_cells(match, 6)
    weight = match.weight[0]
    assert len(set(chosen)) == len(chosen) <= 6
    assert all(weight[cell] > 0 for cell in chosen)
    well_seen = int((weight > LEAST_SHARED).sum())
    if well_seen:
        assert len(chosen) == min(6, well_seen)
        assert all(weight[cell] > LEAST_SHARED for cell in chosen)


def test_the_pair_is_one_that_training_saw() -> None:
    tile = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    recipe = replace(plm(), views=ViewConfig(size=32, symmetries="all"), seed=3)
    pair = training_pair(tile, 7, recipe, (4, 4), mpp=math.nan, epochs=6)
    batch = sample_views(tile[None], recipe.views, seed=3, epoch=pair.epoch, index=torch.tensor([7]))
    assert torch.equal(pair.first.images, batch.first.images)
    assert torch.equal(pair.second.images, batch.second.images)
    assert pair.epoch < 6


def test_the_picture_draws_each_chosen_cell_over_its_own_tissue() -> None:
    tile = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
    recipe = replace(plm(), views=ViewConfig(size=32, symmetries="all"))
    pair = training_pair(tile, 1, recipe, (4, 4), mpp=math.nan, epochs=12)
    figure = Figure()
    axes = figure.subplots(1, 3)
    draw_pair(tuple(axes), pair)
    chosen = chosen_cells(pair.match, 5)
    boxes = [cell_box(pair.first.crop, pair.grid, cell) for cell in chosen]
    for axis, crop in ((axes[1], pair.first.crop), (axes[2], pair.second.crop)):
        drawn = [patch for patch in axis.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
        corners = [(p.get_y(), p.get_x(), p.get_y() + p.get_height(), p.get_x() + p.get_width()) for p in drawn]
        assert corners == [pytest.approx(box_in_view(crop, 32, box)) for box in boxes]
    filled = [patch for patch in axes[2].patches if patch.get_fill()]
    shares = [share for cell in chosen for _, share in matched_cells(pair.match, cell)]
    assert len(filled) == len(shares)
    assert max(patch.get_facecolor()[3] for patch in filled) == pytest.approx(0.5)  # each cell's best match
    assert len(set(shares)) > 1
    assert len({patch.get_facecolor()[3] for patch in filled}) > 1


def test_views_that_share_nothing_are_drawn_without_cells() -> None:
    tile = torch.zeros(3, 64, 64, dtype=torch.uint8)
    recipe = replace(plm(), views=ViewConfig(size=16, area=(0.01, 0.01)))
    pair = training_pair(tile, 0, recipe, (2, 2), mpp=math.nan, epochs=1)
    apart = Crop.of([[0, 0, 8, 8]]), Crop.of([[40, 40, 48, 48]])
    pair = pair._replace(match=overlap(*apart, cells=2))
    axes = Figure().subplots(1, 3)
    draw_pair(tuple(axes), pair)
    assert not axes[2].patches
