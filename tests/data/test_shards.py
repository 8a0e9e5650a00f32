"""Tar shards: the members that tarfile reads, and a cut or packed shard refused."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from colocate.base.errors import UserError
from colocate.data.index import Index
from tests.data.pictures import TILES, names, pack, shards, sources

Build = Callable[..., Index]
NAMES = list(TILES)


def test_tar_reads_what_tarfile_reads(tiles: Path, build: Build, tmp_path: Path) -> None:
    shard = pack(tiles, NAMES[::-1], tmp_path / "t.tar")
    index = build(shard)
    assert names(index) == [f"{shard}:{name}" for name in NAMES[::-1]]
    assert sources(index) == ["t.tar"] * 7
    assert index.kind == "tar"
    with tarfile.open(shard) as tar:
        for number in (3, 0, 6, 1):
            member = tar.extractfile(NAMES[::-1][number])
            assert member is not None
            assert index.packed(number) == member.read()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_of_every_form_with_long_names(form: int, tiles: Path, build: Build, tmp_path: Path) -> None:
    name = "/".join(["µ" * 40] * 2) + "/tile.png"
    with tarfile.open(tmp_path / "t.tar", "w", format=form) as tar:
        tar.add(tiles / "a/0.png", name)
        tar.add(tiles / "a/1.jpg", "second.jpg")
    index = build(tmp_path / "t.tar")
    assert names(index) == [f"{tmp_path}/t.tar:{name}", f"{tmp_path}/t.tar:second.jpg"]
    assert index.packed(1) == (tiles / "a/1.jpg").read_bytes()


def test_folder_of_shards(tiles: Path, build: Build, tmp_path: Path) -> None:
    index = build(shards(tiles, tmp_path))
    assert sources(index) == ["a.tar"] * 4 + ["deep/b.TAR"] * 3
    assert names(index)[4] == f"{tmp_path}/shards/deep/b.TAR:a/2.tiff"


def test_samples_json_gives_mpp_and_source(tiles: Path, build: Build, tmp_path: Path) -> None:
    notes = {"a/0.json": {"mpp": 0.5, "source": "case 9"}, "a/1.json": {"mpp": "0.25"}, "a/10.json": [1]}
    extra = {name: json.dumps(note).encode() for name, note in notes.items()} | {"a/2.more.json": b"{"}
    index = build(pack(tiles, NAMES, tmp_path / "t.tar", extra), mpp=1)
    assert index.mpp.tolist() == [1, 0.5, 0.25, 1, 1, 1, 1]
    assert sources(index) == ["t.tar", "case 9"] + ["t.tar"] * 5


def test_a_tile_that_was_packed_twice_is_told(tiles: Path, build: Build, tmp_path: Path) -> None:
    """As `tar --append` and `tar --update` leave it, of which the last counts when it is unpacked."""
    shard = pack(tiles, NAMES, tmp_path / "t.tar")
    for name in ("c/other.png", f"./{NAMES[2]}"):
        with tarfile.open(shard, "a") as tar:
            tar.add(tiles / NAMES[2], name)
        if name.startswith("c"):
            assert len(build(shard)) == 8
    with pytest.raises(UserError, match=rf"t\.tar holds {NAMES[2]} twice: unpack it"):
        build(shard)


def test_tar_of_hidden_and_foreign_members_only(tiles: Path, build: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t\.tar holds no tiles: members of a shard ending in \.jpg"):
        build(pack(tiles, [], tmp_path / "t.tar"))


def test_cut_or_damaged_tar(tiles: Path, build: Build, tmp_path: Path) -> None:
    """Wherever it is cut, it is refused, with the count of members that lie before the cut as a whole."""
    whole = pack(tiles, NAMES, tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        members = tar.getmembers()
    last = members[-1]
    end = last.offset_data + (last.size + 511) // 512 * 512
    cut = tmp_path / "cut.tar"
    for size in range(members[1].offset, end + 511, 97):
        cut.write_bytes(whole[:size])
        count = sum(member.offset_data + member.size <= size for member in members)
        with pytest.raises(UserError, match=rf"cut\.tar is cut short.* first {count} members are whole: copy it again"):
            build(cut)
    cut.write_bytes(whole[: end + 512])
    assert len(build(cut)) == 7
    damaged = members[3].offset
    cut.write_bytes(whole[:damaged] + b"\xff" * 8 + whole[damaged + 8 :])
    with pytest.raises(UserError, match=r"cut\.tar is cut short or damaged, only its first 3 members"):
        build(cut)


def test_no_tar_or_a_compressed_one(tiles: Path, build: Build, tmp_path: Path) -> None:
    packed = gzip.compress(pack(tiles, NAMES, tmp_path / "whole.tar").read_bytes())
    for data in (b"", b"no tar", b"no tar" * 1000, packed):
        (tmp_path / "t.tar").write_bytes(data)
        with pytest.raises(UserError, match=r"t\.tar is no plain tar file, or is cut .*: unpack it if .* copy it"):
            build(tmp_path / "t.tar")
    (tmp_path / "t.tar.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"t\.tar\.gz is not a kind of data .* uncompressed"):
        build(tmp_path / "t.tar.gz")


HUGE = b'{"mpp": 1' + b"0" * 400 + b"}"


@pytest.mark.parametrize(
    "note", [b"{", b'{"mpp": "fine"}', b'{"mpp": -1}', b'{"mpp": [1]}', b'{"mpp": NaN}', b"\xff", HUGE]
)
def test_bad_json_in_shard(note: bytes, tiles: Path, build: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t\.tar:a/0\.json"):
        build(pack(tiles, NAMES, tmp_path / "t.tar", {"a/0.json": note}))


def test_what_lies_in_a_hidden_folder_is_no_tile(tiles: Path, build: Build, tmp_path: Path) -> None:
    """As in a folder; tar names what it packs ./a/0.png."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("./a/0.png", "./.cache/thumb.png", "../b/0.png"):
            tar.add(tiles / "a/0.png", name)
    assert names(build(tmp_path / "t.tar")) == [f"{tmp_path}/t.tar:{name}" for name in ("./a/0.png", "../b/0.png")]


@pytest.mark.parametrize("way", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_tiles_packed_as_links_are_not_lost(way: bytes, tiles: Path, build: Build, tmp_path: Path) -> None:
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = way, "a/0.png"
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tiles / "a/0.png", "a/0.png")
        tar.addfile(link)
    with pytest.raises(UserError, match=r"t\.tar:link\.png is a link or full of holes: .*--dereference --hard-deref"):
        build(tmp_path / "t.tar")


def test_joined_shards_are_not_read_in_part(tiles: Path, build: Build, tmp_path: Path) -> None:
    parts = [pack(tiles, [name], tmp_path / f"{number}.tar") for number, name in enumerate(NAMES[:2])]
    (tmp_path / "both.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(UserError, match=r"both\.tar goes on after its end mark, .*: give them by themselves"):
        build(tmp_path / "both.tar")
