"""A CSV or Parquet table of tiles: a column `path`, and `mpp` and `source` if known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from colocate.data.rows import file_rows
from colocate.errors import UserError
from colocate.slide import check_mpp

TABLES = (".csv", ".parquet")
TYPES = {"path": pa.string(), "source": pa.string(), "mpp": pa.float32()}


def table_rows(data: Path) -> pa.Table:
    """Rows of `SCHEMA` for a table's lines; a source that is not given is the tile's parent folder.

    Raises UserError if the table cannot be read, has no column `path`, or holds an impossible value.
    """
    table = _read(data)
    if "path" not in table.column_names:
        found = ", ".join(table.column_names) or "none"
        raise UserError(f"{data} has no column `path` (found: {found}): name the column of the tiles' paths so")
    if not len(table):
        raise UserError(f"{data} lists no tiles: write one path on each line")
    columns = {name: _column(table, name, data) for name in TYPES if name in table.column_names}
    paths = columns["path"].to_pylist()
    if None in paths:
        raise UserError(f"{data} has no path in row {paths.index(None) + 1}: fill it in or remove the row")
    sources = columns["source"].to_pylist() if "source" in columns else None
    return file_rows(paths, sources, _mpp(columns["mpp"], data) if "mpp" in columns else None)


def _read(data: Path) -> pa.Table:
    try:
        if data.suffix.lower() == ".csv":
            return csv.read_csv(data, convert_options=csv.ConvertOptions(column_types=TYPES, strings_can_be_null=True))
        return parquet.read_table(data)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{data} cannot be read as a table ({reason}): mend it or save it again") from error


def _column(table: pa.Table, name: str, data: Path) -> pa.ChunkedArray:
    column = table[name]
    try:
        return column.cast(TYPES[name])
    except pa.ArrowException:
        raise UserError(f"{data}: column `{name}` holds {column.type}, not {TYPES[name]}: convert it") from None


def _mpp(column: pa.ChunkedArray, data: Path) -> pa.Array:
    values = column.to_numpy()
    for value in np.unique(values[~np.isnan(values)]).tolist():
        check_mpp(value, f"{data}, column `mpp`")
    return pa.array(values, pa.float32(), from_pandas=True)
