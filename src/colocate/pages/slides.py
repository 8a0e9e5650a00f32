"""Slides that were cut: OUT/index.html and, of many, index-2.html and on, with the overlay picture of each slide."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from colocate import __version__
from colocate.base.files import read_json
from colocate.base.tables import as_text, read_table
from colocate.base.text import counted
from colocate.pages.html import write_page
from colocate.slides.listing import SETTINGS
from colocate.slides.manifest import SLIDES
from colocate.slides.runner import Quarantine
from colocate.slides.tile import FAILED

ON_A_PAGE = 60
MOST_LISTED = 100  # slides without a tile, by name


class Cut(NamedTuple):
    """A slide on the page."""

    name: str
    picture: str
    """The overlay's address, relative to the page."""
    tiles: int
    facts: list[str]


def write_slides(out: Path) -> Path:
    """Write the pages of what `tile` left in OUT once no slide is missing; returns the first.

    Raises:
        UserError: OUT cannot be written.
    """
    failed = Quarantine(out / FAILED).failed
    rows = as_text(read_table(out / SLIDES))
    slides = [_cut(row) for row in rows]
    parts = [slides[start : start + ON_A_PAGE] for start in range(0, len(slides), ON_A_PAGE)]
    settings = read_json(out / SETTINGS)
    tiles = sum(slide.tiles for slide in slides)
    for number, part in enumerate(parts, 1):
        write_page(
            out / _page(number),
            "slides.html",
            version=__version__,
            heading=f"{counted(tiles, 'tile')} of {counted(len(slides), 'slide')}",
            summary=list(_summary(rows, len(failed), settings)),
            slides=part,
            pages=[_page(other) for other in range(1, len(parts) + 1)],
            number=number,
            failed=[(name, path, reason) for name, (path, reason) in failed.items()] if number == 1 else [],
            empty=[slide.name for slide in slides if not slide.tiles] if number == 1 else [],
            most=MOST_LISTED,
            settings={name.replace("_", " "): value for name, value in settings.items() if name != "version"},
        )
    for old in out.glob("index-*.html"):
        if re.fullmatch(r"index-\d+\.html", old.name) and int(old.stem.partition("-")[2]) > len(parts):
            old.unlink()
    return out / _page(1)


def _page(number: int) -> str:
    return "index.html" if number == 1 else f"index-{number}.html"


def _cut(row: dict[str, Any]) -> Cut:
    blurred, tiles = int(row["blurred"]), int(row["tiles"])
    facts = [
        f"{counted(tiles, 'tile')}" + (f", {blurred:,} more too blurred" if blurred else ""),
        f"{row['tissue_mm2']} mm² of tissue; {int(row['width']):,} x {int(row['height']):,} px of {row['mpp']} µm",
    ]
    if row["enlarged"] == "True":
        facts.append(f"enlarged to tiles of {row['tile_mpp']} µm a pixel, being coarser")
    return Cut(row["slide"], f"overlays/{quote(row['slide'])}.png", tiles, facts)


def _summary(rows: Sequence[dict[str, Any]], failed: int, settings: dict[str, Any]) -> Iterator[str]:
    yield f"{settings['size']} px at {settings['mpp']:g} µm"
    tissue = sum(float(row["tissue_mm2"]) for row in rows)
    yield f"{tissue:{',.0f' if tissue >= 10 else '.2g'}} mm² of tissue"
    if empty := sum(row["tiles"] == "0" for row in rows):
        yield f"{counted(empty, 'slide')} without a tile"
    if failed:
        yield f"{counted(failed, 'slide')} failed"
