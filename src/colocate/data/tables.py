"""A CSV or Parquet table of tiles: a column `path`, and `mpp` and `source` if known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from colocate.data.hold_out import HeldOut, left_in
from colocate.data.rows import file_rows
from colocate.errors import UserError
from colocate.slide import check_mpp

TABLES = (".csv", ".parquet")
TYPES = {"path": pa.string(), "source": pa.string(), "mpp": pa.float32()}


def table_rows(data: Path, held_out: HeldOut) -> pa.Table:
    """Rows of `SCHEMA` for a table's lines that are not held out; a source that is not given is the tile's folder.

    Raises UserError if the table cannot be read, has no column `path`, or holds an impossible value.
    """
    table = read(data, texts=list(held_out))
    if "path" not in table.column_names:
        found = ", ".join(table.column_names) or "none"
        raise UserError(f"{data} has no column `path` (found: {found}): name the column of the tiles' paths so")
    if not len(table):
        raise UserError(f"{data} lists no tiles: write one path on each line")
    table = table.filter(pa.array(left_in(table, held_out, data)))
    columns = {name: column(table, name, kind, data) for name, kind in TYPES.items() if name in table.column_names}
    paths = columns["path"].to_pylist()
    if None in paths:
        raise UserError(f"{data} has no path in row {paths.index(None) + 1}: fill it in or remove the row")
    sources = columns["source"].to_pylist() if "source" in columns else None
    return file_rows(paths, sources, _mpp(columns["mpp"], data) if "mpp" in columns else None)


def read(data: Path, columns: list[str] | None = None, texts: Sequence[str] = ()) -> pa.Table:
    """The table in a file, or some of its columns; `texts` are not to be taken for numbers (001).

    Raises UserError if it cannot be read.
    """
    try:
        if data.suffix.lower() == ".csv":
            types = dict.fromkeys(texts, pa.string()) | TYPES
            return csv.read_csv(data, convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=True))
        return parquet.read_table(data, columns=columns)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{data} cannot be read as a table ({reason}): mend it or save it again") from error


def column(table: pa.Table, name: str, kind: pa.DataType, data: Path) -> pa.ChunkedArray:
    """A column as values of a kind. Raises UserError if it holds others."""
    try:
        return table[name].cast(kind)
    except pa.ArrowException:
        raise UserError(f"{data}: column `{name}` holds {table[name].type}, not {kind}: convert it") from None


def _mpp(column: pa.ChunkedArray, data: Path) -> pa.Array:
    values = column.to_numpy()
    for value in np.unique(values[~np.isnan(values)]).tolist():
        check_mpp(value, f"{data}, column `mpp`")
    return pa.array(values, pa.float32(), from_pandas=True)
