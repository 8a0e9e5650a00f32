"""Answer what the page asks of runs: their tiles, two views of each, the cells that share tissue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from colocate.viewer.pairs import Pair, pair, read_run
from colocate.viewer.pyramid import png


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
        run = read_run(self._folder(request))
        return JSONResponse({"epoch": run.best_epoch(request.path_params["tile"])})

    def pair(self, request: Request) -> Response:
        found = self._pair(request)
        height, width = found.tile.shape[1:]
        name = Path(found.run.index.name(request.path_params["tile"])).name
        size = {"width": width, "height": height, "view": found.run.recipe.views.size, "grid": found.run.grid}
        seen = [match.seen[0].tolist() for match in found.matches]
        return JSONResponse({"name": name, **size, "crops": found.crops(), "seen": seen})

    def picture(self, request: Request) -> Response:
        return Response(png(self._pair(request).picture(request.path_params["what"])), media_type="image/png")

    def cell(self, request: Request) -> Response:
        return JSONResponse(self._pair(request).cell(request.path_params["view"], request.path_params["cell"]))
