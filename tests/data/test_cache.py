"""A cache changes no batch: whole, half, damaged, full, or shared."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from colocate.data import Index, TileCache, Tiles, tile_loader
from colocate.errors import TileError, UserError
from colocate.tiling.config import TilingConfig
from colocate.tiling.on_the_fly import cut_for_training
from tests.data.pictures import packed, picture
from tests.data.test_loader import same
from tests.phantom_slide import tissue_slide, write_pyramid

Build = Callable[..., Index]
EPOCHS = 3
BAD = {4, 5, 19}  # of the tiles in `many`


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
    (file,) = folder.glob("*/pixels")
    return file


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_batches_are_the_same_with_a_cache(index: Index, tmp_path: Path, where: str, workers: int) -> None:
    cache = TileCache.open(index, where if where == "memory" else str(tmp_path / "cache"), gb=0.1)
    assert same(batches(index, cache, workers), batches(index, None))


def test_a_tile_is_decoded_once(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = reads(monkeypatch)
    batches(index, TileCache.open(index, str(tmp_path / "cache")))
    good = [number for number in numbers if number not in BAD]
    assert sorted(good) == sorted(set(good)) and len(good) == 17
    assert numbers.count(4) == EPOCHS  # what cannot be read is tried again
    again = TileCache.open(index, str(tmp_path / "cache"))  # as the next run does
    assert again.summary().startswith("the cache holds 17 of 20 tiles")
    numbers.clear()
    batches(index, again)
    assert set(numbers) == BAD


def test_workers_leave_their_tiles_to_all(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TileCache.open(index, "memory")
    batches(index, cache, workers=2)
    numbers = reads(monkeypatch)
    batches(index, cache)
    assert set(numbers) == BAD


def fill(index: Index, folder: str, start: Any) -> None:
    write = os.pwrite

    def slow(*arguments: Any) -> int:
        time.sleep(0.002)  # so that they meet
        return write(*arguments)

    os.pwrite = slow
    start.wait()
    batches(index, TileCache.open(index, folder))


def test_several_runs_at_once_keep_each_tile_once(index: Index, tmp_path: Path) -> None:
    """In step with one another, as a sweep over methods with one seed is."""
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(4)
    runs = [fork.Process(target=fill, args=(index, str(tmp_path), start)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
        assert run.exitcode == 0
    cache = TileCache.open(index, str(tmp_path))
    good = [number for number in range(20) if number not in BAD]
    assert pixels_file(tmp_path).stat().st_size == sum(index.read(number).nbytes for number in good)
    assert same(batches(index, cache), batches(index, None))


def test_a_run_that_is_killed_leaves_a_cache_that_serves(index: Index, tmp_path: Path) -> None:
    for turn in range(10):
        child = os.fork()
        if not child:
            write, left = os.pwrite, iter(range(turn))

            def dying(*arguments: Any, write: Any = write, left: Any = left) -> int:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return write(*arguments)

            os.pwrite = dying
            try:
                batches(index, TileCache.open(index, str(tmp_path)))
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert same(batches(index, TileCache.open(index, str(tmp_path))), batches(index, None))


def one_of_two(rank: int, index: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=2)
    tiles = Index.open(index)
    cache = TileCache.open(tiles, "memory")
    options: dict[str, Any] = {"batch": 6, "seed": 0, "rank": rank, "world": 2, "workers": 0, "cache": cache}
    seen = list(tile_loader(tiles, **options, start=0, stop=9))
    dist.barrier()
    torch.save([[*map(tuple, seen)], cache.summary()], f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_of_a_run_share_the_cache_in_memory(index: Index, tmp_path: Path) -> None:
    """Else each kept every tile, and they took the machine's memory many times over."""
    mp.start_processes(one_of_two, (str(index.path), str(tmp_path)), nprocs=2, start_method="fork")
    saved = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for rank, (seen, summary) in enumerate(saved):
        plain = tile_loader(index, batch=6, seed=0, rank=rank, world=2, workers=0, start=0, stop=9)
        assert same([Tiles(*tiles) for tiles in seen], list(plain))
        assert summary.startswith("the cache holds 17 of 20 tiles")


def test_memory_is_given_back_with_the_cache(index: Index) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    cache = TileCache.open(index, "memory")
    batches(index, cache, workers=1)
    assert set(Path("/proc/self/fd").iterdir()) > before
    del cache
    gc.collect()
    assert set(Path("/proc/self/fd").iterdir()) <= before


