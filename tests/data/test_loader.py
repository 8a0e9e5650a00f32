"""The batches: the same ones for any number of workers, machines and restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import colocate.data.loader as loader
from colocate.base.errors import UserError
from colocate.data.index import Index
from colocate.data.loader import Tiles, batch_indices, tile_loader
from tests.data.pictures import packed, picture

Build = Callable[..., Index]


def same(first: list[Tiles], second: list[Tiles]) -> bool:
    return len(first) == len(second) and all(
        all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one[:4], other[:4], strict=True))
        and one.skipped == other.skipped
        for one, other in zip(first, second, strict=True)
    )


def test_an_epoch_covers_every_tile_once() -> None:
    for seed in range(3):
        steps = [batch_indices(24, 4, seed, step) for step in range(12)]
        first, second = ([number for step in half for number in step] for half in (steps[:6], steps[6:]))
        assert sorted(first) == sorted(second) == list(range(24))
        assert first != second


def test_the_last_incomplete_batch_is_dropped() -> None:
    numbers = [number for step in range(2) for number in batch_indices(11, 4, 0, step)]
    assert len(set(numbers)) == 8
    assert batch_indices(11, 4, 0, 2) != numbers[:4]


@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_share_the_batch(world: int) -> None:
    for step in range(5):
        shares = [batch_indices(20, 6, 1, step, rank, world) for rank in range(world)]
        assert [number for share in shares for number in share] == batch_indices(20, 6, 1, step)


def test_batch_that_cannot_be_made(many: Path, build: Build) -> None:
    with pytest.raises(ValueError, match="cannot be shared evenly by 4"):
        batch_indices(20, 6, 0, 0, 0, 4)
    with pytest.raises(UserError, match="hold 20 tiles, fewer than one batch of 21: give a batch of at most 20"):
        tile_loader(build(many), batch=21, seed=0, start=0, stop=1, workers=0)


@pytest.fixture
def index(many: Path, build: Build) -> Index:
    return build(many, mpp=0.5)


def test_tiles_lie_at_the_top_left_of_zeros(index: Index) -> None:
    for tiles in tile_loader(index, batch=6, seed=0, start=0, stop=3, workers=0):
        assert tiles.images.shape == (6, 3, *tiles.sizes.amax(0))
        assert tiles.mpp.tolist() == [0.5] * 6
        for image, size, number in zip(tiles.images, tiles.sizes, tiles.index.tolist(), strict=True):
            height, width = size.tolist()
            assert torch.equal(image[:, :height, :width], index.read(number))
            assert image.sum() == image[:, :height, :width].sum()


def test_unreadable_tiles_are_replaced_by_others_far_away(index: Index) -> None:
    replaced = {4: 17, 5: 18, 19: 12}  # 13 further on
    for step, tiles in enumerate(tile_loader(index, batch=10, seed=3, start=0, stop=4, workers=0)):
        asked = batch_indices(20, 10, 3, step)
        assert tiles.index.tolist() == [replaced.get(number, number) for number in asked]
        met = {number for number in asked if number in replaced}
        assert {number for number, _ in tiles.skipped} == met
        for number, reason in tiles.skipped:
            assert reason.startswith(f"{index.name(number)} is no JPEG")


def test_any_number_of_workers_gives_the_same_batches_and_starting_late_the_tail(index: Index) -> None:
    whole = list(tile_loader(index, batch=5, seed=0, start=0, stop=9, workers=0))
    assert any(tiles.skipped for tiles in whole)
    for workers, start in ((1, 0), (2, 0), (0, 1), (0, 4), (0, 7)):
        assert same(list(tile_loader(index, batch=5, seed=0, start=start, stop=9, workers=workers)), whole[start:])


def test_two_ranks_make_the_batch_of_one(index: Index) -> None:
    whole = tile_loader(index, batch=6, seed=0, start=0, stop=4, workers=0)
    ranks = [tile_loader(index, batch=6, seed=0, start=0, stop=4, rank=r, world=2, workers=0) for r in range(2)]
    for all_of_it, *shares in zip(whole, *ranks, strict=True):
        assert torch.equal(torch.cat([share.index for share in shares]), all_of_it.index)
        assert torch.equal(torch.cat([share.sizes for share in shares]), all_of_it.sizes)


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generator_is_left_alone(workers: int, index: Index) -> None:
    """Else a resumed run, which starts a loader of its own, could not go on bit for bit."""
    before = torch.get_rng_state()
    list(tile_loader(index, batch=5, seed=0, start=0, stop=2, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_slide_is_replaced_by_others(tmp_path: Path, build: Build) -> None:
    """Its tiles stand one after the other, and more of them than may fail before all are given up."""
    (tmp_path / "there.png").write_bytes(packed(picture(0, 8, 8), "png"))
    names = ["there.png"] * 400 + [f"gone{number}.png" for number in range(250)] + ["there.png"] * 50
    (tmp_path / "tiles.lst").write_text("\n".join(names))
    index = build(tmp_path / "tiles.lst")
    (tiles,) = tile_loader(index, batch=len(index), seed=0, start=0, stop=1, workers=0)
    missing = {number for number in range(len(index)) if "gone" in index.name(number)}
    assert {number for number, _ in tiles.skipped} == missing and len(missing) == 250
    assert not missing & set(tiles.index.tolist())
    assert len(set(tiles.index.tolist())) > 1


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable(workers: int, tmp_path: Path, build: Build) -> None:
    (tmp_path / "tiles.lst").write_text("\n".join(f"{number}.png" for number in range(150)))
    tiles = tile_loader(build(tmp_path / "tiles.lst"), batch=2, seed=0, start=0, stop=9, workers=workers)
    with pytest.raises(UserError, match=r"^none of 100 tiles tried can be read: check --data and --root; .*") as caught:
        next(iter(tiles))
    assert "\n" not in str(caught.value)


def test_a_giant_among_small_tiles(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LARGEST_BATCH_BYTES", 4 * 3 * 50 * 40 - 1)
    for number in range(4):
        size = (40, 50) if number == 2 else (8, 8)
        (tmp_path / f"{number}.png").write_bytes(packed(picture(number, *size), "png"))
    tiles = tile_loader(build(tmp_path), batch=4, seed=0, start=0, stop=1, workers=0)
    with pytest.raises(UserError, match=r"2\.png is too large beside the others, a batch of 4 padded to 50 x 40"):
        list(tiles)


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from torch.utils.data._utils import signal_handling as handling
from colocate.data.index import Index
from colocate.data.loader import tile_loader
both = signal.SIGINT, signal.SIGTERM
torchs = handling._set_worker_signal_handlers
handling._set_worker_signal_handlers = lambda: (torchs(), [os.kill(os.getpid(), number) for number in both])
for number in both:
    signal.signal(number, lambda *_: print("told", flush=True))
tiles = tile_loader(Index.open({index!r}), batch=5, seed=0, start=0, stop=40, workers=2)
got = [next(tiles)]
print("ready", flush=True)
time.sleep(1.5)
got += [next(tiles) for _ in range(30)]
print(len(got), flush=True)
sys.exit(3)
"""


@pytest.mark.slow
def test_signals_leave_the_workers_serving_and_leaving_ends_them(index: Index) -> None:
    """Ctrl-C and schedulers signal the whole group; the main process then still finishes its step and saves.

    Signals come while workers start, too: between torch's own handler, which would let them die, and ours. Leaving ends
    the workers at once, even with the main process's own handlers, inherited by them, and the iterator still alive.
    """
    script = SCRIPT.format(index=str(index.path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(process.pid, number)
        assert process.stdout.readline() == "told\n"
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (3, "31\n", "")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
