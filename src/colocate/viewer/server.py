"""Serve the page: what may be asked for by number, and nothing else; until Ctrl-C."""

from __future__ import annotations

import errno
import math
import secrets
import socket
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from colocate.base.errors import UserError
from colocate.base.text import counted, say
from colocate.slides.slide import Slide
from colocate.viewer.collection import Collection, Kind, Made, Shown
from colocate.viewer.guard import LOOPBACK, Guard
from colocate.viewer.outlines import Outlines, read_predictions, read_tiles
from colocate.viewer.pyramid import (
    RGBA,
    TILE_PX,
    Region,
    draw_tissue,
    finest,
    opened,
    png,
    region,
    slide_tile,
    thumbnail,
    tissue_of,
)
from colocate.viewer.similar import COLOURS, draw_similarity, lattice, similarity

STATIC = Path(__file__).parent / "static"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
PATIENCE_S = 1  # for answers under way when the server ends
Answer = Callable[[Request], Response]


def application(collection: Collection, token: str, hosts: tuple[str, ...], port: int) -> Guard:
    """The ASGI application that shows a collection to whoever has the token."""
    files = {path.name: path.read_bytes() for path in STATIC.iterdir()}

    def static(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        return Response(files[name], media_type=KINDS.get(Path(name).suffix, "text/plain"))

    routes = [
        ("/", static),
        ("/static/{name}", static),
        ("/api/collection", lambda _: JSONResponse(_contents(collection))),
        *_Slides(collection.slides).routes(),
    ]
    if collection.runs:
        from colocate.viewer.pairs import Runs  # which alone needs torch

        routes += Runs(collection.runs).routes()
    errors: Any = {
        LookupError: lambda *_: JSONResponse({"error": "there is no such thing here"}, 404),
        UserError: lambda _, error: JSONResponse({"error": str(error)}, 422),
    }
    app = Starlette(routes=[Route(path, answer) for path, answer in routes], exception_handlers=errors)
    return Guard(app, token, hosts, port)


def _contents(collection: Collection) -> dict[str, Any]:
    slides = [
        {"id": number, "name": shown.listed.name, "made": {kind: len(made) for kind, made in shown.made.items()}}
        for number, shown in enumerate(collection.slides)
    ]
    runs = [{"id": number, "name": run.name} for number, run in enumerate(collection.runs)]
    return {"slides": slides, "runs": runs, "notes": collection.notes}


class _Slides:
    """Answers about slides; what was made of them has a number of its own in each kind."""

    def __init__(self, slides: list[Shown]) -> None:
        self.slides = slides

    def routes(self) -> list[tuple[str, Answer]]:
        slide, tile = "/api/slides/{slide:int}", "{level:int}/{column:int}_{row:int}"
        outlines = slide + "/{kind}/{number:int}"
        features = slide + "/similar/{number:int}"
        return [
            (slide, self.facts),
            (slide + "/thumbnail", self.thumbnail),
            (slide + "/pixels/" + tile, self.pixels),
            (slide + "/tissue/" + tile, self.tissue),
            (features, self.lattice),
            (features + "/at", self.feature),
            (features + "/{cell:int}/" + tile, self.heat),
            (outlines, self.classes),
            (outlines + "/at", self.shape),
            (outlines + "/" + tile, self.drawn),
        ]

    def _shown(self, request: Request) -> Shown:
        return self.slides[request.path_params["slide"]]

    def _slide(self, request: Request) -> Slide:
        listed = self._shown(request).listed
        return opened(listed.path, listed.mpp, listed.unsaid_mpp)

    def _made(self, request: Request, kind: Kind) -> Made:
        return self._shown(request).made[kind][request.path_params["number"]]

    def _overlay(self, request: Request, draw: Callable[[Region], RGBA]) -> Response:
        slide = self._slide(request)
        return Response(png(draw(region(slide.width, slide.height, *_tile(request)))), media_type="image/png")

    def facts(self, request: Request) -> Response:
        shown, slide = self._shown(request), self._slide(request)
        size = {"width": slide.width, "height": slide.height, "mpp": slide.mpp}
        zoom = {"tile": TILE_PX, "levels": finest(slide.width, slide.height)}
        made = {kind: [one.folder for one in made] for kind, made in shown.made.items()}
        return JSONResponse({"name": shown.listed.name, "file": slide.path.name, **size, **zoom, "made": made})

    def thumbnail(self, request: Request) -> Response:
        return Response(thumbnail(self._slide(request)), media_type="image/jpeg")

    def pixels(self, request: Request) -> Response:
        return Response(slide_tile(self._slide(request), *_tile(request)), media_type="image/jpeg")

    def tissue(self, request: Request) -> Response:
        mask = self._shown(request).listed.mask
        return self._overlay(request, lambda place: draw_tissue(tissue_of(self._slide(request), mask), place))

    def _outlines(self, request: Request) -> Outlines:
        kind = request.path_params["kind"]
        if kind not in ("tiles", "predictions"):
            raise LookupError(kind)
        made = self._made(request, kind)
        if kind == "tiles":
            return read_tiles(made.place)
        return read_predictions(made.place, self._slide(request).origin)

    def classes(self, request: Request) -> Response:
        found = self._outlines(request)
        counts = np.bincount(found.classes, minlength=len(found.names)).tolist()
        known = zip(found.names, found.colours, counts, strict=True)
        classes = [{"name": name, "colour": colour, "count": count} for name, colour, count in known]
        return JSONResponse({"classes": classes, "least": float(found.scores.min(initial=1))})

    def drawn(self, request: Request) -> Response:
        found = self._outlines(request)
        return self._overlay(request, lambda place: found.draw(place, found.visible(*_filter(request))))

    def shape(self, request: Request) -> Response:
        found = self._outlines(request)
        x, y, scale = (_number(request, name) for name in ("x", "y", "scale"))
        number = found.at(x, y, scale, found.visible(*_filter(request)))
        return JSONResponse(None if number is None else found.describe(number))

    def lattice(self, request: Request) -> Response:
        where = lattice(self._made(request, "features").place)
        colours = COLOURS[::17].tolist()
        count = int((where.rows >= 0).sum())
        return JSONResponse({"of": where.of, "backbone": where.backbone, "count": count, "colours": colours})

    def feature(self, request: Request) -> Response:
        path = self._made(request, "features").place
        where = lattice(path)
        number = where.at(_number(request, "x"), _number(request, "y"))
        if number is None:
            return JSONResponse(None)
        found = similarity(path, number)
        best = [{"square": where.square(one), "cosine": float(found.cosines[one])} for one in found.best]
        return JSONResponse({"cell": number, "square": where.square(number), "low": found.low, "best": best})

    def heat(self, request: Request) -> Response:
        path = self._made(request, "features").place
        found = similarity(path, request.path_params["cell"])
        return self._overlay(request, lambda place: draw_similarity(lattice(path), found, place))


def _tile(request: Request) -> tuple[int, int, int]:
    level, column, row = (request.path_params[name] for name in ("level", "column", "row"))
    return level, column, row


def _number(request: Request, name: str) -> float:
    try:
        value = float(request.query_params[name])
    except (KeyError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise HTTPException(400, f"{name} is no number")
    return value


def _filter(request: Request) -> tuple[list[int], float]:
    """Classes, and the least score."""
    words = request.query_params.get("classes", "").split(",")
    return [int(word) for word in words if word.isdecimal()], _number(request, "score")


def serve(collection: Collection, host: str, port: int, open_browser: bool) -> None:
    """Serve until Ctrl-C. Raises UserError: the port is taken, or there is no such address here."""
    heard = listen(host, port)
    port = heard.getsockname()[1]
    token = secrets.token_urlsafe(24)
    app = application(collection, token, hosts(host), port)
    config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=PATIENCE_S, ws="none")
    shown = "localhost" if host in LOOPBACK else socket.gethostname() if host in ("0.0.0.0", "::") else host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/?token={token}"
    for note in collection.notes:
        say(f"note: {note}")
    say(f"{counted(len(collection.slides), 'slide')}, {counted(len(collection.runs), 'run')}: look at {address}")
    say("Ctrl-C ends it")
    if open_browser:
        webbrowser.open(address)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[heard])
    say("ended: nothing is served any more")


def hosts(host: str) -> tuple[str, ...]:
    """The names by which this machine may be asked."""
    if host in LOOPBACK:
        return LOOPBACK
    return (*LOOPBACK, host, socket.gethostname(), socket.getfqdn())


def listen(host: str, port: int) -> socket.socket:
    """Take a port; 0: any that is free. Raises UserError as `serve`."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port {port} is no port: give a number up to 65535, or 0 for any that is free")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        heard = socket.socket(*found[:3])
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        heard.bind(found[4])
        heard.listen()  # so that who comes before the server is up waits
    except (OSError, UnicodeError) as error:  # a name may have parts that are too long
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise UserError(f"port {port} is in use: give another one, or --port 0 for any that is free") from None
        said = getattr(error, "strerror", error)
        raise UserError(f"--host {host}: {said}; give a name or an address of this machine") from None
    return heard
