"""What is timed is what training does: the method's own calls of its encoders, on weights that stand still."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from colocate.bench import tiles as bench_tiles
from colocate.bench import whole as bench_whole
from colocate.bench.parts import Stage, first, in_turns, parts_ms, try_batches
from colocate.bench.tiles import decode_rate, decoded
from colocate.bench.whole import whole_step
from colocate.data import Index, Tiles
from colocate.errors import UserError
from colocate.journal import Journal
from colocate.looks import ViewConfig
from colocate.recipe import Recipe
from colocate.run import launch
from tests.tiny import METHODS, tiny_recipe, write_tiles


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("bench")
    return Index.build(write_tiles(folder / "tiles"), folder / "tiles.arrow")


def staged(recipe: Recipe, index: Index) -> tuple[Stage, Tiles]:
    fabric = launch(recipe.machine, recipe.precision, recipe.batch)
    return Stage(recipe, fabric), decoded(index, recipe.batch, recipe.seed)


@pytest.mark.parametrize("name", METHODS)
def test_the_network_is_what_the_method_sends_through_its_encoders(name: str, index: Index) -> None:
    views = ViewConfig(size=64, local_views=1, local_size=32, reference="concl" in name)
    stage, tiles = staged(tiny_recipe(Path(), Path(), method=METHODS[name], views=views), index)
    calls = stage.calls(stage.views(0, tiles, tiles.images))
    seen = sorted((call.learns, call.images.shape[-1]) for call in calls)
    if "vicregl" in name or name == "distil":
        assert seen == [(True, 32), (True, 64), (True, 64)]
    else:  # the key encoder's view brings no gradient
        assert seen == [(False, 64), (True, 32), (True, 64)]
    assert all(len(call.images) == 8 for call in calls)
    again = [hook for part in stage.bare.modules() for hook in part._forward_pre_hooks]
    assert not again


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_parts_leave_gradients_and_weights_as_they_would_be(precision: Any, index: Index) -> None:
    stage, tiles = staged(tiny_recipe(Path(), Path(), precision=precision), index)
    before = [weight.detach().clone() for weight in stage.bare.query.parameters()]
    batch = stage.views(0, tiles, tiles.images)
    stage.network(stage.calls(batch))
    trained = [weight for part in (stage.bare.query.backbone, stage.bare.query.whole) for weight in part.parameters()]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in trained)
    assert all(weight.grad is None for weight in stage.bare.key.parameters())  # type: ignore[union-attr]
    alone, failure = parts_ms(stage, tiles, rounds=1)
    assert set(alone) == {"views", "network", "losses", "optimizer"} and failure is None
    assert all(math.isfinite(ms) and ms >= 0 for ms in alone.values())
    after = list(stage.bare.query.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    stage.learn(batch)
    assert all(weight.grad is not None for weight in after)


def test_ways_take_turns_and_the_first_round_is_not_counted() -> None:
    done: list[str] = []
    times = in_turns({name: lambda name=name: done.append(name) for name in "ab"}, 2, torch.device("cpu"))
    assert done == list("ababab") and [list(one) for one in times] == [["a", "b"]] * 2


def test_fewer_tiles_than_a_batch_come_again(index: Index) -> None:
    tiles = decoded(index, 3, 0)
    more = first(tiles, 7)
    assert more.index.tolist() == [*tiles.index.tolist()] * 2 + [int(tiles.index[0])]
    assert torch.equal(more.images[:3], more.images[3:6]) and more.sizes.shape == (7, 2)


def test_batches_are_tried_up_to_one_that_does_not_fit() -> None:
    asked: list[int] = []

    def rate(batch: int) -> float:
        asked.append(batch)
        if batch == 24:
            raise UserError("not in groups of 16")
        if batch >= 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 10.0 * batch

    tried = try_batches([16, 24, 32, 64, 128], rate)
    assert tried == ({16: 160.0, 32: 320.0}, 64) and asked == [16, 24, 32, 64]
    assert try_batches([16], rate) == ({16: 160.0}, None)


@pytest.mark.parametrize(("workers", "together"), [(0, 1), (1, 1), (3, 3)])
def test_decoding_is_counted_from_when_all_workers_have_begun(
    index: Index, monkeypatch: pytest.MonkeyPatch, workers: int, together: int
) -> None:
    """Each worker needs 2 s for a batch, and 30 s to start: what arrives is 20 tiles a worker every 2 s."""
    clock = [0.0]

    def loader(index: Index, *, start: int, stop: int, workers: int, **_: Any) -> Iterator[int]:
        clock[0] += 30
        for turn in range(start, stop):
            clock[0] += 2.0 * (turn % max(1, workers) == 0)
            yield turn

    monkeypatch.setattr(bench_tiles, "tile_loader", loader)
    monkeypatch.setattr(bench_tiles.time, "perf_counter", lambda: clock[0])
    assert decode_rate(index, workers, seed=0, most_s=100) == pytest.approx(together * len(index) / 2)


def test_the_row_of_the_start_is_not_counted(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(recipe: Recipe) -> None:
        assert (recipe.steps, recipe.machine.log_every, recipe.data) == (30, 10, str(index.path))
        Path(recipe.out).mkdir()
        journal = Journal(Path(recipe.out) / "journal.csv", 0)
        for step, rate, waiting in ((10, 1.0, 0.9), (20, 100.0, 0.0), (30, 50.0, 0.3)):
            journal.write(step, {"pairs_per_s": rate, "waiting": waiting})

    monkeypatch.setattr(bench_whole, "pretrain", run)
    recipe = tiny_recipe(Path("elsewhere"), Path())
    recipe = replace(recipe, machine=replace(recipe.machine, log_every=10))
    whole = whole_step(recipe, index, tmp_path / "run", steps=11)
    assert whole.pairs_per_s == pytest.approx(2 / (1 / 100 + 1 / 50)) and whole.steps == 20
    assert whole.waiting == pytest.approx(0.2) and whole.peak_bytes > 10_000_000
