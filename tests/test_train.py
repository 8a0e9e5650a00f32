"""Runs: that they can be stopped anywhere, resumed exactly, and that they stop by themselves where they should."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from colocate import load_backbone
from colocate.base.errors import UserError
from colocate.base.files import alone
from colocate.core.settings import ViewConfig
from colocate.data.index import Index
from colocate.slides.listing import find_slides
from colocate.slides.settings import TilingConfig
from colocate.slides.tile import tile
from colocate.training import checkpoint
from colocate.training import loop as train
from colocate.training.journal import read_journal
from colocate.training.loop import Interrupted, pretrain
from colocate.training.optim import OptimConfig, build_optimizer
from colocate.training.recipe import EncoderConfig, MachineConfig, Recipe
from colocate.training.run import prepare_folder
from tests.phantom_slide import write_slides
from tests.tiny import METHODS, UNIQUE, tiny_recipe, write_tiles

PACE = {"pairs_per_s", "waiting", "crowded"}  # the only columns that depend on the clock


def last_state(run: Path) -> dict[str, Any]:
    return checkpoint.load_checkpoint(checkpoint.checkpoints(run / "checkpoints")[-1])


def same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, all the way down."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}.{number}")
    else:
        assert a == b, where


def same_run(run: Path, other: Path) -> None:
    one, two = last_state(run), last_state(other)
    one.pop("recipe"), two.pop("recipe")  # they differ in the run folder's name
    same(one, two)
    for a, b in zip(read_journal(run), read_journal(other), strict=True):
        assert {key: str(value) for key, value in a.items() if key not in PACE} == {
            key: str(value) for key, value in b.items() if key not in PACE
        }


def stop_at(monkeypatch: pytest.MonkeyPatch, batches: int, number: int = signal.SIGTERM) -> None:
    """Have the run receive a signal while it works on the batch after so many."""
    views, seen = train.views_of, []

    def interrupting(*args: Any) -> Any:
        seen.append(1)
        if len(seen) == batches:
            os.kill(os.getpid(), number)
        return views(*args)

    monkeypatch.setattr(train, "views_of", interrupting)


def stopped(recipe: Recipe, step: int, number: int = signal.SIGTERM) -> Recipe:
    """The recipe, of which so many steps have been done."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match=rf"step {step} of .*--resume"):
        stop_at(patch, step * recipe.accumulate, number)
        pretrain(recipe)
    return recipe


SETTINGS: dict[str, Any] = {
    "accumulate, clip, warm-up": {
        "accumulate": 2,
        "optim": OptimConfig(clip=0.5, warmup_epochs=2),
        "method": METHODS["moco-v2"],
    },
    "adamw, bf16": {"precision": "bf16-mixed", "optim": OptimConfig("adamw", lr=1e-3)},
    "lars": {"optim": OptimConfig("lars", lr=0.3)},
}


@pytest.mark.parametrize("decay", [1e-6, 0.0])
def test_lars_steps_are_as_long_as_weights_ask_for(decay: float) -> None:
    """lr x 0.001 x |w|, whatever the gradient's length (arXiv:1708.03888, equation 6); biases take it as it is."""
    for size in (1.0, 1000.0):
        layer = nn.Linear(50, 40)
        before = [part.detach().clone() for part in layer.parameters()]
        optimizer = build_optimizer(OptimConfig("lars", lr=0.3, weight_decay=decay), layer)
        (size * layer(torch.ones(8, 50))).sum().backward()
        optimizer.step()
        moved = [(part - old).norm().item() for part, old in zip(layer.parameters(), before, strict=True)]
        assert moved[0] == pytest.approx(0.3 * 0.001 * before[0].norm().item(), rel=1e-3)
        assert moved[1] == pytest.approx(0.3 * 8 * size * 40**0.5, rel=1e-3)


