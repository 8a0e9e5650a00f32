"""Rows of an index: its schemas, plain files and tables of them, and tiles that are held out."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int32

from colocate.base.errors import UserError
from colocate.base.files import not_utf8
from colocate.base.tables import check_columns, column, pc, read_table
from colocate.base.text import composed, counted, say
from colocate.slides.listing import MANIFEST, NAMES
from colocate.slides.settings import check_mpp

SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # relative to the root, or the member's name in its shard
        ("shard", NAMES),  # relative to the root; null for plain files
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("source", NAMES),
        ("mpp", pa.float32()),
        ("crc32", pa.uint32()),  # of the tile's file; null where nobody has written it down
    ]
)
SLIDES = pa.schema(
    [
        ("path", NAMES),  # of the slide's file, relative to the root
        ("source", NAMES),
        ("mpp", pa.float32()),  # of the tile
        ("x", pa.int32()),  # level0 pixels of its top left
        ("y", pa.int32()),
        ("px", pa.int32()),  # its side
        ("slide_mpp", pa.float32()),  # of level0
    ]
)


@final
@dataclass(frozen=True)
class Rows:
    """All tiles that a source holds.

    kind: "folder", "list", "table", "tar" or "slides"; root: the folder that paths start from; table: of `SCHEMA`, that
    of slides of `SLIDES`.
    """

    kind: str
    root: Path
    table: pa.Table


def file_rows(
    paths: Sequence[str], sources: Sequence[str | None] | None = None, mpp: pa.Array | None = None
) -> pa.Table:
    """Make a row for each plain file; its source is its parent folder where none is given."""
    origins = [os.path.dirname(path) or "." for path in paths]  # noqa: PTH120 (a Path for each of a million is slow)
    if sources is not None:
        origins = [source or origin for source, origin in zip(sources, origins, strict=True)]
    columns = {
        "path": texts(paths),
        "shard": pa.nulls(len(paths), NAMES),
        "offset": pa.nulls(len(paths), pa.int64()),
        "size": pa.nulls(len(paths), pa.int64()),
        "source": texts(origins).dictionary_encode(),
        "mpp": pa.nulls(len(paths), pa.float32()) if mpp is None else mpp,
        "crc32": pa.nulls(len(paths), pa.uint32()),
    }
    return pa.table(columns, schema=SCHEMA)


def texts(values: Sequence[str]) -> pa.Array | pa.ChunkedArray:
    """Convert to Arrow strings. Raises UserError for a file name that is not UTF-8, or none at all."""
    try:
        found = pa.array(values, pa.string())
        if pc.any(pc.match_substring(found, "\0")).as_py():
            wrong = next(value for value in values if "\0" in (value or ""))
            raise UserError(f"The file name {wrong!r} holds a zero byte: whatever lists it is damaged, make it again")
        return found
    except UnicodeEncodeError as error:
        raise not_utf8(error) from None


def numbered(column: pa.ChunkedArray) -> tuple[Int32[np.ndarray, " n"], list[str]]:
    """Number the words of a column: for each row its word's number, and the words in the order of their numbers.

    >>> numbered(pa.chunked_array([["b", "a"], ["b", None]]))
    (array([0, 1, 0, 2], dtype=int32), ['b', 'a', ''])
    """
    whole = column.dictionary_encode().unify_dictionaries().combine_chunks()
    words = [*whole.dictionary.cast(pa.string()).to_pylist(), ""]
    numbers = whole.indices.cast(pa.int32()).fill_null(len(words) - 1).to_numpy()
    seen = np.zeros(len(words), bool)
    seen[numbers] = True
    places = np.cumsum(seen, dtype=np.int32) - 1
    return places[numbers], [word for word, occurs in zip(words, seen, strict=True) if occurs]


SHOWN = 8  # of a column's values, where one is not among them

HeldOut = dict[str, list[str]]
"""Columns, and of each the values whose tiles are held out."""


def held_out(words: Sequence[str]) -> HeldOut:
    """Parse `--hold-out COLUMN=VALUE[,VALUE...] ...`, a value with a comma in double quotes, as in CSV.

    Raises UserError for a word of another form.

    >>> held_out(["split=test,val", 'patient="Smith, J",P1'])
    {'split': ['test', 'val'], 'patient': ['Smith, J', 'P1']}
    """
    asked: HeldOut = {}
    for word in words:
        column, _, values = word.partition("=")
        named = [value.strip() for value in next(csv.reader([values.strip()], skipinitialspace=True), [])]
        if not column.strip() or not named or not all(named):
            raise UserError(f"--hold-out {word!r}: give COLUMN=VALUE[,VALUE...], such as split=test")
        asked.setdefault(column.strip(), []).extend(named)
    return asked


def quoted(values: Sequence[str]) -> str:
    """Write values as `held_out` reads them.

    >>> quoted(["P1", "Smith, J"])
    'P1,"Smith, J"'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


