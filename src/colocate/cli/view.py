"""`colocate view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from colocate.base.errors import UserError


def view(
    places: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="PATH ...")],
    port: int = 8765,
    host: str = "localhost",
    open: bool = False,
    slide_mpp: float | None = None,
) -> None:
    """Look at slides, at what was made of them and at a run's views, in the browser of this machine.

    The address that is printed holds a token, without which nothing is shown. Ctrl-C ends it.

    Args:
        places: Slides, folders of slides, what `colocate tile`, `features` and `predict` wrote, or runs.
        port: Of the address; 0: any that is free.
        host: The name or address to listen at; others than localhost let other machines in.
        open: Open the browser.
        slide_mpp: Micrometres per pixel of slides that do not say.

    Raises:
        UserError: nothing to show, the port is in use, or a package is missing.
    """
    from colocate.viewer.collection import collect

    try:
        from colocate.viewer.server import serve
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn"):
            raise
        raise UserError(f"colocate view needs {package}: pip install 'colocate[viewer]'") from None
    serve(collect(places, slide_mpp), host, port, open)