@pytest.fixture(scope="module")
def whole(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `tiny_recipe`, which nothing interrupted."""
    return pretrain(tiny_recipe(tiles, tmp_path_factory.mktemp("whole") / "run"))


@pytest.mark.parametrize(
    "name",
    [
        "accumulate, clip, warm-up",
        pytest.param("adamw, bf16", marks=pytest.mark.slow),
        pytest.param("lars", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(tiles: Path, tmp_path: Path, name: str) -> None:
    whole = tiny_recipe(tiles, tmp_path / "whole", steps=4, **SETTINGS[name])
    pretrain(whole)
    halves = stopped(replace(whole, out=str(tmp_path / "halves")), 3)
    # Another state of torch's generator must not matter.
    torch.manual_seed(99)
    pretrain(halves, resume=True)
    same_run(tmp_path / "whole", tmp_path / "halves")


def test_a_run_that_ctrl_c_stopped_as_it_wrote_a_row_is_the_uninterrupted_one(
    tiles: Path, whole: Path, tmp_path: Path
) -> None:
    """A row that is torn is left out."""
    run = tmp_path / "run"
    recipe = stopped(tiny_recipe(tiles, run), 3, signal.SIGINT)
    assert last_state(run)["step"] == load_backbone(run).facts["steps"] == 3
    journal = (run / "journal.csv").read_text()
    for torn in ("", "\0\0\0\0", "4,0.1", "1", "\n\n", "4,x" + "," * 30):
        (run / "journal.csv").write_text(journal + torn)
        assert [row["step"] for row in read_journal(run)] == [1, 2, 3]
    pretrain(recipe, resume=True)
    same_run(whole, run)


@pytest.mark.slow
def test_a_balanced_run_sees_each_source_as_often_and_a_tile_otherwise_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = write_tiles(tmp_path / "tiles")
    rows = [f"{number:02}.png,{'small' if number < 2 else 'large'}\n" for number in range(20)]
    (tiles / "t.csv").write_text("path,source\n" + "".join(rows))
    views, seen, crops = train.views_of, [], []

    def noting(*args: Any) -> Any:
        batch = views(*args)
        assert torch.equal(batch.tiles, args[4].index)
        seen.extend(batch.tiles.tolist())
        crops.extend(map(tuple, torch.cat([batch.first.crop.rows, batch.first.crop.cols], 1).tolist()))
        return batch

    monkeypatch.setattr(train, "views_of", noting)
    pretrain(tiny_recipe(tiles / "t.csv", tmp_path / "run", balance="sources"))
    assert 0.3 < sum(number < 2 for number in seen) / len(seen) < 0.7  # a tenth of the tiles
    assert len(set(crops[:16])) == 16 > len(set(seen[:16]))  # of the first epoch


@pytest.mark.slow
def test_workers_and_checkpoints_change_nothing(tiles: Path, whole: Path, tmp_path: Path) -> None:
    machine = MachineConfig("cpu", workers=2, log_every=1, save_every=5, keep=1, journals=("tensorboard",))
    pretrain(tiny_recipe(tiles, tmp_path / "run", machine=machine))
    same_run(whole, tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_checkpoints_are_counted_and_old_ones_dropped(whole: Path) -> None:
    names = [path.name for path in sorted((whole / "checkpoints").iterdir())]
    assert names == ["step000000004.pt", "step000000006.pt"]


def test_a_loss_that_is_not_finite_stops_the_run(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views, seen = train.views_of, []

    def poisoned(*args: Any) -> Any:
        batch = views(*args)
        seen.append(batch.tiles.tolist())
        if len(seen) == 4:
            batch.first.images[0, 0, 0, 0] = torch.nan
        return batch

    monkeypatch.setattr(train, "views_of", poisoned)
    recipe = tiny_recipe(tiles, tmp_path / "run", machine=MachineConfig("cpu", workers=0, log_every=6, save_every=2))
    with pytest.raises(UserError, match=r"not finite at batch 3, .*last good checkpoint is .*step000000002\.pt"):
        pretrain(recipe)
    named = [Path(line).name for line in (tmp_path / "run" / "nonfinite.txt").read_text().splitlines()]
    assert named == [f"{number:02}.png" for number in seen[3]]
    assert last_state(tmp_path / "run")["step"] == 2


def test_a_gradient_that_is_not_finite_stops_the_run(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before weights of nan are saved as good ones."""
    clip, seen = train.clip, []

    def poisoned(*args: Any) -> Any:
        seen.append(1)
        if len(seen) == 4:
            next(args[0].parameters()).grad[0] = torch.nan
        return clip(*args)

    monkeypatch.setattr(train, "clip", poisoned)
    with pytest.raises(UserError, match=r"gradient was not finite at batch 3, .*last good checkpoint is .*0002\.pt"):
        pretrain(tiny_recipe(tiles, tmp_path / "run"))


@pytest.mark.slow
def test_weights_that_a_run_began_with_are_not_needed_to_go_on(tiles: Path, tmp_path: Path) -> None:
    first = pretrain(tiny_recipe(tiles, tmp_path / "first", steps=1)) / "backbone.safetensors"
    recipe = tiny_recipe(tiles, tmp_path / "whole", encoder=EncoderConfig("test_resnet", init=str(first)), steps=2)
    pretrain(recipe)
    halves = stopped(replace(recipe, out=str(tmp_path / "halves")), 1)
    first.unlink()
    pretrain(halves, resume=True)
    same_run(tmp_path / "whole", tmp_path / "halves")


def test_a_run_in_a_thread_has_no_signals_and_ends(tiles: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(pretrain, tiny_recipe(tiles, tmp_path / "run", steps=1)).result()
    assert (run / "backbone.safetensors").is_file()


def test_tiles_too_small_for_the_resolution_asked_for_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = write_tiles(tmp_path / "tiles", size=96)
    for mpp, said in ((0.5, False), (3.0, True)):
        views = ViewConfig(size=64, mpp=mpp, area=(0.5, 1.0))
        pretrain(tiny_recipe(tiles, tmp_path / f"run{mpp}", tile_mpp=0.5, steps=1, views=views))
        assert ("too small for views at 3 micrometres per pixel" in capsys.readouterr().err) == said


@pytest.mark.parametrize(("epochs", "said"), [(3, True), (2.5, False)])
def test_a_warm_up_as_long_as_the_run_is_said(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], epochs: float, said: bool
) -> None:
    recipe = tiny_recipe(tiles, tmp_path / "run", optim=OptimConfig(warmup_epochs=epochs))  # 6 steps, 2 an epoch
    prepare_folder(tmp_path / "run", recipe, resume=False)
    told = "the warm-up takes the whole run: give a shorter one, such as --optim.warmup-epochs 0.3"
    assert (told in capsys.readouterr().out) == said


def test_unreadable_tiles_are_listed_once_and_those_of_a_refused_start_do_not_count(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles")
    first, second, third, *_ = sorted(tiles.iterdir())
    whole = {path: path.read_bytes() for path in (first, second)}
    recipe = tiny_recipe(tiles, tmp_path / "run", max_skipped=0.05, steps=2, batch=20)
    for path in whole:
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"2 of 20 tiles cannot be read, more than 5\.00%.*0[01]\.png.*--max-skipped"):
        pretrain(recipe)
    for path, content in whole.items():
        path.write_bytes(content)
    third.write_bytes(third.read_bytes()[:100])
    pretrain(recipe)  # which meets it in both of its steps
    with (tmp_path / "run" / "skipped.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["tile"]).name for row in rows] == ["02.png"] and rows[0]["reason"]


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_whole(
    tiles: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiles, tmp_path / "run")
    save = torch.save

    def full_later(state: dict[str, Any], file: Any) -> None:
        save(state, file)
        if state["step"] == 4:
            raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_later)
        with pytest.raises(UserError, match=r"step000000004\.pt was not written: the disk is full; .*--resume"):
            pretrain(recipe)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step000000002.pt"]
    pretrain(recipe, resume=True)
    same_run(whole, tmp_path / "run")


def test_what_cannot_be_resumed_is_said(tiles: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiles, tmp_path / "run", steps=3)
    pretrain(recipe)

    def refused(other: Recipe, message: str, resume: bool = True) -> None:
        with pytest.raises(UserError, match=message):
            pretrain(other, resume=resume)

    refused(recipe, "holds a run already: go on with it by --resume", resume=False)
    refused(replace(recipe, optim=OptimConfig(lr=1.0)), r"another recipe \(optim\.lr is 1\.0, was 0\.03\)")
    more = write_tiles(tmp_path / "more", count=21)
    refused(replace(recipe, data=str(more)), "does not hold the tiles")
    path = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1]
    path.write_bytes(path.read_bytes()[:-2000])
    refused(recipe, "cut short or not a checkpoint: delete it")
    path.unlink()
    pretrain(recipe, resume=True)  # from the one before


