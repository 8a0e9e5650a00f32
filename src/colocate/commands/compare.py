"""`colocate compare`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from ..figures import compare as lay_over


def compare(runs: Positional[list[Path]], out: Path = Path("compare.png")) -> None:
    """Lay runs of any methods over each other: a table in Markdown, and one page of curves.

    Args:
        runs: The run folders, two or more.
        out: The picture.
    """
    print(lay_over(runs, out))
    print(f"\ncurves: {out}")
