"""A cache changes no batch: whole, half, damaged, full, or shared."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colocate.data import Index, TileCache, Tiles, tile_loader
from colocate.data import cache as module
from colocate.errors import TileError, UserError
from tests.data.test_loader import same

Build = Callable[..., Index]
EPOCHS = 3


@pytest.fixture
def index(many: Path, build: Build) -> Index:
    """Twenty tiles of several sizes, three of them unreadable."""
    return build(many, mpp=0.5)


def batches(index: Index, cache: TileCache | None, workers: int = 0) -> list[Tiles]:
    return list(tile_loader(index, batch=5, seed=0, start=0, stop=4 * EPOCHS, workers=workers, cache=cache))


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of tiles that are read from their files from now on, by this process."""
    read, numbers = Index.read, []

    def noting(self: Index, number: int) -> Any:
        numbers.append(number)
        return read(self, number)

    monkeypatch.setattr(Index, "read", noting)
    return numbers


def pixels_file(folder: Path) -> Path:
    (file,) = folder.glob("*.pixels")
    return file


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_batches_are_the_same_with_a_cache(index: Index, tmp_path: Path, where: str, workers: int) -> None:
    cache = TileCache.open(index, where if where == "memory" else str(tmp_path / "cache"), gb=0.1)
    assert same(batches(index, cache, workers), batches(index, None))


def test_a_tile_is_decoded_once(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = reads(monkeypatch)
    batches(index, TileCache.open(index, str(tmp_path)))
    good = [number for number in numbers if number not in (4, 5, 19)]
    assert sorted(good) == sorted(set(good)) and len(good) == 17
    assert numbers.count(4) == EPOCHS  # what cannot be read is tried again
    numbers.clear()
    batches(index, TileCache.open(index, str(tmp_path)))  # the next run
    assert set(numbers) == {4, 5, 19}


def test_processes_share_it(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches(index, TileCache.open(index, str(tmp_path)), workers=2)
    numbers = reads(monkeypatch)
    assert same(batches(index, TileCache.open(index, str(tmp_path))), batches(index, None))
    del numbers[:]
    batches(index, TileCache.open(index, str(tmp_path)))
    assert set(numbers) == {4, 5, 19}


def test_no_more_than_the_bound_is_kept(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = [index.read(number) for number in range(20) if number not in (4, 5, 19)]
    most = sum(tile.nbytes for tile in tiles) // 2
    assert same(batches(index, TileCache.open(index, str(tmp_path), gb=most / 1e9)), batches(index, None))
    assert 0.5 * most < pixels_file(tmp_path).stat().st_size <= most
    numbers = reads(monkeypatch)
    batches(index, TileCache.open(index, str(tmp_path), gb=most / 1e9))
    assert 0 < len(set(numbers) - {4, 5, 19}) < 17


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "a torn table"])
def test_damage_is_seen(index: Index, tmp_path: Path, damage: str) -> None:
    batches(index, TileCache.open(index, str(tmp_path)))
    if damage == "a torn table":
        (table,) = tmp_path.glob("*.table")
        raw = bytearray(table.read_bytes())
        raw[8:] = bytes(byte ^ 1 for byte in raw[8:])
        table.write_bytes(raw)
    else:
        raw = bytearray(pixels_file(tmp_path).read_bytes())
        raw[len(raw) // 2] ^= 16
        pixels_file(tmp_path).write_bytes(raw[: len(raw) // 3] if damage == "cut short" else raw)
    assert same(batches(index, TileCache.open(index, str(tmp_path))), batches(index, None))


def test_a_full_disk_ends_the_keeping_and_not_the_run(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TileCache.open(index, str(tmp_path))
    first = batches(index, None)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert same(batches(index, cache), first)


def test_another_set_of_tiles_has_another_cache(index: Index, tmp_path: Path, build: Build, many: Path) -> None:
    kept = tmp_path / "cache"
    batches(index, TileCache.open(index, str(kept)))
    (tmp_path / "some.lst").write_text("\n".join(sorted(path.name for path in many.iterdir())[::2]))
    other = build(tmp_path / "some.lst", root=many)
    cache = TileCache.open(other, str(kept))
    for number in range(len(other)):
        try:
            assert torch.equal(cache.read(number), other.read(number))
        except TileError:
            continue
    assert len(list(kept.glob("*.pixels"))) == 2


def test_a_folder_that_cannot_be_made_is_named(index: Index, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--cache .*file/cache: Not a directory: give a folder that can be written"):
        TileCache.open(index, str(tmp_path / "file" / "cache"))


def test_memory_of_a_control_group_bounds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/proc/self/cgroup": "0::/job/step\n", "/sys/fs/cgroup/job/memory.max": "5000\n"}
    texts |= {"/sys/fs/cgroup/job/memory.current": "2000\n", "/sys/fs/cgroup/job/step/memory.max": "max\n"}

    def read_text(path: Path) -> str:
        if str(path) not in texts:
            raise OSError
        return texts[str(path)]

    monkeypatch.setattr(module.Path, "read_text", read_text)
    assert module._free_memory() == 3000
