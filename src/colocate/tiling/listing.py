"""Whatever the user calls slides (files, folders, a table), turned into a list with one name each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import pyarrow as pa
from pyarrow import csv, parquet

from ..errors import UserError
from ..slide import ENDINGS, PLAIN_ENDINGS, Slide, check_mpp

TABLES = (".csv", ".parquet")
KNOWN = ("path", "slide", "source", "mpp", "mask")


@final
@dataclass(frozen=True)
class Listed:
    """A slide to be read."""

    name: str
    """Unlike any other's; may hold slashes, as results lie in folders of the same names."""
    path: Path
    mpp: float | None = None
    """Micrometres per pixel of the finest level, as the table says, whatever the file does."""
    source: str = ""
    """The patient or case; the slide's name where the table says none."""
    mask: Path | None = None
    """The user's own outline of the tissue."""
    columns: dict[str, str] = field(default_factory=dict)
    """What else the table says."""
    unsaid_mpp: float | None = None
    """Micrometres per pixel of a file that does not say."""

    def open(self) -> Slide:
        """Raises TileError as `Slide.open` does."""
        return Slide.open(self.path, self.mpp, self.unsaid_mpp)


def find_slides(places: Sequence[Path], mpp: float | None = None) -> list[Listed]:
    """The slides in files, in folders and below them, or in one table; in an order that is the same everywhere.

    A table (.csv, .parquet) has a column `path`, relative to its own folder, and may have `slide` (the name), `source`
    (the patient), `mpp`, `mask` and others, which go into the manifest. `mpp` is for slides of which neither the table
    nor the file says it. A slide's name is its path below what all have in common, without its ending where that is
    enough.

    Raises:
        UserError: no slides there, a folder or table that cannot be read, or two slides of one name.
    """
    if not places:
        raise UserError("which slides? Give files, folders or a table (.csv, .parquet) with a column path")
    if len(places) == 1 and places[0].suffix.lower() in TABLES:
        return _table(places[0], mpp)
    paths = [path for place in places for path in ([place] if place.is_file() else _below(place))]
    paths = list(dict.fromkeys(path.absolute() for path in paths))
    names = _names(paths)
    return [Listed(name, path, None, name, unsaid_mpp=mpp) for name, path in sorted(zip(names, paths, strict=True))]


def _below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give slides, folders of slides, or a table of them")
    found, refused = [], []
    for here, folders, files in os.walk(folder, onerror=refused.append, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(here) / file for file in files if file.lower().endswith(ENDINGS) and not file.startswith(".")]
    if refused:
        error = refused[0]
        raise UserError(f"{error.filename} cannot be listed ({error.strerror}): check its permissions")
    if not found:
        raise UserError(
            f"{folder} and its subfolders hold no slides: files ending in {', '.join(ENDINGS)} "
            f"(name others one by one: {', '.join(PLAIN_ENDINGS)}, .dcm)"
        )
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """The part of each path that tells it from the others."""
    above = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(above).with_suffix("").as_posix() for path in paths]
    often = Counter(names)
    return [n if often[n] == 1 else p.relative_to(above).as_posix() for n, p in zip(names, paths, strict=True)]


def _table(file: Path, mpp: float | None) -> list[Listed]:
    try:
        table = csv.read_csv(file) if file.suffix.lower() == ".csv" else parquet.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as a table ({' '.join(str(error).split())})") from error
    if "path" not in table.column_names or not len(table):
        raise UserError(f"{file} needs a column `path` and a line for each slide (found: {table.column_names})")
    rows = [{name: _text(value) for name, value in row.items()} for row in table.to_pylist()]
    if empty := [number for number, row in enumerate(rows, 2) if not row["path"]]:
        raise UserError(f"{file}, line {empty[0]} has no path: fill it in or remove the line")
    paths = [Path(os.path.abspath(file.parent / row["path"])) for row in rows]  # noqa: PTH100 (keeps links)
    names = [row.get("slide") or name for row, name in zip(rows, _names(paths), strict=True)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{file} has two slides called {twice[0]}: give each its own name in a column `slide`")
    slides = []
    for row, path, name in zip(rows, paths, names, strict=True):
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{file}: {name!r} is no name for a slide, as files are called by it")
        slides.append(
            Listed(
                name,
                path,
                _number(row["mpp"], f"{file}, {name}") if row.get("mpp") else None,
                row.get("source") or name,
                file.parent.absolute() / row["mask"] if row.get("mask") else None,
                {key: value for key, value in row.items() if key not in KNOWN},
                mpp,
            )
        )
    return sorted(slides, key=lambda slide: slide.name)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _number(text: str, where: str) -> float:
    try:
        mpp = float(text)
    except ValueError:
        raise UserError(f"{where}: mpp {text!r} is no number") from None
    check_mpp(mpp, where)
    return mpp
