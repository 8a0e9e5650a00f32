"""Tiles left out by what a table says of them: an index without them is that of a table without them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from colocate.base.errors import UserError
from colocate.data.index import Index
from colocate.data.rows import quoted
from tests.data.pictures import shards, sources

Build = Callable[..., Index]
ROWS = {
    "path": [f"{number}.png" for number in range(6)],
    "patient": ["007", "7", "007", None, "P1", "P1"],
    "split": ["train", "test", "train", "val", "test", "train"],
    "source": ["a", "b", "a", "c", "b", "d"],
    "fold": [1, 1, 2, 2, 3, 3],
    "scan": ["1", "01", "1", "01", "2", "2"],
}


def table_file(folder: Path, kind: str, rows: dict[str, list[object]]) -> Path:
    path = folder / f"t.{kind}"
    (csv.write_csv if kind == "csv" else parquet.write_table)(pa.table(rows), str(path))
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("hold_out", "left"),
    [
        (("split=test",), [0, 2, 3, 5]),
        (("split=test,val",), [0, 2, 5]),
        (("split=test", "split=val"), [0, 2, 5]),
        (("split=test", "patient=007"), [3, 5]),
        (("patient=7",), [0, 2, 3, 4, 5]),
        (("source = b , c",), [0, 2, 5]),
        (("fold=1",), [2, 3, 4, 5]),
        (("scan=01",), [0, 2, 4, 5]),
        (("path=3.png",), [0, 1, 2, 4, 5]),
    ],
)
def test_the_rest_is_all_there_is(
    kind: str, hold_out: tuple[str, ...], left: list[int], build: Build, tmp_path: Path
) -> None:
    index = build(table_file(tmp_path, kind, ROWS), hold_out=hold_out)
    assert index.table["path"].to_pylist() == [ROWS["path"][number] for number in left]
    assert sources(index) == [ROWS["source"][number] for number in left]
    assert {*index.sources} == {ROWS["source"][number] for number in left}
    rest = {name: [values[number] for number in left] for name, values in ROWS.items()}
    assert index.fingerprint == build(table_file(tmp_path, "parquet", rest)).fingerprint


ACCENTS = [unicodedata.normalize(form, "Müller") for form in ("NFD", "NFC")]


@pytest.mark.parametrize(("words", "held_out"), [(["test", " test "], "test"), *((ACCENTS, name) for name in ACCENTS)])
def test_a_word_is_the_same_with_blanks_and_however_accents_are_written(
    words: list[str], held_out: str, build: Build, tmp_path: Path
) -> None:
    """A CSV file's are read without blanks; those of Parquet were left in."""
    table = table_file(tmp_path, "parquet", {"path": ["0.png", "1.png", "2.png"], "word": [*words, "other"]})
    assert build(table, hold_out=(f"word={held_out}",)).table["path"].to_pylist() == ["2.png"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_tile_that_is_held_out_and_is_not_is_refused(kind: str, build: Build, tmp_path: Path) -> None:
    """It was trained on."""
    rows: dict[str, list[object]] = {"path": ["./0.png", "1.png", "0.png"], "split": ["train", "train", "test"]}
    with pytest.raises(UserError, match=r"has 0\.png in a row that is held out and in one that is not"):
        build(table_file(tmp_path, kind, rows), hold_out=("split=test",))
    assert len(build(table_file(tmp_path, kind, rows))) == 3


@pytest.mark.parametrize(
    ("hold_out", "message"),
    [
        ("splt=test", r"--hold-out splt=test: .*t\.csv has no column splt: did you mean split\?"),
        ("q=9", r"--hold-out q=9: .* has no column q: there are path, patient, split, source, fold, scan"),
        ("split=tset", r"--hold-out split=tset: no tile of .*t\.csv has this split: did you mean test\?"),
        ("patient=P9x", r"--hold-out patient=P9x: no tile of .*t\.csv has this patient: there are 007, 7, P1"),
        ("patient=", "--hold-out 'patient=': give COLUMN=VALUE"),
        ("split", "--hold-out 'split': give COLUMN=VALUE"),
        ("=test", "--hold-out '=test': give COLUMN=VALUE"),
        ("split=test,,val", "--hold-out 'split=test,,val': give COLUMN=VALUE"),
        ("fold=1,2,3", r"--hold-out leaves no tile of .*t\.csv"),
    ],
)
def test_mistakes_are_named(hold_out: str, message: str, build: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build(table_file(tmp_path, "csv", ROWS), hold_out=(hold_out,))


def test_data_without_columns(tiles: Path, build: Build, tmp_path: Path) -> None:
    (tiles / "t.lst").write_text("a/0.png\n")
    stored = build(tiles).path
    for data in (tiles, tiles / "t.lst", stored, shards(tiles, tmp_path)):
        with pytest.raises(UserError, match=r"--hold-out split=test goes by a column of .*, but .*: give one"):
            build(data, hold_out=("split=test",))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_capitals_leave_no_tile_in(kind: str, build: Build, tmp_path: Path) -> None:
    table = table_file(tmp_path, kind, {"path": ["0.png", "1.png", "2.png"], "split": ["train", "test", "Test"]})
    with pytest.raises(UserError, match=r"--hold-out split=test: .* has Test too: hold out both, or rename one"):
        build(table, hold_out=("split=test",))
    assert build(table, hold_out=("split=test,Test",)).table["path"].to_pylist() == ["0.png"]


def test_categories_that_fill_their_type(build: Build, tmp_path: Path) -> None:
    """127 are what pandas stores in 8 bits; a value that is missing was one too many."""
    patients = pa.array([None, *(f"P{number}" for number in range(128))])
    words = patients.dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string()))
    rows = {"path": [f"{number}.png" for number in range(129)], "patient": words}
    assert len(build(table_file(tmp_path, "parquet", rows), hold_out=("patient=P1",))) == 128


NAMES = ["Smith, J", 'the "old" one', "P1", "a,b"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("out", [NAMES[:1], NAMES[1:2], NAMES[2:], NAMES[:3]])
def test_values_with_commas_stand_in_quotes(kind: str, out: list[str], build: Build, tmp_path: Path) -> None:
    table = table_file(tmp_path, kind, {"path": list(map(str, range(4))), "patient": NAMES})
    left = [str(number) for number, name in enumerate(NAMES) if name not in out]
    for words in (quoted(out), ",".join(f' "{name.replace(chr(34), chr(34) * 2)}" ' for name in out)):
        assert build(table, hold_out=(f"patient={words}",)).table["path"].to_pylist() == left


def test_the_remedy_for_a_comma_can_be_copied(build: Build, tmp_path: Path) -> None:
    table = table_file(tmp_path, "csv", {"path": list(map(str, range(4))), "patient": NAMES})
    with pytest.raises(UserError, match='did you mean "Smith, J"'):
        build(table, hold_out=("patient=Smith, J",))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(("splits", "said"), [(["test", None, "a"], "1 tile"), (["test", None, ""], "2 tiles")])
def test_tiles_of_which_nothing_is_known_stay_and_are_told(
    kind: str, splits: list[str], said: str, build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = table_file(tmp_path, kind, {"path": ["0", "1", "2"], "split": splits})
    assert build(table, hold_out=("split=test",)).table["path"].to_pylist() == ["1", "2"]
    assert f"note: {said} without split in {table}, kept for training" in capsys.readouterr().out
    whole = table_file(tmp_path, kind, {"path": ["0", "1"], "split": ["test", "a"], "patient": [None, "P1"]})
    build(whole, hold_out=("split=test",))
    assert not capsys.readouterr().out