def left_in(table: pa.Table, held_out: HeldOut, data: Path) -> Bool[np.ndarray, " n"]:
    """Mark the rows of a table that are not held out.

    Those of which a column says nothing are kept, and a note says so. Raises UserError for a column that is not there,
    a value that occurs nowhere or also in other capitals, or if no row is left.
    """
    kept = np.ones(len(table), bool)
    unsaid: dict[str, Bool[np.ndarray, " n"]] = {}
    for name, values in held_out.items():
        if name not in table.column_names:
            meant = _meant(name, table.column_names)
            raise UserError(f"--hold-out {name}={values[0]}: {data} has no column {name}: {meant}")
        try:
            numbers, found = numbered(table[name])
        except pa.ArrowException:
            raise UserError(f"--hold-out {name}={values[0]}: that column of {data} holds no words") from None
        words, values = [composed(word.strip()) for word in found], [composed(value) for value in values]
        if unknown := [value for value in values if value not in words]:
            meant = _meant(unknown[0], [word for word in words if word])
            raise UserError(f"--hold-out {name}={unknown[0]}: no tile of {data} has this {name}: {meant}")
        small = {value.lower(): value for value in values}
        for word in words:
            if (alike := small.get(word.lower())) and word not in values:
                remedy = "hold out both, or rename one"
                raise UserError(f"--hold-out {name}={alike}: this column of {data} has {word} too: {remedy}")
        kept &= ~np.isin(words, values)[numbers]
        unsaid[name] = np.isin(words, "")[numbers]
    if not kept.any():
        raise UserError(f"--hold-out leaves no tile of {data} to train on: hold out less")
    for name, empty in unsaid.items():
        if number := int((empty & kept).sum()):
            who = f"{counted(number, 'tile')} without {name}"
            say(f"note: {who} in {data}, kept for training: fill it in if they belong to what is held out")
    return kept


def _meant(word: str, known: Sequence[str]) -> str:
    """Suggest a known word close to an unknown one, or list those known.

    >>> _meant("tset", ["train", "test"]), _meant("P9", ["no", "yes"])
    ('did you mean test?', 'there are no, yes')
    """
    if close := get_close_matches(word, known, 1):
        return f"did you mean {quoted(close)}?"
    return f"there are {', '.join(quoted([word]) for word in known[:SHOWN])}" + (", ..." if len(known) > SHOWN else "")


TYPES = {"path": pa.string(), "source": pa.string(), "mpp": pa.float32()}


def table_rows(data: Path, held_out: HeldOut) -> pa.Table:
    """Make rows of `SCHEMA` from a table's lines that are not held out; the source defaults to the tile's folder.

    Raises UserError if the table cannot be read, has no column `path`, lists slides, or holds an impossible value or a
    tile that is held out and is not.
    """
    table = read_table(data)
    if "path" not in table.column_names:
        found = ", ".join(table.column_names) or "none"
        raise UserError(f"{data} has no column `path` (found: {found}): give the column of the tiles' paths that name")
    check_columns(table, TYPES, data)
    if told := [name for name in ("slide_mpp", "tile_mpp") if name in table.column_names]:
        raise UserError(f"{data} lists slides, as its column `{told[0]}` tells: give the {MANIFEST} of `colocate tile`")
    if not len(table):
        raise UserError(f"{data} lists no tiles: write one path on each line")
    kept = left_in(table, held_out, data)
    if not kept.all():
        named = column(table, "path", TYPES["path"], data).to_pylist()
        check_parted(pa.table({"path": texts([os.path.normpath(path or "") for path in named])}), kept, data)
    table = table.filter(pa.array(kept))
    columns = {name: column(table, name, kind, data) for name, kind in TYPES.items() if name in table.column_names}
    paths = columns["path"].to_pylist()
    if not all(paths):
        empty = next(number for number, path in enumerate(paths, start=1) if not path)
        raise UserError(f"{data} has no path in row {empty}: fill it in or remove the row")
    note_repeats(paths, data)
    sources = columns["source"].to_pylist() if "source" in columns else None
    return file_rows(paths, sources, _mpp(columns["mpp"], data) if "mpp" in columns else None)


def check_parted(tiles: pa.Table, kept: Bool[np.ndarray, " n"], data: Path) -> None:
    """Raises UserError for a tile in a row that is kept and in one that is not; `tiles`: columns that tell which."""
    tiles = tiles.unify_dictionaries()
    out, left = (tiles.filter(pa.array(some)) for some in (~kept, kept))
    if both := left.join(out, tiles.column_names, join_type="left semi")[:1].to_pylist():
        said = f"{', '.join(map(str, both[0].values()))} in a row that is held out and in one that is not"
        raise UserError(f"--hold-out: {data} has {said}, so it would be trained on: hold out both, or remove one")


def note_repeats(paths: Sequence[str], data: Path) -> None:
    """Say so where a list or table names a tile several times."""
    if more := len(paths) - len({*map(os.path.normpath, paths)}):
        say(f"note: {data} names {counted(more, 'tile')} again: a tile is seen as often as it is named")


def _mpp(column: pa.ChunkedArray, data: Path) -> pa.Array:
    values = column.to_numpy()
    for value in np.unique(values[~np.isnan(values)]).tolist():
        check_mpp(value, f"{data}, column `mpp`")
    return pa.array(values, pa.float32(), from_pandas=True)
