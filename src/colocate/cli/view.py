"""`colocate view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def view(
    places: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="PATH ...")],
    port: int = 8765,
    host: str = "localhost",
    open: bool = False,
    slide_mpp: float | None = None,
) -> None:
    """View slides, what was made from them, and a run's views, in the browser of this machine.

    The address that is printed contains a token, without which nothing is shown; nothing is written, and no other host
    is contacted. For slides on another machine, start it there, and forward the page with
    ssh -L 8765:localhost:8765 MACHINE. Ctrl-C ends it.
    docs/view.md says what can be clicked and pressed.

    Args:
        places: Slides, folders or tables of slides, what `colocate tile`, `features` and `predict` wrote, or runs; in
            any order.
        port: Port of the address; 0: any that is free.
        host: The name or address to listen on; any other than localhost lets other machines in, and the token and
            slides then cross the network in plain text.
        open: Open the browser.
        slide_mpp: Micrometres per pixel of slides that do not state it.

    Raises:
        UserError: nothing to show, the port is in use, or the host is not this machine.
    """
    from colocate.viewer.collection import collect
    from colocate.viewer.server import serve

    serve(collect(places, slide_mpp), host, port, open)
