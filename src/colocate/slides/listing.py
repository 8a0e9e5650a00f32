"""List the slides in files, folders or a table, each with a name of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import pyarrow as pa
from pyarrow import parquet

from colocate.base.errors import TileError, UserError
from colocate.base.files import absolute, check_utf8, files_below, read_json
from colocate.base.tables import TABLES, as_text, check_columns, column, read_table
from colocate.base.text import say
from colocate.slides.readers import AMBIGUOUS, ENDINGS, PLAIN_ENDINGS, one_a_series, open_reader
from colocate.slides.settings import check_mpp
from colocate.slides.slide import Slide

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
        ("crc32", pa.uint32()),  # of the JPEG
    ]
)
NEEDED = set(SCHEMA.names) - {"tissue", "sharpness", "crc32"}  # for reading tiles
KNOWN = ("path", "slide", "source", "mpp", "mask")  # columns of a table of slides
ADDED = len("-0000.tar") + len(".0123456789abcdef0123456789abcdef.tmp")  # to a slide's name, at most


@final
@dataclass(frozen=True)
class Listed:
    """A slide to be read."""

    name: str
    """Unique; may hold slashes, which become subfolders of the results."""
    path: Path
    mpp: float | None = None
    """Micrometres per pixel of the finest level as given by the table; overrides the file."""
    source: str = ""
    """The patient or case; the slide's name where the table says none."""
    mask: Path | None = None
    """The user's own outline of the tissue."""
    columns: dict[str, str] = field(default_factory=dict)
    """Other columns of the table."""
    unsaid_mpp: float | None = None
    """Micrometres per pixel to assume where the file gives none."""

    def identity(self) -> dict[str, Any]:
        """Everything that results depend on; of the file its name, size and time."""
        status, mask, unsaid = None, b"", self.unsaid_mpp
        if unsaid is not None and (self.mpp is not None or self._says_mpp):  # then it decides nothing
            unsaid = None
        with suppress(OSError):  # who opens it says what is wrong
            status = self.path.stat()
        with suppress(OSError):
            mask = self.mask.read_bytes() if self.mask and self.mask.is_file() else b""
        return {
            "file": self.path.name,
            "bytes": status.st_size if status else 0,
            "time_ns": status.st_mtime_ns if status else 0,
            "slide_mpp": [self.mpp, unsaid],
            "mask": blake2b(mask, digest_size=8).hexdigest() if mask else None,
        }

    @cached_property
    def _says_mpp(self) -> bool:
        with suppress(TileError):  # who opens it says what is wrong
            Slide.open(self.path)
            return True
        return False

    @property
    def file(self) -> tuple[int, int] | None:
        """What is the same of all links to a file; None where there is none."""
        with suppress(OSError):
            status = self.path.stat()
            return status.st_dev, status.st_ino
        return None

    def lock(self, folder: Path) -> Path:
        """Return the lock file of whoever works on the slide's files in a folder of results."""
        place = folder / self.name
        return place.with_name(f".{place.name}.lock")

    def misnamed(self, folder: Path) -> str:
        """Why no results in a folder can be called by the slide's name; empty if they can."""
        *above, last = Path(self.name).parts
        longest = max([*above, f".{last}{'-' * ADDED}"], key=lambda part: len(part.encode()))
        try:
            next(place for place in (folder, *folder.parents) if place.is_dir()).joinpath(longest).lstat()
        except FileNotFoundError:
            return ""
        except OSError as error:
            why = f"files cannot be called by the slide's name ({error.strerror})"
            return f"{self.path}: {why}: rename it, or give it a shorter one in a table of slides (columns path, slide)"
        return ""

    def open(self) -> Slide:
        """Open the slide. Raises TileError as `Slide.open` does."""
        return Slide.open(self.path, self.mpp, self.unsaid_mpp)


def find_slides(places: Sequence[Path], mpp: float | None = None) -> list[Listed]:
    """List the slides in files, in folders and below them, or in one table, sorted by name.

    A table (.csv, .parquet) has a column `path`, relative to its own folder, and may have `slide` (the name), `source`
    (the patient), `mpp`, `mask` and others, which go into the manifest. `mpp` is for slides of which neither the table
    nor the file says it. A slide's name is its path below its folder or table, without its ending where none is called
    the same; where two folders hold the same, below their common parent.

    Raises UserError: no slides there, a folder or table that cannot be read, a table with others, or two slides of one
    name.
    """
    if not places:
        raise UserError("which slides? Give files, folders or a table (.csv, .parquet) with a column path")
    tables = [place for place in places if place.suffix.lower() in TABLES]
    if tables and len(places) > 1:
        raise UserError(f"{tables[0]} is a table: give it alone, with a line for each slide")
    if tables:
        slides = _table(tables[0], mpp)
    else:
        folders: dict[Path, Path] = {}
        for place in map(absolute, places):
            found, folder = ([place], place.parent) if place.is_file() else (slides_below(place), place)
            folders |= {path: folder for path in found if path not in folders}
        paths = one_a_series(folders)
        for path in paths:
            check_utf8(path)
        names = _names(paths, [folders[path] for path in paths])
        slides = [Listed(name, path, None, name, unsaid_mpp=mpp) for name, path in zip(names, paths, strict=True)]
    name, count = Counter(slide.name for slide in slides).most_common(1)[0]
    if count > 1:
        raise UserError(f"two slides are called {name}: give each its own name in a table with a column `slide`")
    slides = sorted(slides, key=lambda slide: slide.name)
    _say_of_links(slides)
    return slides


