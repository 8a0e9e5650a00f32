"""Whatever the user calls slides (files, folders, a table), turned into a list with one name each."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import pyarrow as pa
from pyarrow import parquet

from colocate.base.errors import UserError
from colocate.slides.readers import ENDINGS, PLAIN_ENDINGS
from colocate.slides.slide import Slide, check_mpp

MANIFEST = "manifest.parquet"
SETTINGS = "tiling.json"  # in the folder from the first slide on
NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("slide", NAMES),
        ("source", NAMES),  # the patient or case; the slide where the table says none
        ("path", NAMES),  # of the slide's file
        ("x", pa.int32()),  # level0 pixels of the tile's top left
        ("y", pa.int32()),
        ("mpp", pa.float32()),  # micrometres per pixel of the tile
        ("slide_mpp", pa.float32()),  # and of the slide's finest level
        ("size", pa.int32()),  # side in px
        ("tissue", pa.float32()),  # share of the tile
        ("sharpness", pa.float32()),  # null where the tile was not looked at
        ("shard", NAMES),  # relative to the manifest; null where there are no shards
        ("offset", pa.int64()),  # of the JPEG in its shard
        ("bytes", pa.int64()),
    ]
)
NEEDED = set(SCHEMA.names) - {"tissue", "sharpness"}  # for reading tiles


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

    def identity(self) -> dict[str, Any]:
        """What decides what is seen of the slide; of its file the name, size and time."""
        status = self.path.stat() if self.path.exists() else None
        mask = self.mask.read_bytes() if self.mask and self.mask.is_file() else b""
        return {
            "file": self.path.name,
            "bytes": status.st_size if status else 0,
            "time_ns": status.st_mtime_ns if status else 0,
            "slide_mpp": [self.mpp, self.unsaid_mpp],
            "mask": blake2b(mask, digest_size=8).hexdigest() if mask else None,
        }

    def open(self) -> Slide:
        """Raises TileError as `Slide.open` does."""
        return Slide.open(self.path, self.mpp, self.unsaid_mpp)


def find_slides(places: Sequence[Path], mpp: float | None = None) -> list[Listed]:
    """The slides in files, in folders and below them, or in one table; in an order that is the same everywhere.

    A table (.csv, .parquet) has a column `path`, relative to its own folder, and may have `slide` (the name), `source`
    (the patient), `mpp`, `mask` and others, which go into the manifest. `mpp` is for slides of which neither the table
    nor the file says it. A slide's name is its path below the folder or table, without its ending where none is called
    the same.

    Raises:
        UserError: no slides there, a folder or table that cannot be read, or two slides of one name.
    """
    if not places:
        raise UserError("which slides? Give files, folders or a table (.csv, .parquet) with a column path")
    if len(places) == 1 and places[0].suffix.lower() in TABLES:
        return _table(places[0], mpp)
    paths = [path for place in places for path in ([place] if place.is_file() else _below(place))]
    paths = list(dict.fromkeys(path.absolute() for path in paths))
    names = _names(paths, [place.absolute() if place.is_dir() else place.absolute().parent for place in places])
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"two slides are called {twice[0]}: give a table that names them in a column `slide`")
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


def _names(paths: Sequence[Path], folders: Sequence[Path]) -> list[str]:
    """Each path below what all folders have in common, without its ending where none is called the same."""
    above = Path(os.path.commonpath(folders))
    names = [path.relative_to(above).with_suffix("").as_posix() for path in paths]
    often = Counter(names)
    return [n if often[n] == 1 else p.relative_to(above).as_posix() for n, p in zip(names, paths, strict=True)]


def _home(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """The folders that names of a table's slides start from: the table's own, if all lie below it."""
    return [folder] if all(folder in path.parents for path in paths) else [path.parent for path in paths]


def read_table(file: Path) -> list[dict[str, str]]:
    """The lines of a .csv or .parquet, every value as it is written: patient 007 is not patient 7.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if file.suffix.lower() == ".csv":
            with file.open(newline="", encoding="utf-8-sig") as text:
                lines: list[dict[str, Any]] = list(csv.DictReader(text))
        else:
            lines = parquet.read_table(file).to_pylist()
    except (pa.ArrowException, OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a table ({' '.join(str(error).split())})") from error
    return [{str(k): "" if v is None else str(v) for k, v in line.items() if k is not None} for line in lines]


def _table(file: Path, mpp: float | None) -> list[Listed]:
    rows = read_table(file)
    if not rows or "path" not in rows[0]:
        found = ", ".join(rows[0]) if rows else "no line"
        raise UserError(f"{file} needs a column `path` and a line for each slide (found: {found})")
    if empty := [number for number, row in enumerate(rows, 2) if not row["path"]]:
        raise UserError(f"{file}, line {empty[0]} has no path: fill it in or remove the line")
    if taken := [name for name in rows[0] if name in SCHEMA.names and name not in KNOWN]:
        raise UserError(f"{file}: column `{taken[0]}` is one of the manifest's own: call it otherwise")
    paths = [Path(os.path.abspath(file.parent / row["path"])) for row in rows]  # noqa: PTH100 (keeps links)
    names = [
        row.get("slide") or name
        for row, name in zip(rows, _names(paths, _home(file.parent.absolute(), paths)), strict=True)
    ]
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


def _number(text: str, where: str) -> float:
    try:
        mpp = float(text)
    except ValueError:
        raise UserError(f"{where}: mpp {text!r} is no number") from None
    check_mpp(mpp, where)
    return mpp
