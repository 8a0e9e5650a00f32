"""Slides given where tiles are wanted: cut into a manifest, from which training reads the slides themselves."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from rich.console import Console

from ..errors import UserError
from ..slide import ENDINGS, PLAIN_ENDINGS
from ..tile_format import MANIFEST
from .config import TilingConfig
from .listing import TABLES, find_slides
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
    if config.quality != TilingConfig.quality:
        raise UserError(
            f"--tiling.quality {config.quality} changes nothing where tiles are read from slides: leave it out, "
            "or write JPEGs first (colocate tile)"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"{data} holds slides: with several devices cut them before (colocate tile), and give the result"
        )
    done = tile(find_slides([data], mpp), out, config, manifest_only=True)
    Console(stderr=True, highlight=False).print(sentence(done, out), soft_wrap=True, markup=False)
    return out / MANIFEST


def _first(data: Path) -> Path | None:
    """The first picture of a folder or table, in the order of names; a file itself."""
    if data.is_dir():
        for here, folders, files in os.walk(data, followlinks=True):
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            for file in sorted(files):
                if file.lower().endswith((*ENDINGS, *PLAIN_ENDINGS)) and not file.startswith("."):
                    return Path(here) / file
        return None
    if data.suffix.lower() not in TABLES:
        return data
    try:
        if data.suffix.lower() == ".csv":
            with data.open(newline="", encoding="utf-8-sig") as text:
                return data.parent / next(csv.DictReader(text))["path"]
        table = parquet.ParquetFile(data)
        if "slide_mpp" in table.schema_arrow.names:
            return None  # a manifest, whose paths are of slides and whose rows are tiles
        rows = next(table.iter_batches(1, columns=["path"]))
        return data.parent / str(rows["path"][0].as_py())
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, StopIteration):
        return None  # whoever reads it will say what is wrong
