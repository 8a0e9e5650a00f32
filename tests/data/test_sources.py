"""Whatever the tiles come as, they are the same tiles; whatever is wrong is said in one sentence."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet

from colocate.base.errors import UserError
from colocate.data.index import Index
from tests.data.pictures import TILES, names, nobody, pack, shards, sources

Build = Callable[..., Index]
NAMES = list(TILES)
PARENTS = [".", "a", "a", "a", "a", "b c/deep", "b c"]


def write_list(folder: Path, text: str) -> Path:
    file = folder / "train.txt"
    file.write_bytes(text.encode())
    return file


def write_table(file: Path, /, **columns: Any) -> Path:
    (csv.write_csv if file.suffix == ".csv" else parquet.write_table)(pa.table(columns), file)
    return file


@pytest.fixture
def folder(tiles: Path, build: Build) -> Index:
    return build(tiles)


def same_pixels(index: Index, other: Index) -> bool:
    return len(index) == len(other) and all(torch.equal(index.read(i), other.read(i)) for i in range(len(index)))


def test_folder(tiles: Path, build: Build) -> None:
    write_list(tiles, "a/0.png")  # which is no tile
    folder = build(tiles)
    assert names(folder) == [str(tiles / name) for name in NAMES]
    assert sources(folder) == PARENTS
    assert folder.kind == "folder"
    assert np.isnan(folder.mpp).all()
    assert [tuple(folder.read(i).shape) for i in range(7)] == [(3, high, wide) for wide, high in TILES.values()]


def test_slides_among_pictures_are_refused(tiles: Path, build: Build) -> None:
    """As thumbnails lie beside slides: the slides would be left out, and the thumbnails trained on."""
    (tiles / "a" / "scan.SVS").touch()
    with pytest.raises(UserError, match=r"holds slides among its pictures \(a/scan\.SVS\), which would be left out"):
        build(tiles)


def test_folder_follows_links_but_to_no_tile_twice(tiles: Path, build: Build, tmp_path: Path) -> None:
    (tiles / "linked").symlink_to(tiles / "a")
    (tiles / "a" / "back").symlink_to(tiles)
    (tiles / "b c" / "self").symlink_to(".")
    (tiles / "one").mkdir()
    (tiles / "one" / "two").symlink_to(tiles / "two")  # which leads back to it
    (tiles / "two").mkdir()
    (tiles / "two" / "one").symlink_to(tiles / "one")
    assert names(build(tiles)) == [str(tiles / name) for name in sorted(NAMES)]
    for folder in (tmp_path / "outside" / "in", tiles / ".store"):
        folder.mkdir(parents=True)
        shutil.copy(tiles / "a/0.png", folder)
    (tmp_path / "outside" / "in" / "round").symlink_to("..")
    (tiles / "b d").symlink_to(tmp_path / "outside" / "in")
    (tiles / "b e").symlink_to(tmp_path / "outside")
    (tiles / "b f").symlink_to(tmp_path / "outside")
    (tiles / "b g").symlink_to(".store")  # hidden but for the link
    assert names(build(tiles)) == [str(tiles / name) for name in sorted([*NAMES, "b d/0.png", "b g/0.png"])]


@pytest.mark.parametrize("kind", ["list", "labelled", "crlf", "csv", "parquet", "tar", "shards", "arrow"])
def test_same_tiles_from_every_kind(kind: str, tiles: Path, folder: Index, build: Build, tmp_path: Path) -> None:
    data, root = {
        "list": lambda: (write_list(tiles, "\n".join(NAMES)), None),
        "labelled": lambda: (write_list(tmp_path, "".join(f"{name} {i}\n" for i, name in enumerate(NAMES))), tiles),
        "crlf": lambda: (write_list(tmp_path, "\ufeff\r\n" + "\r\n\r\n".join(f"{name}\t3" for name in NAMES)), tiles),
        "csv": lambda: (write_table(tmp_path / "t.csv", n=[1] * 7, path=NAMES), tiles),
        "parquet": lambda: (write_table(tiles / "t.parquet", path=NAMES, grade=[3] * 7), None),
        "tar": lambda: (pack(tiles, NAMES, tmp_path / "t.tar"), None),
        "shards": lambda: (shards(tiles, tmp_path), None),
        "arrow": lambda: (shutil.copy(folder.path, tmp_path / "t.arrow"), None),
    }[kind]()
    index = build(data, root=root)
    assert same_pixels(index, folder)
    if "tar" not in (kind, index.kind):
        assert names(index) == names(folder)
        assert sources(index) == PARENTS


def test_list_keeps_its_order_and_its_missing_tiles(tiles: Path, build: Build) -> None:
    index = build(write_list(tiles, "a/2.tiff\nnowhere/7.png\na/0.png\na/2.tiff\n"))
    assert [Path(name).name for name in names(index)] == ["2.tiff", "7.png", "0.png", "2.tiff"]
    with pytest.raises(UserError, match=r"nowhere/7\.png does not exist: check"):
        index.read(1)


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_tiles_that_are_named_again_are_told(
    kind: str, build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / f"named.{kind}"
    lines = (["path"] if kind == "csv" else []) + ["a.png", "b.png", "./a.png"]
    named.write_text("\n".join([*lines, "a.png", ""]))
    assert len(build(named)) == 4
    assert f"note: {named} names 2 tiles again: a tile is seen as often as it is named" in capsys.readouterr().out
    named.write_text("\n".join([*lines[:-1], ""]))
    assert len(build(named)) == 2 and not capsys.readouterr().out


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_table_columns(kind: str, tiles: Path, build: Build, tmp_path: Path) -> None:
    mpp = [0.5, None, 0.25, None, None, None, 1.0]
    case = ["001", "001", "002", None, "x", "x", "x"]
    table = write_table(tmp_path / f"t.{kind}", mpp=mpp, source=case, path=NAMES)
    index = build(table, root=tiles)
    assert sources(index) == ["001", "001", "002", "a", "x", "x", "x"]
    expected = np.array([np.nan if value is None else value for value in mpp], np.float32)
    np.testing.assert_array_equal(index.mpp, expected)
    np.testing.assert_array_equal(build(table, root=tiles, mpp=2).mpp, np.nan_to_num(expected, nan=2))


def test_table_written_by_hand(tiles: Path, build: Build) -> None:
    file = tiles / "t.csv"
    file.write_bytes(b'\xef\xbb\xbfpath,mpp,source\r\n"a/0.png",,007\r\nb c/y 7.webp,nan,\r\n')
    index = build(file)
    assert sources(index) == ["007", "b c"]
    assert np.isnan(index.mpp).all()
    assert index.read(1).shape == (3, 24, 24)


def test_nothing_there(build: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone cannot be opened \(No such file or directory\): give a folder"):
        build(tmp_path / "gone")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"empty and its subfolders hold no tiles: files ending in \.jpg, .*\.webp"):
        build(empty)
    with pytest.raises(UserError, match=r"train\.txt lists no tiles"):
        build(write_list(empty, "\n \r\n"))


def test_wrong_kinds(tiles: Path, build: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0\.png is not a kind of data that can be read: give a folder"):
        build(tiles / "a/0.png")
    with pytest.raises(UserError, match=r"--root .* goes with a list or a table"):
        build(tiles, root=tiles)
    with pytest.raises(UserError, match=r"gone cannot be opened .*: give --root the folder that the paths"):
        build(write_list(tiles, "a/0.png"), root=tmp_path / "gone")
    pack(tiles, NAMES, tiles / "t.tar")
    with pytest.raises(UserError, match=r"holds both 7 image files and 1 tar shards: point --data at"):
        build(tiles)


def test_a_prepared_data_set(tiles: Path, build: Build) -> None:
    """Its masks and contact sheet would be read as tiles."""
    for name in ("dataset.json", "items.csv"):
        (tiles / name).touch()
    with pytest.raises(UserError, match=r"holds masks too, .*: it has no split with training images"):
        build(tiles)
    for scheme in ("official", "patients"):
        (tiles / f"train-{scheme}.csv").write_text("path,source\na/0.png,case:1\n")
    for data in (tiles, tiles.parent):  # itself, and a folder around it
        with pytest.raises(
            UserError, match=r"tiles holds masks too, .*: give .*/train-official\.csv or .*patients\.csv$"
        ):
            build(data)
    assert sources(build(tiles / "train-patients.csv")) == ["case:1"]


def test_bad_text(build: Build, tmp_path: Path) -> None:
    for text in (b"caf\xe9.png\n", "a.png".encode("utf-16-le"), "a.png".encode("utf-16")):
        (tmp_path / "t.lst").write_bytes(text)
        with pytest.raises(UserError, match=r"t\.lst is not UTF-8 text: save it as UTF-8"):
            build(tmp_path / "t.lst")
    folder = tmp_path / "latin"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).touch()
    with pytest.raises(UserError, match=r"file name '.*' is not UTF-8: rename the file"):
        build(folder)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_bad_tables(kind: str, build: Build, tmp_path: Path) -> None:
    file = tmp_path / f"t.{kind}"
    with pytest.raises(UserError, match=rf"t\.{kind} has no column `path` \(found: file, mpp\): give"):
        build(write_table(file, file=["a.png"], mpp=[1.0]))
    with pytest.raises(UserError, match=rf"t\.{kind}, column `mpp`: -2 micrometres per pixel is no resolution"):
        build(write_table(file, path=["a.png", "b.png"], mpp=[1.0, -2.0]))
    for nothing in (None, ""):  # of which the folder itself was read
        with pytest.raises(UserError, match=rf"t\.{kind} has no path in row 2: fill it in"):
            build(write_table(file, path=["a.png", nothing], mpp=[1, 2]))
    with pytest.raises(UserError, match=rf"t\.{kind}.*(`mpp` holds string, not float|cannot be read as a table)"):
        build(write_table(file, path=["a.png"], mpp=["fine"]))
    file.write_bytes(b"\x00nonsense" if kind == "parquet" else b"")
    with pytest.raises(UserError, match=rf"t\.{kind} cannot be read as a table .*: mend it"):
        build(file)
    with pytest.raises(UserError, match=rf"t\.{kind} lists no tiles"):
        build(write_table(file, path=pa.array([], pa.string())))


def test_forbidden_folder(tiles: Path, build: Build) -> None:
    with tempfile.TemporaryDirectory() as folder:  # where somebody else may look, unlike tmp_path
        shutil.copytree(tiles, folder, dirs_exist_ok=True)
        Path(folder).chmod(0o755)
        (Path(folder) / "a").chmod(0)
        with nobody(), pytest.raises(UserError, match=r"/a/? cannot be listed \(Permission denied\): check its perm"):
            build(folder)


def test_a_table_of_slides_is_none_of_tiles(build: Build, tmp_path: Path) -> None:
    for name in ("slide_mpp", "tile_mpp"):  # of a manifest and of slides.csv, as `colocate tile` writes them
        table = write_table(tmp_path / "t.csv", path=["a.svs"], x=[0], y=[0], **{name: [0.5]})
        with pytest.raises(UserError, match=rf"t\.csv lists slides, .* `{name}` tells: give the manifest\.parquet"):
            build(table)
