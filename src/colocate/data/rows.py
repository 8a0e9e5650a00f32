"""What an index holds for each tile: one row, whatever kind of source it came from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pyarrow as pa

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


@final
@dataclass(frozen=True)
class Rows:
    """All tiles that a source holds.

    kind: "folder", "list", "table" or "tar"; root: the folder that paths start from; table: of `SCHEMA`.
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
