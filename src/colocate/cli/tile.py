"""`colocate inspect` and `tile`: what comes before a pretraining, without what trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from colocate import api
from colocate.base.text import say
from colocate.slides.settings import TilingConfig


def tile(
    slides: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SLIDES")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    config: Annotated[TilingConfig, tyro.conf.arg(name="")],
    slide_mpp: float | None = None,
    manifest_only: bool = False,
    part: str = "1/1",
    workers: int | None = None,
    scheduler: str | None = None,
    tissue: str | None = None,
) -> None:
    """Cut the tissue of slides into tiles: shards and a manifest to pretrain on, and a page of pictures.

    Args:
        slides: A slide, a folder of slides, or a table (.csv, .parquet) of path, and slide, source, mpp, mask if known.
        out: The folder for everything; the same command continues in it where it stopped.
        slide_mpp: Micrometres per pixel of slides that do not state it.
        manifest_only: Write no shards: training reads tiles from the slides.
        part: K/N cuts the K-th of N shares of the slides, for job arrays; the last to finish writes the manifest.
        workers: Processes; None: one per core.
        scheduler: Address of a Dask scheduler, whose workers cut the slides instead.
        tissue: A function of your own that finds tissue, as my_module.py:function (docs/how-to/own-tissue.md).
    """
    from colocate.slides.tile import read_part, sentence

    done = api.tile(
        slides,
        out,
        slide_mpp=slide_mpp,
        config=config,
        manifest_only=manifest_only,
        part=read_part(part),
        workers=workers,
        scheduler=scheduler,
        tissue=tissue,
    )
    say(sentence(done, out))
    if not done.missing:
        say(f"look at {out / 'index.html'}")


def inspect(
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TILES")],
    root: Path | None = None,
    mpp: float | None = None,
    sample: int | None = None,
    out: Path | None = None,
) -> None:
    """Look at data before training: counts, sizes, colours, duplicates, unreadable files, a contact sheet.

    Args:
        data: A folder, list, table, tar shard, folder of shards, or index of tiles.
        root: Folder that listed paths are relative to.
        mpp: Micrometres per pixel of tiles that do not state it.
        sample: Open only this many tiles, evenly spaced; None: all.
        out: File for a contact sheet of 48 tiles (.png); without it, none is drawn.
    """
    from colocate.data import inspect as tiles

    tiles.show(tiles.inspect(data, root=root, mpp=mpp, sample=sample, out=out))
