"""Slides cut into tiles: the right pixels, the same bytes however they were made, and nothing lost to a bad slide."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from colocate.base.errors import UserError
from colocate.base.tables import as_text, read_table
from colocate.cli.main import main
from colocate.slides import manifest as packing
from colocate.slides import one_slide
from colocate.slides import tile as work
from colocate.slides.listing import Listed, find_slides
from colocate.slides.manifest import notes_of
from colocate.slides.settings import TilingConfig
from colocate.slides.slide import Slide
from colocate.slides.tile import MADE, Tiled, read_part, tile
from colocate.slides.tissue import Tissue, find_tissue
from tests.phantom_slide import tissue_slide, write_pyramid, write_slides
from tests.tiling.test_tissue import share
from tests.tiny import UNIQUE

CONFIG = TilingConfig(mpp=2.0, size=64, min_sharpness=0.5)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), 3, 640)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return parquet.read_table(out / "manifest.parquet").to_pylist()


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    done = tile(find_slides([slides]), out, CONFIG, workers=1)
    assert done.tiles > 20 and done[1:] == (0, 0, 0, 0)
    return out


def test_tiles_are_what_the_slide_shows(slides: Path, whole: Path) -> None:
    rows = rows_of(whole)
    assert [row["slide"] for row in rows] == sorted(row["slide"] for row in rows)
    for row in rows:
        slide = Slide.open(row["path"])
        region = slide.read(row["x"], row["y"], 64, 64, 2.0)
        with (whole / row["shard"]).open("rb") as shard:
            shard.seek(row["offset"])
            jpeg = shard.read(row["bytes"])
        packed = io.BytesIO()
        Image.fromarray(region).save(packed, "JPEG", quality=90, subsampling=0)
        assert jpeg == packed.getvalue()
        assert row["tissue"] >= 0.5 and row["sharpness"] == pytest.approx(one_slide.sharpness(region))
        assert (row["mpp"], row["slide_mpp"], row["size"], row["source"]) == (2.0, 1.0, 64, row["slide"])


def test_no_tile_is_forgotten(slides: Path, whole: Path) -> None:
    """All places of the grid, their tissue counted in the mask by itself."""
    kept = {(row["slide"], row["x"], row["y"]) for row in rows_of(whole)}
    for listed in find_slides([slides]):
        slide = Slide.open(listed.path)
        tissue = find_tissue(slide)
        for y in range(0, 640 - 127, 128):
            for x in range(0, 640 - 127, 128):
                sharp = one_slide.sharpness(slide.read(x, y, 64, 64, 2.0)) >= 0.5
                assert ((listed.name, x, y) in kept) == (sharp and share(tissue, x, y, 128, 128) >= 0.5)


def test_shards_are_webdatasets(whole: Path) -> None:
    rows = rows_of(whole)
    for shard in sorted((whole / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            mine = [row for row in rows if row["shard"] == f"shards/{shard.name}"]
            assert len(members) == 2 * len(mine)
            for row, picture, note in zip(mine, members[::2], members[1::2], strict=True):
                assert picture.name == f"{row['slide']}/{row['x']:06d}_{row['y']:06d}.jpg"
                assert note.name == picture.name.replace(".jpg", ".json")
                facts = json.loads(tar.extractfile(note).read())  # pyright: ignore[reportOptionalMemberAccess]
                assert facts == {name: row[name] for name in ("source", "slide", "mpp", "size", "x", "y")}


def test_workers_change_nothing(slides: Path, whole: Path, tmp_path: Path) -> None:
    tile(find_slides([slides]), tmp_path, CONFIG, workers=2)
    assert files(tmp_path) == files(whole)


def test_parts_change_nothing_and_the_last_one_concludes(slides: Path, whole: Path, tmp_path: Path) -> None:
    listed = find_slides([slides])
    assert tile(listed, tmp_path, CONFIG, part=(2, 3)) == Tiled(0, 2, 0)
    assert tile(listed, tmp_path, CONFIG, part=(3, 3)) == Tiled(0, 1, 0)
    assert not (tmp_path / "manifest.parquet").exists()
    assert tile(listed, tmp_path, CONFIG, part=(1, 3)).tiles > 20
    assert files(tmp_path) == files(whole)


def test_what_is_done_is_not_done_again(
    slides: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "parts" / "s1.parquet").unlink()  # as if it had been stopped before its end, with half a shard left
    (out / "shards" / f".s1-0001.tar.{UNIQUE}.tmp").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in (out / "shards").glob("s[02]*")}
    asked: list[str] = []  # which reads a file's end, of thousands on a slow disk
    monkeypatch.setattr(work, "notes_of", lambda out, slide: asked.append(slide.name) or notes_of(out, slide))
    tile(find_slides([slides]), out, CONFIG, workers=1)
    assert files(out) == files(whole)
    assert before == {path: path.stat().st_mtime_ns for path in (out / "shards").glob("s[02]*")}
    assert sorted(asked) == ["s0", "s1", "s1", "s2"]  # the worker's own question is asked in another process


def test_a_resolution_for_slides_that_say_none_changes_no_other(tmp_path: Path) -> None:
    """It is what failed.csv asks for: what is done is neither cut again nor refused as of other settings."""
    folder = write_slides(tmp_path / "slides", 1, 640)
    write_pyramid(folder / "silent.tif", tissue_slide(640, 1.0, 1)[0], 0)
    assert tile(find_slides([folder]), tmp_path / "out", CONFIG, workers=1).failed == 1
    before = (tmp_path / "out" / "shards" / "s0-0000.tar").stat().st_mtime_ns
    assert tile(find_slides([folder]), tmp_path / "out", CONFIG, workers=1).failed == 1
    assert tile(find_slides([folder], 1.0), tmp_path / "out", CONFIG, workers=1).failed == 0
    assert (tmp_path / "out" / "shards" / "s0-0000.tar").stat().st_mtime_ns == before
    said, silent = ([one.identity() for one in find_slides([folder], mpp)] for mpp in (None, 1.0))
    assert [one == other for one, other in zip(said, silent, strict=True)] == [True, False]


def test_slides_that_were_moved_are_not_cut_again(tmp_path: Path) -> None:
    """The manifest names their new place."""
    folder, before = write_slides(tmp_path / "slides", 1, 640), list[int]()
    for place in ("slides", "moved"):
        folder = folder.rename(tmp_path / place)
        tile(find_slides([folder]), tmp_path / "out", CONFIG, workers=1)
        times = [path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").iterdir()]
        rows = parquet.read_table(tmp_path / "out" / "manifest.parquet")
        assert set(rows["path"].to_pylist()) == {str(folder / "s0.tif")}
        before = before or times
        assert times == before


def test_other_settings_are_refused(slides: Path, whole: Path) -> None:
    with pytest.raises(UserError, match=r"other settings \(size 64, not 32\): choose another OUT"):
        tile(find_slides([slides]), whole, replace(CONFIG, size=32))


def test_a_folder_where_nothing_was_cut_takes_other_settings(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.svs").write_bytes(b"no slide")
    with pytest.raises(UserError, match="none of 1 slide could be cut"):
        tile(find_slides([tmp_path / "broken.svs"]), tmp_path / "out", CONFIG, workers=1)
    done = tile(find_slides([slides / "s0.tif"]), tmp_path / "out", replace(CONFIG, size=32), workers=1)
    assert done.tiles and not done.failed and not (tmp_path / "out" / "failed.csv").exists()


@pytest.mark.parametrize("name", [*MADE, "index-2.html", "shards/s0-0000.tar", "overlays/s0.png"])
def test_files_of_others_are_not_written_over(slides: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"years of": "work"}')
    first = name.partition("/")[0]
    with pytest.raises(UserError, match=rf"{first} is there and not by `colocate tile`: choose another OUT"):
        tile(find_slides([slides]), tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == [first]
    assert (tmp_path / name).read_text() == '{"years of": "work"}'


@pytest.mark.slow
def test_a_slide_that_was_replaced_is_cut_again(slides: Path, tmp_path: Path) -> None:
    own = tmp_path / "slides"
    own.mkdir()
    for name in ("s0.tif", "s1.tif"):
        shutil.copy(slides / name, own)
    tile(find_slides([own]), tmp_path / "out", CONFIG)
    shutil.copy(slides / "s2.tif", own / "s1.tif")
    tile(find_slides([own]), tmp_path / "out", CONFIG)
    tile(find_slides([own]), tmp_path / "fresh", CONFIG)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_a_slide_whose_name_is_too_long_for_files_is_set_aside(slides: Path, whole: Path, tmp_path: Path) -> None:
    own = tmp_path / "slides"
    own.mkdir()
    for name in ("s1", *("z" * length for length in (208, 215, 249))):
        shutil.copy(slides / "s1.tif", own / f"{name}.tif")
    done = tile(find_slides([own]), tmp_path / "out", CONFIG)
    assert (done.failed, done.missing) == (2, 0)
    failed = as_text(read_table(tmp_path / "out" / "failed.csv"))
    assert [len(row["slide"]) for row in failed] == [215, 249]
    assert all("File name too long" in row["reason"] for row in failed)
    assert len(list((tmp_path / "out" / "shards").glob("zz*"))) == 1
    assert (tmp_path / "out" / "manifest.parquet").is_file()
    name = "shards/s1-0000.tar"
    assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()


def test_bad_slides_are_set_aside_and_tried_again(slides: Path, whole: Path, tmp_path: Path) -> None:
    own = tmp_path / "slides"
    shutil.copytree(slides, own)
    (own / "s1.tif").write_bytes((slides / "s1.tif").read_bytes()[:3000])
    (own / "words.svs").write_text("no slide")
    assert tile(find_slides([own]), tmp_path / "out", CONFIG, part=(2, 2)) == Tiled(0, 2, 2)
    done = tile(find_slides([own]), tmp_path / "out", CONFIG, part=(1, 2))
    assert (done.failed, done.missing) == (2, 0) and done.tiles > 10
    failed = (tmp_path / "out" / "failed.csv").read_text().splitlines()
    assert failed[0] == "slide,path,reason"
    assert failed[1].startswith("s1,") and failed[2].startswith("words,") and "is no slide" in failed[2]
    assert not list((tmp_path / "out" / "shards").glob("*s1*"))
    shutil.copy(slides / "s1.tif", own / "s1.tif")
    (own / "words.svs").unlink()
    assert tile(find_slides([own]), tmp_path / "out", CONFIG).failed == 0
    assert not (tmp_path / "out" / "failed.csv").exists()
    for name, content in files(whole).items():  # apart from the slides' own place
        if name.startswith(("shards/", "overlays/")):
            assert (tmp_path / "out" / name).read_bytes() == content


def test_nothing_but_bad_slides_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        (tmp_path / f"{number}.svs").write_text("no slide")
    with pytest.raises(SystemExit):
        main(["tile", str(tmp_path), str(tmp_path / "out")])
    *notes, last = capsys.readouterr().err.splitlines()
    assert len(notes) == 5 and all("is no slide" in note for note in notes)  # each reason once
    assert last == f"colocate: none of 5 slides could be cut: {tmp_path}/out/failed.csv says why"
    assert len((tmp_path / "out" / "failed.csv").read_text().splitlines()) == 6


def test_a_full_disk_ends_it_with_nothing_half_written(
    slides: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = packing.Shards.add

    def full(self: packing.Shards, key: str, jpeg: bytes, facts: dict[str, object]) -> dict[str, object]:
        if key.startswith("s1") and self.tiles == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(self, key, jpeg, facts)

    monkeypatch.setattr(packing.Shards, "add", full)
    with pytest.raises(UserError, match=r"s1-0000\.tar was not written: the disk is full; make room"):
        tile(find_slides([slides]), tmp_path, CONFIG, workers=1)
    assert not [name for name in files(tmp_path) if "s1" in name or "manifest" in name]
    monkeypatch.setattr(packing.Shards, "add", add)
    tile(find_slides([slides]), tmp_path, CONFIG, workers=1)
    assert files(tmp_path) == files(whole)


def test_a_slide_that_ends_the_process_is_named(
    slides: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deadly(listed: Listed, *rest: Any) -> int:
        if listed.name == "s1":
            os.kill(os.getpid(), signal.SIGKILL)
        return one_slide.cut(listed, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(work, "cut", deadly)
        with pytest.raises(UserError, match=r"a process ended while it cut s1: .*; the same command continues"):
            tile(find_slides([slides]), tmp_path, CONFIG, workers=1)
    tile(find_slides([slides]), tmp_path, CONFIG, workers=1)
    assert files(tmp_path) == files(whole)


def test_tiles_smaller_than_a_pixel_of_the_picture_are_drawn(slides: Path, tmp_path: Path) -> None:
    slide = Slide.open(next(slides.glob("*.tif")))
    tissue = Tissue(np.ones((8, 8), bool), slide.width, slide.height)
    one_slide.write_overlay(tmp_path / "a.png", slide, tissue, [(0, 0), (100, 100)], slide.width / 5000)
    assert (tmp_path / "a.png").is_file()


def test_a_slide_whose_overlay_fails_leaves_no_shards(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no picture")

    monkeypatch.setattr(one_slide, "write_overlay", broken)
    with pytest.raises(UserError, match="could be cut"):
        tile(find_slides([slides / "s0.tif"]), tmp_path, CONFIG, workers=1)
    assert not list((tmp_path / "shards").iterdir())


def test_a_manifest_alone_names_the_same_tiles(slides: Path, whole: Path, tmp_path: Path) -> None:
    tile(find_slides([slides]), tmp_path / "looked", CONFIG, manifest_only=True)
    tile(find_slides([slides]), tmp_path / "unread", replace(CONFIG, min_sharpness=0), manifest_only=True)
    assert not (tmp_path / "looked" / "shards").exists()
    place = ["slide", "x", "y", "mpp", "size", "tissue"]
    full, looked, unread = (
        parquet.read_table(out / "manifest.parquet") for out in (whole, *sorted(tmp_path.iterdir()))
    )
    assert looked.select(place).equals(full.select(place)) and looked["shard"].null_count == len(looked)
    assert unread["sharpness"].null_count == len(unread) >= len(full)


def test_overlapping_tiles_and_several_shards(slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "TILES", 7)
    done = tile(find_slides([slides / "s0.tif"]), tmp_path, replace(CONFIG, overlap=32), workers=1)
    assert sorted({row["x"] for row in rows_of(tmp_path)})[:2] == [128, 192]
    shards = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert shards == [f"s0-{number:04d}.tar" for number in range(-(-done.tiles // 7))]


def test_an_empty_slide_is_done_and_said(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "empty.tif", np.full((400, 400, 3), 243, np.uint8), mpp=1.0)
    assert tile(find_slides([tmp_path]), tmp_path / "out", CONFIG) == Tiled(0, 0, 0, empty=1)
    assert (tmp_path / "out" / "overlays" / "empty.png").is_file()


def test_the_tables_columns_go_into_the_manifest(slides: Path, tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    table.write_text(f"path,source,split\n{slides}/s0.tif,P1,train\n{slides}/s1.tif,P2,test\n")
    tile(find_slides([table]), tmp_path / "out", CONFIG)
    found = {(row["slide"], row["source"], row["split"]) for row in rows_of(tmp_path / "out")}
    assert found == {("s0", "P1", "train"), ("s1", "P2", "test")}


def test_the_command_line(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tile", str(slides / "s0.tif"), str(tmp_path), "--mpp", "0.9", "--size", "64", "--workers", "1"]
    main([*words, "--min-sharpness", "0"])
    said = capsys.readouterr().out
    assert said.startswith("done: ") and "1 slide enlarged from a coarser resolution" in said
    with pytest.raises(SystemExit):
        main([*words, "--part", "4/3"])
    assert "the K-th of N shares" in capsys.readouterr().err
    assert read_part("16/16") == (16, 16)
    assert (tmp_path / "slides.csv").read_text().count("True") == 1


def test_settings_that_make_no_sense() -> None:
    wrong: list[dict[str, Any]] = [{"mpp": -1.0}, {"size": 4}, {"overlap": 64}, {"min_tissue": 2.0}, {"quality": 0}]
    for changes in (*wrong, {"min_sharpness": -1.0}, {"min_sharpness": float("nan")}):
        with pytest.raises(UserError):
            replace(CONFIG, **changes)


def test_a_mask_that_was_drawn_anew_is_another_slide(slides: Path, tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    table.write_text(f"path,mask\n{slides}/s0.tif,own.png\n")
    counts, config = [], replace(CONFIG, min_sharpness=0)
    for rows in (64, 32):
        Image.fromarray((np.arange(64)[:, None].repeat(64, 1) < rows).astype(np.uint8) * 255).save(tmp_path / "own.png")
        counts.append(tile(find_slides([table]), tmp_path / "out", config, manifest_only=True).tiles)
    assert counts == [25, 15]


def test_all_tissue_is_all_tissue(slides: Path, tmp_path: Path) -> None:
    """A share of one is not lost to rounding, and none at all keeps the glass."""
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "own.png")
    (tmp_path / "slides.csv").write_text(f"path,mask\n{slides}/s0.tif,own.png\n")
    for place, least in ((tmp_path / "slides.csv", 1), (slides / "s0.tif", 0)):
        config = replace(CONFIG, min_sharpness=0, mpp=1.7, min_tissue=least)
        assert tile(find_slides([place]), tmp_path / str(least), config, manifest_only=True).tiles == 25
