"""Slides that were cut: OUT/index.html and, of many, index-2.html and on, with the overlay picture of each slide."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

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


def write_slides(out: Path) -> Path:
    """Write the pages of what `tile` left in OUT once no slide is missing; returns the first.

    Raises UserError: OUT cannot be written.
    """
    failed = Quarantine(out / FAILED).failed
    rows = as_text(read_table(out / SLIDES))
    settings = read_json(out / SETTINGS)
    parts = [rows[start : start + ON_A_PAGE] for start in range(0, len(rows), ON_A_PAGE)]
    tiles = sum(int(row["tiles"]) for row in rows)
    empty = [row["slide"] for row in rows if row["tiles"] == "0"]
    for number, part in enumerate(parts, 1):
        write_page(
            out / _page(number),
            "slides.html",
            heading=f"{counted(tiles, 'tile')} of {counted(len(rows), 'slide')}",
            summary=_summary(rows, len(empty), len(failed), settings),
            slides=[_shown(row) for row in part],
            pages=[_page(other) for other in range(1, len(parts) + 1)],
            number=number,
            failed=[(name, path, reason) for name, (path, reason) in failed.items()] if number == 1 else [],
            empty=empty if number == 1 else [],
            most=MOST_LISTED,
            settings={name.replace("_", " "): value for name, value in settings.items() if name != "version"},
        )
    for old in out.glob("index-*.html"):
        if re.fullmatch(r"index-\d+\.html", old.name) and int(old.stem.partition("-")[2]) > len(parts):
            old.unlink()
    return out / _page(1)


def _page(number: int) -> str:
    return "index.html" if number == 1 else f"index-{number}.html"


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A slide as the page shows it; the overlay's address is relative to the page."""
    blurred, tiles = int(row["blurred"]), int(row["tiles"])
    facts = [
        f"{counted(tiles, 'tile')}" + (f", {blurred:,} more too blurred" if blurred else ""),
        f"{row['tissue_mm2']} mm² of tissue; {int(row['width']):,} x {int(row['height']):,} px of {row['mpp']} µm",
    ]
    if row["enlarged"] == "True":
        facts.append(f"enlarged from a coarser resolution to {row['tile_mpp']} µm per pixel")
    return {"name": row["slide"], "picture": f"overlays/{quote(row['slide'])}.png", "facts": facts}


def _summary(rows: Sequence[dict[str, Any]], empty: int, failed: int, settings: dict[str, Any]) -> list[str]:
    tissue = sum(float(row["tissue_mm2"]) for row in rows)
    facts = [
        f"{settings['size']} px at {settings['mpp']:g} µm",
        f"{tissue:{',.0f' if tissue >= 10 else '.2g'}} mm² of tissue",
        empty and f"{counted(empty, 'slide')} without a tile",
        failed and f"{counted(failed, 'slide')} failed",
    ]
    return [fact for fact in facts if fact]
