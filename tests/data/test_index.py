"""The index: opened, sent around, moved, broken."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from colocate.base.errors import TileError, UserError
from colocate.data.index import Index
from tests.data.pictures import pack, shards

Build = Callable[..., Index]


def test_many_rows(tmp_path: Path) -> None:
    count = 10_000
    file = tmp_path / "tiles.lst"
    file.write_text("".join(f"case-{number % 700:03}/tile-{number}.jpg\n" for number in range(count)))
    built = Index.build(file, tmp_path / "index.arrow", mpp=0.5)
    index = Index.open(tmp_path / "index.arrow")
    assert len(index) == len(built) == count
    assert index.fingerprint == built.fingerprint
    assert len(index.sources) == 700
    for number in (0, 6_553, count - 1):
        assert index.name(number) == str(tmp_path / f"case-{number % 700:03}/tile-{number}.jpg")
        assert index.sources[index.source_numbers[number]] == f"case-{number % 700:03}"
    assert index.mpp.dtype == np.float32
    assert (index.mpp == 0.5).all()


def test_pickle_is_small_and_reads_the_same(tiles: Path, build: Build, tmp_path: Path) -> None:
    for data in (tiles, pack(tiles, ["a/0.png", "Top.JPEG"], tmp_path / "t.tar")):
        index = build(data)
        sent = pickle.dumps(index)
        assert len(sent) < 400
        again = pickle.loads(sent)
        assert (again.name(1), again.fingerprint) == (index.name(1), index.fingerprint)
        assert torch.equal(again.read(1), index.read(1))


def test_fingerprint_is_of_the_data_not_of_the_place(tiles: Path, build: Build, tmp_path: Path) -> None:
    first = build(tiles).fingerprint
    shutil.move(tiles, tmp_path / "elsewhere")
    assert build(tmp_path / "elsewhere").fingerprint == first
    assert build(tmp_path / "elsewhere", mpp=1).fingerprint == first


def test_fingerprints_are_those_of_older_versions(tiles: Path, build: Build, tmp_path: Path) -> None:
    """As runs have stored them: of the count, then path, shard and source, each text ended by a zero."""
    (tiles / "é.csv").write_text("path,source\na/0.png,ü\na/1.jpg,\n")
    for data in (tiles, tiles / "é.csv", shards(tiles, tmp_path)):
        index = build(data)
        digest = blake2b(str(len(index)).encode(), digest_size=16)
        for column in ("path", "shard", "source"):
            for value in index.table[column].to_pylist():
                digest.update(f"{value or ''}\0".encode())
        assert index.fingerprint == digest.hexdigest()


def test_index_of_an_index_finds_moved_data(tiles: Path, build: Build, tmp_path: Path) -> None:
    index = build(tiles)
    moved = shutil.move(tiles, tmp_path / "elsewhere")
    with pytest.raises(TileError, match="does not exist"):
        index.read(0)
    again = Index.build(index.path, tmp_path / "again.arrow", root=Path(moved), mpp=0.3)
    assert again.read(0).shape == (3, 30, 40)
    assert (again.kind, again.fingerprint) == (index.kind, index.fingerprint)
    assert np.allclose(again.mpp, 0.3)
    in_place = Index.build(again.path, again.path)
    assert in_place.name(6) == again.name(6)


def test_unreadable_tiles_are_named(tiles: Path, build: Build) -> None:
    (tiles / "a/0.png").write_text("words")
    (tiles / "a/1.jpg").unlink()
    (tiles / "a/10.jpg").unlink()
    (tiles / "a/10.jpg").mkdir()
    os.mkfifo(tiles / "pipe.png")
    table = tiles / "t.lst"
    table.write_text("a/0.png\na/1.jpg\na/10.jpg\npipe.png\n")
    index = build(table)
    for number, reason in enumerate(
        ["is no JPEG", "does not exist", "cannot be read .*directory", "cannot be read .*seekable"]
    ):
        with pytest.raises(TileError, match=rf"^{index.name(number)} {reason}") as caught:
            index.read(number)
        assert "\n" not in str(caught.value)


def test_a_file_of_gigabytes_is_not_read(tiles: Path, build: Build) -> None:
    with (tiles / "a/0.png").open("r+b") as file:
        file.truncate((1 << 30) + 1)  # sparse: takes no space
    with pytest.raises(TileError, match=r"a/0\.png .*looks like a slide"):
        build(tiles).read(1)


def test_shard_that_shrank_after_indexing(tiles: Path, build: Build, tmp_path: Path) -> None:
    shard = pack(tiles, ["a/0.png", "Top.JPEG"], tmp_path / "t.tar")
    index = build(shard)
    os.truncate(shard, 2048)
    with pytest.raises(TileError, match=r"t\.tar:Top\.JPEG ends early.*build the index again"):
        index.read(1)


@pytest.mark.parametrize("mpp", [0, -0.5, 100, float("nan")])
def test_impossible_mpp(mpp: float, tiles: Path, build: Build) -> None:
    with pytest.raises(UserError, match=r"^--mpp: .* is no resolution: give a number above 0 and below 100"):
        build(tiles, mpp=mpp)


def test_broken_index(tiles: Path, build: Build, tmp_path: Path) -> None:
    whole = build(tiles).path.read_bytes()
    broken = tmp_path / "broken.arrow"
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        broken.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"broken\.arrow is cut short or damaged: build it again"):
            Index.open(broken)
    with pytest.raises(UserError, match=r"gone\.arrow does not exist: build it"):
        Index.open(tmp_path / "gone.arrow")


def test_foreign_index(tiles: Path, build: Build, tmp_path: Path) -> None:
    index = build(tiles)
    later = {b"colocate": index.table.schema.metadata[b"colocate"].replace(b'"version": 2', b'"version": 3')}
    for table in (pa.table({"path": ["a.png"]}), index.table.replace_schema_metadata(later)):
        with pa.ipc.new_file(str(tmp_path / "foreign.arrow"), table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(UserError, match=r"foreign\.arrow is not an index of this version of colocate: build it"):
            Index.open(tmp_path / "foreign.arrow")


def test_written_whole_or_not_at_all(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "index.arrow"
    Index.build(tiles, out)
    before = out.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"index\.arrow was not written: the disk is full"):
        Index.build(tiles / "a", out)
    assert out.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index.arrow", "tiles"]
    with pytest.raises(UserError, match=r"was not written"):
        Index.build(tiles, tiles / "Top.JPEG" / "index.arrow")