@cache  # says it once
def _say(sentence: str) -> None:
    say(sentence)


def _say_of_links(slides: Sequence[Listed]) -> None:
    """Say where links make one file two slides of different cases: one may be held out, the other trained on."""
    firsts: dict[object, Listed] = {}
    pairs = [(firsts.setdefault(slide.file or slide.name, slide), slide) for slide in slides]
    if twice := [f"{other.name} and {first.name}" for first, other in pairs if first.source != other.source]:
        more = f" (and {len(twice) - 1:,} more)" if len(twice) > 1 else ""
        remedy = "leave one out, or give both the same source in a table of slides"
        _say(f"note: {twice[0]}{more} are links to one file, and count as two cases: {remedy}")


def slides_below(folder: Path) -> list[Path]:
    """The files of slides in a folder and its subfolders. Raises UserError if there are none, or no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give slides, folders of slides, or a table of them")
    found = [path for file in files_below(folder, ENDINGS) if not _is_class_map(path := folder / file)]
    if not found:
        raise UserError(
            f"{folder} and its subfolders hold no slides: files ending in {', '.join(ENDINGS)} "
            f"(name others one by one: {', '.join(PLAIN_ENDINGS)})"
        )
    return found


def _is_class_map(path: Path) -> bool:
    """Whether `colocate predict` wrote a file: it says so in a JSON file beside it."""
    said = path.with_suffix(".json")
    if path.suffix != ".tif" or not said.is_file():
        return False
    try:
        return read_json(said)["settings"]["task"] == "semantics"
    except (UserError, LookupError, TypeError):
        return False


def _names(paths: Sequence[Path], folders: Sequence[Path]) -> list[str]:
    """Name each path relative to its folder, without its ending unless two would be the same.

    Where even files would be called the same, all are named relative to the folders' common parent.
    """
    for above in (folders, [Path(os.path.commonpath(folders))] * len(paths)):
        files = [path.relative_to(folder) for path, folder in zip(paths, above, strict=True)]
        if len(set(files)) == len(files):
            break
    names = [file.with_suffix("").as_posix().strip() for file in files]  # as tables are read
    often = Counter(names)
    return [name if often[name] == 1 else file.as_posix() for name, file in zip(names, files, strict=True)]


def _table(file: Path, mpp: float | None) -> list[Listed]:
    table = read_table(file)
    rows, home = as_text(table), file.parent.absolute()
    if not rows or "path" not in rows[0]:
        found = ", ".join(rows[0]) if rows else "no line"
        raise UserError(f"{file} needs a column `path` and a line for each slide (found: {found})")
    check_columns(table, KNOWN, file)
    if taken := [name for name in rows[0] if name in SCHEMA.names and name not in KNOWN]:
        raise UserError(f"{file}: column `{taken[0]}` is one of the manifest's own: rename it")
    paths = [absolute(home / row["path"]) for row in rows]
    below = all(home in path.parents for path in paths)
    above = home if below else Path(os.path.commonpath([path.parent for path in paths]))
    names = _names(paths, [above] * len(paths))
    mpps = column(table, "mpp", pa.float64(), file).to_pylist() if "mpp" in rows[0] else [None] * len(rows)
    slides = []
    for line, (row, path, name, own_mpp) in enumerate(zip(rows, paths, names, mpps, strict=True), start=2):
        name = row.get("slide") or name
        if not row["path"]:
            raise UserError(f"{file}, line {line} has no path: fill it in or remove the line")
        if "\0" in "".join(row.values()):
            raise UserError(f"{file}, line {line} holds a zero byte: whatever wrote it is damaged, make it again")
        if name.startswith("/") or ".." in name.split("/") or name != Path(name).as_posix():
            raise UserError(f"{file}: {name!r} cannot name a slide, as files are named after it")
        if own_mpp is not None:
            check_mpp(own_mpp, f"{file}, {name}")
        mask = home / row["mask"] if row.get("mask") else None
        others = {key: value for key, value in row.items() if key not in KNOWN}
        slides.append(Listed(name, path, own_mpp, row.get("source") or name, mask, others, mpp))
    return slides


LONGEST_TILE_PX = 4096


def are_slides(data: Path) -> bool:
    """Whether a file, folder or table holds slides rather than tiles, judged by its first picture.

    A TIFF is a slide if it is longer than 4,096 px.
    """
    first = _first(data)
    if first is None or not first.name.lower().endswith(ENDINGS):
        return False
    if not first.name.lower().endswith(AMBIGUOUS):
        return True
    try:
        reader = open_reader(first)
    except TileError:
        return False
    reader.close()
    return max(reader.size) > LONGEST_TILE_PX


def _first(data: Path) -> Path | None:
    """The first picture of a folder or table, in the order of names; a file itself."""
    if data.is_dir():
        return next((data / file for file in files_below(data, (*ENDINGS, *PLAIN_ENDINGS))), None)
    if data.suffix.lower() not in TABLES:
        return data
    try:
        if data.suffix.lower() == ".parquet" and "slide_mpp" in parquet.read_schema(data).names:
            return None  # a manifest, whose paths are of slides and whose rows are tiles
        return data.parent / str(read_table(data, ["path"])["path"][0])
    except (UserError, pa.ArrowException, OSError, KeyError, IndexError, UnicodeDecodeError):
        return None  # whoever reads it will say what is wrong
