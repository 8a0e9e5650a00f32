"""Manifests of `colocate tile` as data: the same tiles from shards, from a scan of them, and from the slides."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from colocate.base.errors import TileError, UserError
from colocate.data.index import Index
from colocate.data.inspect import inspect
from colocate.data.loader import tile_loader
from colocate.slides.listing import find_slides
from colocate.slides.settings import TilingConfig
from colocate.slides.slide import Slide
from colocate.slides.tile import tile
from tests.data.pictures import names, sources
from tests.phantom_slide import tissue_slide, write_pyramid

Build = Callable[..., Index]
CONFIG = TilingConfig(mpp=2.0, size=64, min_sharpness=0.5)
LIST = """path,slide,patient,split,source,mpp
in/s0.tif,s0,A1,train,P1,
in/s1.tif,s1,A2,test,P2,
in/s2.tif,s2,,val,P2,1.0
"""


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides in in/, tiled from a table of them with shards (packed/) and without (bare/)."""
    folder = tmp_path_factory.mktemp("cut")
    (folder / "in").mkdir()
    for seed in range(3):
        pixels, _ = tissue_slide(512 + 128 * seed, mpp=1.0, seed=seed)
        write_pyramid(folder / "in" / f"s{seed}.tif", pixels, mpp=0 if seed == 2 else 1.0)  # the last does not say
    (folder / "slides.csv").write_text(LIST)
    slides = find_slides([folder / "slides.csv"])
    tile(slides, folder / "packed", CONFIG, workers=1)
    tile(slides, folder / "bare", CONFIG, workers=1, manifest_only=True)
    return folder


def rows_of(manifest: Path) -> list[dict[str, Any]]:
    return parquet.read_table(manifest).to_pylist()


def changed(cut: Path, out: Path, **columns: Any) -> Path:
    table = parquet.read_table(cut / "bare" / "manifest.parquet")
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values(table[name]))
    parquet.write_table(table, out)
    return out


@pytest.mark.slow
def test_tiles_of_shards_are_those_of_a_scan(cut: Path, build: Build, tmp_path: Path) -> None:
    rows = rows_of(cut / "packed" / "manifest.parquet")
    index = build(cut / "packed")
    scan = Index.build(cut / "packed" / "shards", tmp_path / "scan.arrow")
    assert (index.kind, scan.kind, len(index)) == ("tar", "tar", len(rows))
    assert names(index) == names(scan)
    assert all(index.packed(n) == scan.packed(n) for n in range(len(index)))
    for one in (index, scan):
        assert sources(one) == [row["source"] for row in rows]
        assert (one.mpp == 2.0).all()


def test_regions_are_read_from_the_slides(cut: Path, build: Build) -> None:
    rows = rows_of(cut / "bare" / "manifest.parquet")
    index = build(cut / "bare" / "manifest.parquet")
    packed = Index.build(cut / "packed", index.path.with_name("packed.arrow"))
    assert (index.kind, len(index)) == ("slides", len(rows)) and len(rows) > 10
    assert sources(index) == [row["source"] for row in rows]
    places = [f"{row['path']}@{row['x']},{row['y']}" for row in rows]
    assert names(index) == places and len({*places}) == len(places)
    for number, row in enumerate(rows):
        expected = Slide.open(row["path"], 1.0).read(row["x"], row["y"], 64, 64, 2.0)
        tile = index.read(number)
        assert tile.is_contiguous() and np.array_equal(tile.permute(1, 2, 0).numpy(), expected)
        assert (tile.float() - packed.read(number).float()).abs().mean() < 8  # which is a JPEG of it
    with pytest.raises(ValueError, match="has no file of its own"):
        index.packed(0)


def test_regions_in_workers_and_after_a_journey(cut: Path, build: Build) -> None:
    index = build(cut / "bare")
    again = pickle.loads(pickle.dumps(index))
    assert torch.equal(again.read(1), index.read(1)) and (again.kind, again.name(1)) == (index.kind, index.name(1))
    alone = list(tile_loader(index, batch=4, seed=0, start=0, stop=4, workers=0))
    helped = list(tile_loader(index, batch=4, seed=0, start=0, stop=4, workers=2))
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.index, other.index)


