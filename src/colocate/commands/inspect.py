"""`colocate inspect`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from ..data import inspect as look
from ..data import show


def inspect(
    data: Positional[str],
    root: Path | None = None,
    mpp: float | None = None,
    sample: int | None = None,
    out: Path = Path("contact-sheet.png"),
) -> None:
    """Look at data before training: counts, sizes, colours, duplicates, unreadable files, a contact sheet.

    Args:
        data: A folder, list, table, tar shard, folder of shards, or index of tiles.
        root: Folder that listed paths are relative to.
        mpp: Micrometres per pixel of tiles that do not say.
        sample: Open only so many tiles, evenly spaced (default: all).
        out: The contact sheet.
    """
    show(look(data, root=root, mpp=mpp, sample=sample, out=out))
    print(f"contact sheet: {out}")