def test_a_run_that_never_took_a_step_may_be_started_otherwise(tiles: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiles, tmp_path / "run", batch=14)
    with pytest.raises(UserError, match="do not divide into groups"):
        pretrain(recipe)
    pretrain(replace(recipe, batch=12, steps=1))
    assert read_journal(tmp_path / "run")[-1]["step"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ""}, "a run needs `data`, the tiles or slides, and `out`"),
        ({"batch": 32}, "holds 20 tiles, fewer than a batch: give --batch 20 or less"),
        ({"machine": MachineConfig("gpu", journals=())}, "accelerator gpu"),
        ({"machine": MachineConfig("cpu", journals=("wandb",))}, r"pip install 'colocate\[wandb\]'"),
        ({"machine": MachineConfig("tpu", journals=())}, "accelerator tpu"),
    ],
)
def test_settings_that_cannot_run_are_named(tiles: Path, tmp_path: Path, changes: Any, message: str) -> None:
    if "gpu" in message and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message):
        pretrain(replace(tiny_recipe(tiles, tmp_path / "run"), **changes))


@pytest.mark.slow
def test_tiles_of_slides_are_trained_on_without_what_is_held_out(tmp_path: Path) -> None:
    """Straight from the slides, in workers; stopped and resumed as any run."""
    write_slides(tmp_path / "slides", 3, 512)
    tiling = TilingConfig(mpp=2.0, size=64, min_tissue=0.2)
    tile(find_slides([tmp_path / "slides"]), tmp_path / "cut", tiling, manifest_only=True, workers=1)
    recipe = tiny_recipe(tmp_path / "cut", tmp_path / "whole", hold_out=("slide=s1",), balance="sources", batch=4)
    pretrain(replace(recipe, machine=replace(recipe.machine, workers=2)))
    index = Index.open(tmp_path / "whole" / "tiles.arrow")
    assert index.kind == "slides" and index.sources == ["s0", "s2"]
    halves = stopped(replace(recipe, out=str(tmp_path / "halves")), 3)
    with pytest.raises(UserError, match=r"another recipe \(hold_out is \(\), was \('slide=s1',\)"):
        pretrain(replace(halves, hold_out=()), resume=True)
    pretrain(halves, resume=True)
    same_run(tmp_path / "whole", tmp_path / "halves")


def test_a_run_is_one_processs_and_removes_what_a_killed_one_left(tiles: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(tiles, run, steps=1)
    with alone(run), pytest.raises(UserError, match="run is being written by another process"):
        pretrain(recipe)
    for name in (f".backbone.json.{UNIQUE}.tmp", f"checkpoints/.step000000002.pt.{UNIQUE}.tmp"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"half")
    pretrain(recipe)
    assert list(run.rglob("*.tmp")) == []


def test_a_flipped_bit_is_noticed(tiles: Path, whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    for path in (run / "backbone.safetensors", checkpoint.checkpoints(run / "checkpoints")[-1]):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_backbone(run)
    with pytest.raises(UserError, match=r"step000000006\.pt is damaged"):
        pretrain(tiny_recipe(tiles, run), resume=True)