def test_a_slide_that_was_replaced_is_not_read_at_the_places_of_the_old(
    cut: Path, build: Build, tmp_path: Path
) -> None:
    """Nor at its resolution."""
    shutil.copy(cut / "in" / "s0.tif", tmp_path)
    slides = find_slides([tmp_path / "s0.tif"])
    tile(slides, tmp_path / "out", CONFIG, workers=1, manifest_only=True)
    with slides[0].path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"has changed since .*manifest\.parquet was made of it: run `colocate tile`"):
        build(tmp_path / "out")
    tile(slides, tmp_path / "out", CONFIG, workers=1, manifest_only=True)
    assert build(tmp_path / "out").kind == "slides"


def test_moved_slides_keep_their_fingerprint(cut: Path, build: Build, tmp_path: Path) -> None:
    first = build(cut / "bare")
    (tmp_path / "new").mkdir()
    for slide in (cut / "in").iterdir():
        (tmp_path / "new" / slide.name).write_bytes(slide.read_bytes())
    moved = Index.build(cut / "bare", tmp_path / "moved.arrow", root=tmp_path / "new")
    assert moved.fingerprint == first.fingerprint and moved.name(0).startswith(str(tmp_path / "new"))
    last = len(first) - 1  # not of the slide that goes: an open file would stay readable
    assert torch.equal(moved.read(last), first.read(last))
    (tmp_path / "new" / "s0.tif").unlink()
    moved = Index.build(first.path, tmp_path / "again.arrow", root=tmp_path / "new")
    assert (moved.kind, moved.fingerprint) == ("slides", first.fingerprint)
    with pytest.raises(TileError, match=r"new/s0\.tif"):
        moved.read(0)
    (tiles,) = tile_loader(moved, batch=len(first), seed=0, start=0, stop=1, workers=0)
    gone = {number for number, name in enumerate(names(moved)) if "s0.tif" in name}
    assert {number for number, _ in tiles.skipped} == gone and gone


@pytest.mark.parametrize("column", ["x", "size", "mpp", "slide_mpp", "source"])
def test_fingerprint_is_of_the_regions(column: str, cut: Path, build: Build, tmp_path: Path) -> None:
    def other(values: pa.ChunkedArray) -> pa.Array:
        plain = values.to_pylist()
        return pa.array([f"{plain[0]}x" if column == "source" else plain[0] + 1, *plain[1:]])

    first = build(cut / "bare").fingerprint
    assert build(changed(cut, tmp_path / "same.parquet")).fingerprint == first
    assert build(changed(cut, tmp_path / "other.parquet", **{column: other})).fingerprint != first


def test_what_other_tools_saved_again(cut: Path, build: Build, tmp_path: Path) -> None:
    """Pandas writes plain strings and its own widths."""
    wide: dict[str, Any] = {
        name: (lambda to: lambda values: values.cast(to))(kind)
        for name, kind in {"path": "string", "source": "string", "x": "int64", "mpp": "float64"}.items()
    }
    assert build(changed(cut, tmp_path / "t.parquet", **wide)).fingerprint == build(cut / "bare").fingerprint


