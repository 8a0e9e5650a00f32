"""Tables as users save them are read alike, and what cannot be read is named."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from colocate.base.errors import UserError
from colocate.base.tables import as_text, column, read_table, write_csv
from colocate.data.index import Index

ROWS = [{"path": "a b.svs", "source": "007", "mpp": "0.5"}, {"path": "é.svs", "source": "", "mpp": ""}]


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_in_the_ways_that_programs_save_it(tmp_path: Path, delimiter: str, encoding: str, end: str) -> None:
    lines = [delimiter.join(f"{word} " for word in line) for line in (ROWS[0], *(row.values() for row in ROWS))]
    (tmp_path / "t.csv").write_bytes(end.join(lines).encode(encoding))
    table = read_table(tmp_path / "t.csv")
    assert as_text(table) == ROWS
    assert column(table, "mpp", pa.float32(), tmp_path / "t.csv").to_pylist() == [0.5, None]


@pytest.mark.parametrize(
    "head", ["\npatient,a", "\r\n\r\npatient,a", '"patient",a\x0b', "patient,a\x85", "patient,a\u2028"]
)
def test_no_value_becomes_a_number_wherever_the_first_line_ends(tmp_path: Path, head: str) -> None:
    (tmp_path / "t.csv").write_bytes(f"{head}\n007,01\n".encode())
    assert [next(iter(row.values())) for row in as_text(read_table(tmp_path / "t.csv"))] == ["007"]
    (tmp_path / "t.csv").write_bytes(b'"patient\n(case)";a\n007;01\n')
    assert as_text(read_table(tmp_path / "t.csv")) == [{"patient\n(case)": "007", "a": "01"}]


def test_na_is_no_number_and_may_be_a_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,source,mpp\na,NA,NA\nb,nan,nan\nc,,1\n")
    table = read_table(tmp_path / "t.csv")
    assert table["source"].to_pylist() == ["NA", "nan", None]
    assert column(table, "mpp", pa.float32(), tmp_path / "t.csv").to_pylist() == [None, None, 1]


def test_parquet_and_what_was_written(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"path": ["a"], "fold": [7], "mpp": [None]}), tmp_path / "t.parquet")
    assert as_text(read_table(tmp_path / "t.parquet")) == [{"path": "a", "fold": "7", "mpp": ""}]
    assert read_table(tmp_path / "t.parquet", ["fold"]).column_names == ["fold"]
    write_csv(tmp_path / "out.csv", list(ROWS[0]), [tuple(row.values()) for row in ROWS])
    assert as_text(read_table(tmp_path / "out.csv")) == ROWS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("path,source\na,Müller\n".encode("latin-1"), "line 2 is not UTF-8 at byte 16 of the file, 0xfc"),
        ("Größe,path\n1,b\n".encode("cp1252"), "line 1 is not UTF-8 at byte 3 of the file, 0xf6"),
        ("path\na\n".encode("utf-16")[:-1], "utf-16-le.* truncated data"),
        (b"path,source\na,b,c\n", "Expected 2 columns, got 3"),
        (b"", "Empty CSV file"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"t\.csv cannot be read as a table \(.*{reason}.*\): mend it"):
        read_table(tmp_path / "t.csv")


def test_a_column_comes_once(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,mpp, mpp\na,1,2\n")
    with pytest.raises(UserError, match=r"t\.csv has two columns `mpp`: rename or remove one"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_decimal_commas(tmp_path: Path, delimiter: str) -> None:
    words = ["0,5", "0,25", "0,242", "12,0625", "-,5", "+1,5", "1.5", "NA"]
    (tmp_path / "t.csv").write_text("\n".join(f'"{word}"{delimiter}x' for word in ["mpp", *words]))
    found = column(read_table(tmp_path / "t.csv"), "mpp", pa.float64(), tmp_path / "t.csv").to_pylist()
    assert found == [0.5, 0.25, 0.242, 12.0625, -0.5, 1.5, 1.5, None]


@pytest.mark.parametrize("word", ["20x", "1,234", "1,234,567", "0,5,5", "1.234,5", "1,2.5"])
def test_other_words_and_what_may_be_thousands_are_no_numbers(tmp_path: Path, word: str) -> None:
    (tmp_path / "t.csv").write_text(f"path;mpp\na;{word}\n")
    says = rf"t\.csv: column `mpp` holds string, not float \(.*{re.escape(word)}.*\): convert it"
    with pytest.raises(UserError, match=says):
        column(read_table(tmp_path / "t.csv"), "mpp", pa.float32(), tmp_path / "t.csv")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "'=", "''-"])
def test_no_text_is_run_by_a_spreadsheet_and_none_is_changed(tmp_path: Path, start: str) -> None:
    words = [f'{start}cmd|"/c calc"!A1', f"{start}2+3", start, f"a{start}b", "'", "'a", "-0.5", "+7", "-1e-5"]
    write_csv(tmp_path / "t.csv", ["word", "number"], [(word, -1.5) for word in words])
    with (tmp_path / "t.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    for word, number in rows:
        assert word[0] not in "=+-@" or float(word)
        assert number == "-1.5"
    assert read_table(tmp_path / "t.csv")["word"].to_pylist() == words


def test_values_of_several_lines_in_a_long_file(tmp_path: Path) -> None:
    """Arrow reads a megabyte at a time."""
    rows = [(f"{number}.png", "one\ntwo, " * 90) for number in range(2_000)]
    rows += [("return\r.png", "an old Mac's"), ("two\r\n.png", "")]
    write_csv(tmp_path / "t.csv", ("path", "note"), rows)
    assert read_table(tmp_path / "t.csv")["path"].to_pylist() == [path for path, _ in rows]


@pytest.mark.parametrize("wide", [pa.large_string(), pa.string_view()], ids=str)
def test_text_of_any_width_is_text(wide: pa.DataType, tmp_path: Path) -> None:
    """What pandas and polars may write: decimal commas were refused, and views ended in a traceback."""
    rows = {"path": ["a.png", "b.png"], "mpp": ["0,5", "NA"], "split": ["test", "train"], "n": [1, 2]}
    kinds = dict.fromkeys(("path", "mpp", "split"), wide)
    file = tmp_path / "t.parquet"
    table = pa.table({name: pa.array(values, kinds.get(name)) for name, values in rows.items()})
    parquet.write_table(table.replace_schema_metadata({"colocate": "kept"}), file)
    read = read_table(file)
    assert read.to_pydict() == rows and read.schema.types == [pa.string()] * 3 + [pa.int64()]
    assert (read.schema.metadata or {})[b"colocate"] == b"kept"
    assert column(read, "mpp", pa.float32(), file).to_pylist() == [0.5, None]
    assert Index.build(file, tmp_path / "i.arrow", hold_out=["split=test"]).table["path"].to_pylist() == ["b.png"]
