"""Tables as users save them are read alike, and what cannot be read is named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from colocate.base.errors import UserError
from colocate.base.tables import as_text, column, read_table, write_csv

ROWS = [{"path": "a b.svs", "source": "007", "mpp": "0.5"}, {"path": "é.svs", "source": "", "mpp": ""}]


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_in_the_ways_that_programs_save_it(tmp_path: Path, delimiter: str, encoding: str, end: str) -> None:
    lines = [delimiter.join(line) for line in (ROWS[0], *(row.values() for row in ROWS))]
    (tmp_path / "t.csv").write_bytes(end.join(lines).encode(encoding))
    table = read_table(tmp_path / "t.csv")
    assert as_text(table) == ROWS
    assert column(table, "mpp", pa.float32(), tmp_path / "t.csv").to_pylist() == [0.5, None]


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
        ("path,source\na,Müller\n".encode("latin-1"), "line 2 is not UTF-8"),
        ("path\na\n".encode("utf-16"), "line 1 is not UTF-8"),
        (b"path,source\na,b,c\n", "Expected 2 columns, got 3"),
        (b"", "Empty CSV file"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"t\.csv cannot be read as a table \(.*{reason}.*\): mend it"):
        read_table(tmp_path / "t.csv")


def test_other_values_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,mpp\na,20x\n")
    with pytest.raises(UserError, match=r"t\.csv: column `mpp` holds string, not float .*20x.*: convert it"):
        column(read_table(tmp_path / "t.csv"), "mpp", pa.float32(), tmp_path / "t.csv")