def test_inspect_looks_at_regions(cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time: what reads slides is not made for several threads."""
    plain, inside = Index.read, []

    def read(index: Index, number: int) -> Any:
        inside.append(number)
        assert len(inside) == 1
        try:
            return plain(index, number)
        finally:
            inside.pop()

    monkeypatch.setattr(Index, "read", read)
    summary = inspect(cut / "bare", out=tmp_path / "sheet.png")
    assert summary.formats == {"slide": summary.tiles} and summary.sizes == {(64, 64): summary.tiles}
    assert summary.contact_sheet is not None and summary.contact_sheet.is_file() and not summary.unreadable


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": lambda v: pa.array([None, *v.to_pylist()[1:]])}, "has tiles without `x`"),
        ({"mpp": lambda v: pa.array([-1.0, *v.to_pylist()[1:]])}, "`mpp`: -1 micrometres per pixel is no resolution"),
        ({"slide_mpp": lambda v: pa.array([0.0, *v.to_pylist()[1:]])}, "`slide_mpp`: 0 micrometres per pixel is no"),
        ({"size": lambda v: pa.array([0, *v.to_pylist()[1:]])}, "has tiles of no size"),
        ({"x": lambda v: pa.array(["far", *map(str, v.to_pylist()[1:])])}, "column `x` holds string, not int32"),
    ],
)
def test_damaged_manifests(columns: dict[str, Any], message: str, cut: Path, build: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"t\.parquet.*{message}"):
        build(changed(cut, tmp_path / "t.parquet", **columns))


def test_a_manifest_that_was_cut_short_or_is_empty(cut: Path, build: Build, tmp_path: Path) -> None:
    whole = (cut / "bare" / "manifest.parquet").read_bytes()
    (tmp_path / "manifest.parquet").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"manifest\.parquet cannot be read as a table"):
        build(tmp_path / "manifest.parquet")
    parquet.write_table(parquet.read_table(cut / "bare" / "manifest.parquet")[:0], tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match=r"lists no tiles: see slides\.csv"):
        build(tmp_path)


def test_a_folder_whose_slides_are_not_all_cut(cut: Path, build: Build, tmp_path: Path) -> None:
    """Its overlays are pictures, but no tiles."""
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "s0.png").write_bytes((cut / "bare" / "overlays" / "s0.png").read_bytes())
    (tmp_path / "tiling.json").write_bytes((cut / "bare" / "tiling.json").read_bytes())
    with pytest.raises(UserError, match=r"has no manifest\.parquet yet: let `colocate tile` cut the slides"):
        build(tmp_path)


@pytest.mark.parametrize("which", ["packed", "bare"])
@pytest.mark.parametrize(
    ("hold_out", "gone"),
    [
        (("slide=s1",), {"s1"}),
        (("patient=A2,A1",), {"s0", "s1"}),
        (("source=P2",), {"s1", "s2"}),
        (("split=test", "slide=s2"), {"s1", "s2"}),
    ],
)
def test_what_is_held_out_is_never_seen(
    which: str, hold_out: tuple[str, ...], gone: set[str], cut: Path, build: Build, tmp_path: Path
) -> None:
    index = build(cut / which, hold_out=hold_out)
    table = parquet.read_table(cut / which / "manifest.parquet")
    left = table.filter(pa.array([row["slide"] not in gone for row in table.to_pylist()]))
    (tmp_path / "rest").mkdir()
    parquet.write_table(left, tmp_path / "rest" / "manifest.parquet")
    rest = Index.build(tmp_path / "rest", tmp_path / "rest.arrow", root=cut / {"packed": "packed", "bare": "in"}[which])
    assert 0 < len(left) == len(index) < len(table)
    assert names(index) == names(rest)
    assert {*index.sources} == {*left["source"].to_pylist()} and index.fingerprint == rest.fingerprint


@pytest.mark.parametrize("which", ["packed", "bare"])
def test_a_tile_that_is_held_out_and_is_not_is_refused(which: str, cut: Path, build: Build, tmp_path: Path) -> None:
    """As it may be where a table of splits that names a slide twice was joined on."""
    table = parquet.read_table(cut / which / "manifest.parquet")
    split = table.column_names.index("split")
    again = table.slice(0, 1).set_column(split, "split", pa.array(["test"]).cast(table.schema.field("split").type))
    parquet.write_table(pa.concat_tables([table, again]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet has .*s0.* in a row that is held out and in one that is not"):
        build(tmp_path / "t.parquet", root=cut / {"packed": "packed", "bare": "in"}[which], hold_out=("split=test",))