def test_no_more_than_the_bound_is_kept(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = [index.read(number) for number in range(20) if number not in BAD]
    most = sum(tile.nbytes for tile in tiles) // 2
    assert same(batches(index, TileCache.open(index, str(tmp_path / "cache"), gb=most / 1e9)), batches(index, None))
    assert 0.5 * most < pixels_file(tmp_path / "cache").stat().st_size <= most
    numbers = reads(monkeypatch)
    batches(index, TileCache.open(index, str(tmp_path / "cache"), gb=most / 1e9))
    assert 0 < len(set(numbers) - BAD) < 17


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "a torn table"])
def test_damage_is_seen(index: Index, tmp_path: Path, damage: str) -> None:
    batches(index, TileCache.open(index, str(tmp_path / "cache")))
    if damage == "a torn table":
        (table,) = (tmp_path / "cache").glob("*/table")
        raw = bytearray(table.read_bytes())
        raw[8:] = bytes(byte ^ 1 for byte in raw[8:])
        table.write_bytes(raw)
    else:
        raw = bytearray(pixels_file(tmp_path / "cache").read_bytes())
        raw[len(raw) // 2] ^= 16
        pixels_file(tmp_path / "cache").write_bytes(raw[: len(raw) // 3] if damage == "cut short" else raw)
    assert same(batches(index, TileCache.open(index, str(tmp_path / "cache"))), batches(index, None))


def test_a_full_disk_ends_the_keeping_and_not_the_run(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TileCache.open(index, str(tmp_path / "cache"))
    first = batches(index, None)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert same(batches(index, cache), first)


def test_a_disk_that_fails_does_not_end_the_run(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TileCache.open(index, str(tmp_path / "cache"))
    first = batches(index, cache)

    def failing(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    assert same(batches(index, cache), first)
    assert same(batches(index, TileCache.open(index, str(tmp_path / "cache"))), first)


def test_equal_names_in_another_folder_are_other_tiles(tmp_path: Path) -> None:
    """As in the NCT-CRC-HE-100K and its copy without colour normalisation."""
    for shade, place in enumerate(("one", "other")):
        (tmp_path / place).mkdir()
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / place / "0.png")
        index = Index.build(tmp_path / place, tmp_path / f"{place}.arrow")
        assert TileCache.open(index, str(tmp_path / "cache")).read(0)[0].unique().tolist() == [shade]
    assert len(list((tmp_path / "cache").glob("*/pixels"))) == 2


def test_tiles_that_were_changed_are_noticed(index: Index, many: Path, tmp_path: Path) -> None:
    batches(index, TileCache.open(index, str(tmp_path / "cache")))
    for file in many.iterdir():
        (many / file.name).write_bytes(packed(picture(99, 8, 8), "png"))
    with pytest.raises(UserError, match=r"0\d\.png has changed since it was kept in .*: delete that folder"):
        TileCache.open(index, str(tmp_path / "cache"))


def test_regions_of_slides_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = write_pyramid(tmp_path / "slide.tif", tissue_slide(512)[0], mpp=1.0)
    manifest = cut_for_training(slide, tmp_path / "cut", TilingConfig(mpp=1.0, size=64, min_sharpness=0.5), None)
    index = Index.build(manifest, tmp_path / "index.arrow")
    assert index.kind == "slides" and len(index) > 5
    cache = TileCache.open(index, str(tmp_path / "cache"))
    options: dict[str, Any] = {"batch": 3, "seed": 0, "start": 0, "stop": 9, "workers": 0}
    assert same(list(tile_loader(index, **options, cache=cache)), list(tile_loader(index, **options)))
    numbers = reads(monkeypatch)
    list(tile_loader(index, **options, cache=cache))
    assert not numbers


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
    assert len(list(kept.glob("*/pixels"))) == 2


def test_a_folder_that_cannot_be_made_is_named(index: Index, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--cache .*file/cache: Not a directory: give a folder that can be written"):
        TileCache.open(index, str(tmp_path / "file" / "cache"))


def test_more_memory_than_there_is_is_refused(index: Index) -> None:
    with pytest.raises(
        UserError, match=r"--cache-gb 1000000000\.0: only .* GB of memory are free: give less, or a folder"
    ):
        TileCache.open(index, "memory", 1e9)
