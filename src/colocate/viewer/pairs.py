"""Two views of a tile as training drew them: which cells share tissue, which are alike to the backbone; and answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from torch import Tensor

from colocate.core.matching import SharedArea, overlap
from colocate.core.views import View
from colocate.data.index import Index
from colocate.models.backbones import Backbone, load_backbone
from colocate.pages.matches import (
    box_in_view,
    cell_box,
    crop_corners,
    matched_cells,
    pair_of_epoch,
    shown,
    training_pair,
)
from colocate.pages.sample import read_saved
from colocate.training.recipe import Recipe
from colocate.viewer.cache import READING, kept
from colocate.viewer.pyramid import png


@final
@dataclass(frozen=True, eq=False)
class Run:
    """A run as its pairs need it."""

    recipe: Recipe
    index: Index
    backbone: Backbone
    """As it was when training ended, with the statistics that its batch norms have of views."""
    grid: tuple[int, int]
    """Rows and columns of a view's cells."""
    epochs: int
    """That have begun."""


@kept(2, READING, files=lambda folder: (folder / "backbone.json",))
def read_run(folder: Path) -> Run:
    """Read a run. Raises UserError if it has no backbone yet, or cannot be read."""
    recipe, rows = read_saved(folder)
    backbone = load_backbone(folder)
    with torch.no_grad():
        high, wide = backbone(torch.zeros(1, 3, recipe.views.size, recipe.views.size)).shape[2:]
    return Run(recipe, Index.open(folder / "tiles.arrow"), backbone, (high, wide), max(1, int(rows[-1]["epoch"])))


@final
@dataclass(frozen=True, eq=False)
class Pair:
    """Two views of a tile, in both directions."""

    tile: UInt8[Tensor, "3 h w"]
    views: tuple[View, View]
    matches: tuple[SharedArea, SharedArea]
    """From the first view's cells to the second's, and back."""
    cells: Float[Tensor, "2 n c"]
    """Features of both views' cells, of length 1."""
    run: Run

    def cell(self, view: int, number: int) -> dict[str, Any]:
        """What is known of a cell of the first (0) or second (1) view.

        `tissue`: where it lies on the tile (top, left, bottom, right, in pixels of the tile); `truth`: where that lies
        in the other view, in pixels of the view, and may reach beyond it; `shares`: the other view's cells that share
        its tissue, and what share of it each holds; `seen`: their sum; `similar`: the cosine similarity to every cell
        of the first and of the second view.

        Raises LookupError: there is no such view or cell.
        """
        if view not in (0, 1) or not 0 <= number < self.cells.shape[1]:
            raise LookupError(f"no cell {number} in view {view}")
        own, other = self.views[view].crop, self.views[1 - view].crop
        tissue = cell_box(own, self.run.grid, number)
        return {
            "tissue": tissue,
            "truth": box_in_view(other, self.run.recipe.views.size, tissue),
            "shares": matched_cells(self.matches[view], number),
            "seen": float(self.matches[view].seen[0, number]),
            "similar": (self.cells @ self.cells[view, number]).tolist(),
        }

    def picture(self, what: int) -> UInt8[np.ndarray, "h w 3"]:
        """The first view (0), the second (1), as the network saw them, or the tile (2). Raises LookupError: another."""
        if what == 2:
            return self.tile.permute(1, 2, 0).numpy()
        return shown(self.views[what], self.run.recipe.views)


@kept(16, READING, files=lambda folder, *_: (folder / "backbone.json",))
@torch.no_grad()
def pair(folder: Path, number: int, epoch: int) -> Pair:
    """Draw the views of tile `number` as training drew them in an epoch.

    Raises:
        LookupError: there is no such tile or epoch.
        UserError: as `read_run`; TileError: the tile cannot be read.
    """
    run = read_run(folder)
    if not (0 <= number < len(run.index) and 0 <= epoch < run.epochs):
        raise LookupError(f"no tile {number} in epoch {epoch}")
    tile, mpp = run.index.read(number), float(run.index.mpp[number])
    drawn = pair_of_epoch(tile, number, run.recipe, run.grid, mpp, epoch)
    views = (drawn.first, drawn.second)
    matches = (drawn.match, overlap(views[1].crop, views[0].crop, run.grid))
    cells = run.backbone(torch.cat([view.images for view in views])).flatten(2).mT
    return Pair(tile, views, matches, F.normalize(cells, dim=2), run)


@final
class Runs:
    """Answers about runs."""

    def __init__(self, runs: list[Path]) -> None:
        self.runs = runs

    def routes(self) -> list[tuple[str, Callable[[Request], Response]]]:
        run = "/api/runs/{run:int}"
        tile = run + "/tiles/{tile:int}"
        views = tile + "/{epoch:int}"
        return [
            (run, self.facts),
            (tile, self.first),
            (views, self.pair),
            (views + "/picture/{what:int}", self.picture),
            (views + "/cell/{view:int}/{cell:int}", self.cell),
        ]

    def _folder(self, request: Request) -> Path:
        return self.runs[request.path_params["run"]]

    def _pair(self, request: Request) -> Pair:
        return pair(self._folder(request), request.path_params["tile"], request.path_params["epoch"])

    def facts(self, request: Request) -> Response:
        folder = self._folder(request)
        run = read_run(folder)
        facts = {"name": folder.name, "recipe": run.recipe.name, "backbone": run.backbone.name}
        return JSONResponse({**facts, "tiles": len(run.index), "epochs": run.epochs, "grid": run.grid})

    def first(self, request: Request) -> Response:
        """The epoch of which the views of a tile show most: about half of the cells are shared."""
        run, number = read_run(self._folder(request)), request.path_params["tile"]
        tile, mpp = run.index.read(number), float(run.index.mpp[number])
        best = training_pair(tile, number, run.recipe, run.grid, mpp, run.epochs)
        return JSONResponse({"epoch": best.epoch})

    def pair(self, request: Request) -> Response:
        found = self._pair(request)
        height, width = found.tile.shape[1:]
        name = Path(found.run.index.name(request.path_params["tile"])).name
        size = {"width": width, "height": height, "view": found.run.recipe.views.size, "grid": found.run.grid}
        crops = [crop_corners(view.crop) for view in found.views]
        seen = [match.seen[0].tolist() for match in found.matches]
        return JSONResponse({"name": name, **size, "crops": crops, "seen": seen})

    def picture(self, request: Request) -> Response:
        return Response(png(self._pair(request).picture(request.path_params["what"])), media_type="image/png")

    def cell(self, request: Request) -> Response:
        return JSONResponse(self._pair(request).cell(request.path_params["view"], request.path_params["cell"]))
