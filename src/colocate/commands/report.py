"""`colocate report`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from ..figures import report as draw


def report(run: Positional[Path], out: Path | None = None) -> None:
    """Draw a run as one page of pictures: matched cells, features before and after, curves.

    Args:
        run: The run folder.
        out: The picture (default: RUN/report.png).
    """
    print(draw(run, out))
