"""Read the tables that users give (CSV, Parquet), and write CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
from pyarrow import csv as arrow
from pyarrow import parquet

from colocate.base.errors import UserError
from colocate.base.files import write_atomically

pc: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them
TABLES = (".csv", ".parquet")
DELIMITERS = ",;\t"
UNKNOWN = pa.array(["NA", "N/A", "nan", "NaN", "null", "None"])


def read_table(file: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a .csv or .parquet file; of Parquet only the given columns.

    CSV is UTF-8, with or without a byte order mark, its columns parted by comma, semicolon or tab. All its values are
    read as text (patient 007 is not patient 7, and NA may be a name), those that are empty as null.

    Raises:
        UserError: the file cannot be read as a table; where it is not UTF-8 the line is named.
    """
    try:
        if file.suffix.lower() != ".csv":
            table = parquet.read_table(file, columns=columns, page_checksum_verification=True)
            table.validate(full=True)  # a damaged one may name words that it has not
            return table
        with file.open("rb") as opened:
            head = next(iter(opened.readline().decode("utf-8-sig").splitlines()), "")  # lines may end with CR alone
        delimiter = max(DELIMITERS, key=head.count)
        names = next(csv.reader([head], delimiter=delimiter), [])
        return arrow.read_csv(
            file,
            parse_options=arrow.ParseOptions(delimiter=delimiter),
            convert_options=arrow.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
            ),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        reason = _not_utf8(file) or " ".join(str(error).split())
        raise UserError(f"{file} cannot be read as a table ({reason}): mend it or save it again") from error


def _not_utf8(file: Path) -> str:
    """The first line of a CSV file that is not UTF-8, in words; empty if there is none."""
    if file.suffix.lower() != ".csv" or not file.is_file():
        return ""
    data = file.read_bytes()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        return f"line {line} is not UTF-8"
    return ""


def column(table: pa.Table, name: str, kind: pa.DataType, file: Path) -> pa.ChunkedArray:
    """Cast a column of a table that was read from `file`; of numbers NA, nan and the like become null.

    Raises:
        UserError: it holds other values.
    """
    values = table[name]
    if pa.types.is_floating(kind) and pa.types.is_string(values.type):
        values = pc.if_else(pc.is_in(values, value_set=UNKNOWN), None, values)
    try:
        return values.cast(kind)
    except pa.ArrowException as error:
        said = f"holds {table[name].type}, not {kind} ({error})"
        raise UserError(f"{file}: column `{name}` {said}: convert it") from None


def as_text(table: pa.Table) -> list[dict[str, str]]:
    """Turn a table into a dictionary a row, every value as text; null is empty."""
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in table.to_pylist()]


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whole or not at all. Raises UserError as `write_atomically` does."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(file, lambda opened: opened.write(text.getvalue().encode()))
