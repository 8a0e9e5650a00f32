"""Read the tables that users give (CSV, Parquet), and write CSV."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence
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
DECIMAL_COMMAS = (r"^([+-]?[0-9]*),([0-9]{1,2}|[0-9]{4,})$", r"^([+-]?0*),([0-9]{3})$")
FORMULA, MARK = r"=+\-@", "'"
RUN = re.compile(rf"{MARK}*[{FORMULA}]")  # what may carry the mark by itself gets a second one
UNKNOWN = pa.array(["NA", "N/A", "nan", "NaN", "null", "None"])


def read_table(file: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a .csv or .parquet file; of Parquet only the given columns.

    CSV is UTF-8, with or without a byte order mark, or UTF-16 with one; its columns are parted by comma, semicolon or
    tab. All its values are read as text without blanks around them (patient 007 is not patient 7, and NA may be a
    name), those that are empty as null. What `write_csv` put before formulas is taken off.

    Raises UserError: the file cannot be read as a table, or two columns have one name; where it is not in UTF-8 line
    and byte are named.
    """
    try:
        if file.suffix.lower() != ".csv":
            table = parquet.read_table(file, columns=columns, page_checksum_verification=True)
            table.validate(full=True)  # a damaged one may name words that it has not
            for place, wide in enumerate(table.schema):
                if pa.types.is_large_string(wide.type) or pa.types.is_string_view(wide.type):  # of pandas, polars
                    plain = table.column(place).cast(pa.string())  # which all of Arrow's functions take
                    table = table.set_column(place, wide.with_type(pa.string()), plain)
            return table
        with file.open("rb") as opened:
            utf16 = (start := opened.read(2)) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            quoted = b'"' in start or any(b'"' in part for part in iter(lambda: opened.read(1 << 20), b""))
        source: Any = io.BytesIO(file.read_bytes().decode("utf-16").encode()) if utf16 else file
        encoding = "utf-16" if utf16 else "utf-8-sig"
        heads = {}
        for delimiter in DELIMITERS:
            with file.open(encoding=encoding, newline="") as text:
                heads[delimiter] = next((row for row in csv.reader(text, delimiter=delimiter) if row), [])
        delimiter = max(DELIMITERS, key=lambda one: len(heads[one]))
        if quoted:
            with file.open(encoding=encoding, newline="") as text:
                _check_quotes(csv.reader(text, delimiter=delimiter, strict=True))
        table = arrow.read_csv(
            source,
            parse_options=arrow.ParseOptions(delimiter=delimiter, newlines_in_values=quoted),
            convert_options=arrow.ConvertOptions(column_types=dict.fromkeys(heads[delimiter], pa.string())),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        reason = _not_utf8(file) or " ".join(str(error).split())
        raise UserError(f"{file} cannot be read as a table ({reason}): mend it or save it again") from error
    names = [name.strip() for name in table.column_names]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file} has two columns `{twice[0]}`: rename or remove one")
    return pa.table([_plain(values) for values in table.columns], names)


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text without blanks around it and without the mark before formulas; null where nothing is left."""
    values = pc.utf8_trim_whitespace(values.cast(pa.string()))
    values = pc.replace_substring_regex(values, f"^{MARK}({MARK}*[{FORMULA}])", r"\1")
    return pc.if_else(pc.equal(values, ""), None, values)


def _check_quotes(rows: Any) -> None:
    """Raises csv.Error for a quote that is never closed: all that follows would be one value (Arrow does not mind)."""
    began = 1
    try:
        for _ in rows:
            began = rows.line_num + 1
    except csv.Error as error:
        if "end of data" in str(error) or "larger than field limit" in str(error):
            raise csv.Error(f"line {began} has a quote that is not closed") from None


def _not_utf8(file: Path) -> str:
    """The first place of a CSV file that is not UTF-8, in words; empty if there is none."""
    if file.suffix.lower() != ".csv" or not file.is_file():
        return ""
    data = file.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return ""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        return f"line {line} is not UTF-8 at byte {error.start + 1:,} of the file, {data[error.start]:#04x}"
    return ""


def check_columns(table: pa.Table, known: Collection[str], file: Path) -> None:
    """Raises UserError for a column that is one of the known but for its capitals: it would be taken for another."""
    for name in table.column_names:
        if (meant := name.lower()) in known and meant not in table.column_names:
            raise UserError(f"{file} has a column `{name}`: write it `{meant}`, or rename it if it is another")


def column(table: pa.Table, name: str, kind: pa.DataType, file: Path) -> pa.ChunkedArray:
    """Cast a column of a table that was read from `file`; of numbers NA, nan and the like become null.

    A comma is a decimal one ("0,5"), unless it may as well part thousands ("1,234").

    Raises UserError: it holds other values.
    """
    values = table[name]
    if pa.types.is_floating(kind) and pa.types.is_string(values.type):
        values = pc.if_else(pc.is_in(values, value_set=UNKNOWN), None, values)
        for pattern in DECIMAL_COMMAS:
            values = pc.replace_substring_regex(values, pattern, r"\1.\2")
    try:
        return values.cast(kind)
    except pa.ArrowException as error:
        said = f"holds {table[name].type}, not {kind} ({error})"
        raise UserError(f"{file}: column `{name}` {said}: convert it") from None


def as_text(table: pa.Table) -> list[dict[str, str]]:
    """Turn a table into a dictionary a row, every value as text; null is empty."""
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in table.to_pylist()]


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whole or not at all. Raises UserError as `write_atomically` does.

    Spreadsheets run what begins with = + - or @. Text that does (no number) gets an apostrophe before it, which shows
    that it is text; `read_table` takes it off again.
    """
    lines = [columns, *([_harmless(cell) for cell in row] for row in rows)]
    write_atomically(file, "".join(map(_line, lines)))


def _line(row: Sequence[object]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(row)  # which quotes what its own ending, \r\n, has
    return text.getvalue().removesuffix("\r\n") + "\n"


def _harmless(cell: object) -> object:
    text = str(cell)
    if not RUN.match(text) or isinstance(cell, int | float):
        return cell
    try:
        float(text)
    except ValueError:
        return MARK + text
    return cell
