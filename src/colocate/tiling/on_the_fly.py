"""Slides given where tiles are wanted: cut into a manifest, from which training reads the slides themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
from PIL import Image
from pyarrow import csv, parquet
from rich.console import Console

from ..slide import ENDINGS, PLAIN_ENDINGS
from .config import TilingConfig
from .listing import TABLES, find_slides
from .manifest import MANIFEST
from .tile import sentence, tile

AMBIGUOUS = (".tif", ".tiff")  # tiles as well as slides
LONGEST_TILE_PX = 4096


def are_slides(data: Path) -> bool:
    """Whether a file, a folder or a table is of slides and not of tiles, told by the first picture in it.

    A TIFF is a slide if it is longer than 4,096 px.
    """
    first = _first(data)
    if first is None or not first.name.lower().endswith(ENDINGS):
        return False
    if not first.name.lower().endswith(AMBIGUOUS):
        return True
    try:
        with Image.open(first) as image:
            return max(image.size) > LONGEST_TILE_PX
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError):
        return False


def cut_for_training(data: Path, out: Path, config: TilingConfig, mpp: float | None) -> Path:
    """The manifest of slides, written into `out` without shards. Raises what `tile` raises."""
    done = tile(find_slides([data], mpp), out, config, manifest_only=True)
    Console(stderr=True, highlight=False).print(sentence(done, out), soft_wrap=True, markup=False)
    return out / MANIFEST


def _first(data: Path) -> Path | None:
    """The first picture of a folder or table, in the order of names; a file itself."""
    if data.is_dir():
        for here, folders, files in os.walk(data, followlinks=True):
            folders.sort()
            for file in sorted(files):
                if file.lower().endswith((*ENDINGS, *PLAIN_ENDINGS)) and not file.startswith("."):
                    return Path(here) / file
        return None
    if data.suffix.lower() not in TABLES:
        return data
    try:
        table = csv.read_csv(data) if data.suffix.lower() == ".csv" else parquet.read_table(data, columns=["path"])
        return data.parent / str(table["path"][0].as_py())
    except (pa.ArrowException, OSError, KeyError, IndexError):
        return None  # whoever reads it will say what is wrong
