"""What an index holds for each tile: one row, whatever kind of source it came from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from colocate.errors import UserError

NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # relative to the root, or the member's name in its shard
        ("shard", NAMES),  # relative to the root; null for plain files
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("source", NAMES),
        ("mpp", pa.float32()),
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
    """A row for each plain file; where no source is given, its parent folder is it."""
    count = len(paths)
    origins = [os.path.dirname(path) or "." for path in paths]  # noqa: PTH120 (a Path for each of a million is slow)
    if sources is not None:
        origins = [source or origin for source, origin in zip(sources, origins, strict=True)]
    columns = [
        texts(paths),
        pa.nulls(count, NAMES),
        pa.nulls(count, pa.int64()),
        pa.nulls(count, pa.int64()),
        texts(origins).dictionary_encode(),
        pa.nulls(count, pa.float32()) if mpp is None else mpp,
    ]
    return pa.table(columns, schema=SCHEMA)


def texts(values: Sequence[str]) -> pa.Array | pa.ChunkedArray:
    """The values as Arrow strings. Raises UserError for a file name that is not UTF-8."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError as error:
        raise UserError(f"The file name {error.object!r} is not UTF-8: rename the file") from None


def numbered(column: pa.ChunkedArray) -> tuple[Int32[np.ndarray, " n"], list[str]]:
    """For each row the number of its word, and the words that occur, in the order of the column's dictionary.

    >>> numbered(pa.chunked_array([["b", "a"], ["b", None]]))
    (array([0, 1, 0, 2], dtype=int32), ['b', 'a', ''])
    """
    whole = column.dictionary_encode().unify_dictionaries().combine_chunks()
    words = [*whole.dictionary.cast(pa.string()).to_pylist(), ""]
    numbers = whole.indices.fill_null(len(words) - 1).to_numpy()
    seen = np.zeros(len(words), bool)
    seen[numbers] = True
    places = np.cumsum(seen, dtype=np.int32) - 1
    return places[numbers], [word for word, occurs in zip(words, seen, strict=True) if occurs]
