"""A run's folder: where it finds its tiles, and what is left of a run that was refused."""

from __future__ import annotations

import csv
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

from colocate import load_backbone
from colocate.base.errors import UserError
from colocate.cli.main import main
from colocate.core.settings import ViewConfig
from colocate.core.views import Batch, sample_views
from colocate.data.index import Index
from colocate.data.loader import batch_indices
from colocate.training import checkpoint
from colocate.training import loop as train
from colocate.training.journal import Journal, UnreadableTiles, read_rows, trackers
from colocate.training.loop import pretrain
from colocate.training.recipe import MachineConfig, read_recipe, to_json
from colocate.training.run import launch, prepare_folder
from tests.test_train import same_run, stopped
from tests.tiny import tiny_recipe, write_tiles


def test_relative_paths_are_looked_up_where_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiles(tmp_path / "here" / "tiles")
    monkeypatch.chdir(tmp_path / "here")
    recipe = tiny_recipe(Path("tiles"), tmp_path / "run", steps=2)
    pretrain(recipe)
    before = (tmp_path / "run" / "tiles.arrow").stat().st_mtime_ns
    pretrain(recipe, resume=True)
    assert (tmp_path / "run" / "tiles.arrow").stat().st_mtime_ns == before  # as long as they are the same place
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    pretrain(recipe, resume=True)
    assert Index.open(tmp_path / "run" / "tiles.arrow").root == tmp_path / "there" / "tiles"


@pytest.mark.parametrize(
    "changes", [{"batch": 999}, {"root": "nowhere"}, {"steps": 1, "probe": "nowhere"}, {"max_skipped": 0.5}]
)
@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_is_refused_leaves_nothing_of_its_own(there: bool, changes: dict[str, Any], tmp_path: Path) -> None:
    tiles, run = write_tiles(tmp_path / "tiles"), tmp_path / "run"
    recipe = tiny_recipe(tiles, run)
    recipe = replace(recipe, machine=replace(recipe.machine, journals=("tensorboard",)))
    if "max_skipped" in changes:
        for tile in tiles.iterdir():
            tile.write_text("no picture")
    if there:
        run.mkdir()
        (run / "notes.txt").write_text("the user's own")
        (run / "recipe.json").write_text("the user's own, too")
    before = set(threading.enumerate())
    with pytest.raises(UserError):
        pretrain(replace(recipe, **changes))
    new = set(threading.enumerate()) - before
    assert not [thread for thread in new if "AsyncWriter" in type(thread).__name__]  # which would miss its file
    left = sorted(path.name for path in run.iterdir()) if run.exists() else None
    assert left == (["notes.txt", "recipe.json"] if there else None)


def test_tensorboard_on_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread dies of it, with a traceback, and the next call raises what is no OSError at times."""
    from tensorboard.compat.tensorflow_stub.io import gfile

    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    refused = pytest.raises(UserError, match=r"tensorboard was not written \(No space left on device\): make room, and")
    for begun in (True, False):
        with trackers(("tensorboard",), tmp_path / str(begun), {}) as (log,), monkeypatch.context() as patch:
            if begun:
                log({"loss": 1.0}, 1)
            patch.setattr(gfile.LocalFileSystem, "append", full)
            patch.setattr(gfile.LocalFileSystem, "write", full)
            with refused:
                log({"loss": 1.0}, 2)
            assert said == []
            other = threading.Thread(target=full)  # another's errors are told, meanwhile and after
            other.start()
            other.join()
            assert len(said) == 1
            said.clear()
    assert threading.excepthook == said.append


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_other_journals_are_closed_as_they_ended(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the next run of a session has its own; after an error as failed, which both tell by its kind."""
    tracked = MagicMock()
    tracked.__enter__.return_value = tracked
    tracked.__exit__.return_value = False
    package = MagicMock(**{"init.return_value": tracked, "start_run.return_value": tracked})
    monkeypatch.setitem(sys.modules, name, package)
    with pytest.raises(UserError), trackers((name,), tmp_path, {}) as (log,):
        log({"loss": 1.0}, 3)
        tracked.__exit__.assert_not_called()
        raise UserError("not finite")
    assert UserError in tracked.__exit__.call_args.args
    logged = tracked.log if name == "wandb" else package.log_metrics
    logged.assert_called_once_with({"loss": 1.0}, step=3)


def test_where_a_run_starts_from_is_found_from_other_folders_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(write_tiles(tmp_path / "tiles"), tmp_path / "first", steps=2)
    pretrain(recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    later = replace(recipe, out="~/second", encoder=replace(recipe.encoder, init="first"))
    assert pretrain(later) == tmp_path / "second"
    assert read_recipe(tmp_path / "second" / "recipe.json").encoder.init == str(tmp_path / "first")
    pretrain(later, resume=True)
    for wrong in ("", ".", "tiles"):
        with pytest.raises(UserError, match=r"is no backbone of colocate \(.*backbone.json is missing\)"):
            pretrain(replace(later, out="third", encoder=replace(recipe.encoder, init=wrong)))


@pytest.mark.parametrize(
    ("changes", "noted"), [({"epochs": 3}, True), ({"epochs": 2000}, False), ({"steps": 1}, False)]
)
def test_few_steps_of_few_tiles_are_said(
    changes: dict[str, Any], noted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(write_tiles(tmp_path / "tiles", count=8), tmp_path / "run")
    prepare_folder(tmp_path / "run", replace(recipe, **{"steps": None, **changes}), resume=False)
    assert ("3 epochs of 8 tiles are 3 steps;" in capsys.readouterr().out) == noted


@pytest.mark.slow
def test_a_run_that_ends_between_two_of_its_files_has_both_when_it_went_on(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at its last step, after which nothing is written any more."""
    whole, recipe = (tiny_recipe(tiles, tmp_path / name, steps=4) for name in ("whole", "run"))
    pretrain(whole)
    writes = []

    def killed_at_the_last(write: Callable[..., Any]) -> Callable[..., Any]:
        def writing(*what: Any) -> Any:
            writes.append(write)
            if len(writes) == 4:  # two files at each of two steps
                raise KeyboardInterrupt
            return write(*what)

        return writing

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "write_backbone", killed_at_the_last(train.write_backbone))
        patch.setattr(checkpoint, "save_checkpoint", killed_at_the_last(checkpoint.save_checkpoint))
        pretrain(recipe)
    pretrain(recipe, resume=True)
    same_run(tmp_path / "whole", tmp_path / "run")
    one, other = load_backbone(tmp_path / "whole"), load_backbone(tmp_path / "run")
    assert other.facts["steps"] == 4
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_what_a_run_went_on_with_is_in_its_recipe(tiles: Path, tmp_path: Path) -> None:
    """Or the command that goes on with it would ask no probe, and say another licence."""
    recipe = stopped(tiny_recipe(tiles, tmp_path / "run", steps=2), 1)
    stored = tmp_path / "run" / "recipe.json"
    with pytest.raises(UserError, match="nowhere"):
        pretrain(replace(recipe, probe="nowhere"), resume=True)
    assert read_recipe(stored) == recipe
    other = replace(recipe, data_licence="MIT", machine=replace(recipe.machine, log_every=2))
    pretrain(other, resume=True)
    assert read_recipe(stored) == other


@pytest.mark.slow
def test_a_run_that_was_moved_goes_on_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stopped(tiny_recipe(write_tiles(tmp_path / "tiles"), Path("run"), steps=2), 1)
    Path("run").rename("moved")
    main(["pretrain", "--from", "moved/recipe.json", "--resume"])
    assert not Path("run").exists() and read_rows(Path("moved/journal.csv"))[-1]["step"] == 2
    main(["pretrain", "--from", "moved", "--resume", "--out", "other"])  # elsewhere, if that is asked
    assert read_recipe(Path("other/recipe.json")).out == "other"
    # A stored recipe that lies in no run says where its run is.
    Path("stored").mkdir()
    Path("stored/recipe.json").write_text(to_json(tiny_recipe(tmp_path / "tiles", Path("run"), steps=1)))
    main(["pretrain", "--from", "stored/recipe.json", "--resume"])
    assert Path("run/backbone.json").exists() and [path.name for path in Path("stored").iterdir()] == ["recipe.json"]


def test_unreadable_tiles_that_were_moved_count_once(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "here")
    (tiles / "05.png").write_text("no picture")
    recipe = stopped(tiny_recipe(tiles, tmp_path / "run", max_skipped=0.05), 3)
    tiles.rename(tmp_path / "there")
    pretrain(replace(recipe, data=str(tmp_path / "there")), resume=True)
    with (tmp_path / "run" / "skipped.csv").open(newline="") as file:
        assert [row["tile"] for row in csv.DictReader(file)] == [str(tmp_path / "there" / "05.png")]


@pytest.mark.parametrize(
    ("torn", "known"),
    [
        ("ti", []),
        ("tile,reas", []),
        ("tile,reason\r\n", []),
        ("tile,reason\r\n00.png,damaged\r\n05.p", ["00.png"]),
        ('tile,reason\r\n00.png,damaged\r\n"a,b.png",no pict', ["00.png"]),
        ('tile,reason\r\n"00, a.png",damaged\r\n\u00e4'.encode()[:-1], ["00, a.png"]),
    ],
)
def test_a_list_of_skipped_tiles_that_was_cut_off_goes_on(
    torn: str | bytes, known: list[str], tiles: Path, tmp_path: Path
) -> None:
    """By a kill or a full disk: what was written after half a line was lost, and half a head ended the run."""
    file = tmp_path / "skipped.csv"
    file.write_bytes(torn.encode() if isinstance(torn, str) else torn)
    index = Index.build(tiles, tmp_path / "tiles.arrow")
    for _ in range(2):
        UnreadableTiles(tmp_path, index, 0.5).note([(5, "no picture"), (7, 'a "b", c')])
        with file.open(newline="") as stored:
            rows = list(csv.DictReader(stored))
        new = [{"tile": index.name(5), "reason": "no picture"}, {"tile": index.name(7), "reason": 'a "b", c'}]
        assert [row["tile"] for row in rows[:-2]] == known and rows[-2:] == new


@pytest.mark.slow
def test_tiles_of_another_resolution_are_not_those_of_before(tiles: Path, tmp_path: Path) -> None:
    tables = {}
    for name, mpp in (("before", 0.5), ("moved", 0.5), ("finer", 0.25)):
        rows = [f"{path},{mpp}" for path in sorted(tiles.iterdir())]
        tables[name] = tmp_path / f"{name}.csv"
        tables[name].write_text("\n".join(["path,mpp", *rows]))
    plain = tiny_recipe(tables["before"], tmp_path / "run", steps=2)
    recipe = stopped(replace(plain, views=replace(plain.views, mpp=0.5, area=(0.2, 0.4))), 1)
    with pytest.raises(UserError, match=r"finer\.csv does not hold the tiles that .*run was started with"):
        pretrain(replace(recipe, data=str(tables["finer"])), resume=True)
    pretrain(replace(recipe, data=str(tables["moved"])), resume=True)
    # Where views do not ask for it, it changes nothing of them.
    free = stopped(replace(plain, out=str(tmp_path / "free")), 1)
    pretrain(replace(free, data=str(tables["finer"])), resume=True)


def test_tiles_without_a_resolution_are_refused_before_the_first_step(tmp_path: Path) -> None:
    """Where views need it: the batch with the first of them may come after hours."""
    late = next(number for number in range(20) if number not in batch_indices(20, 8, seed=0, step=0))
    paths = sorted(write_tiles(tmp_path / "tiles").iterdir())
    rows = [f"{path},{'' if number == late else 0.5}" for number, path in enumerate(paths)]
    (tmp_path / "tiles.csv").write_text("\n".join(["path,mpp", *rows]))
    recipe = tiny_recipe(tmp_path / "tiles.csv", tmp_path / "run", steps=1)
    with pytest.raises(UserError, match=r"1 tile of .*tiles\.csv have no mpp, which --views\.mpp 0\.5 needs"):
        pretrain(replace(recipe, views=replace(recipe.views, mpp=0.5)))
    pretrain(recipe)


@pytest.mark.parametrize("torn", ["step,epoch,lr,lo", "step,epoch,lr,loss\n1,0.5,0.1,2.25\n2,1,0.1,2.2"])
def test_a_line_of_the_journal_without_its_end_does_not_count(torn: str, tmp_path: Path) -> None:
    """A head cut short would hide columns, and a number some of its digits."""
    path = tmp_path / "journal.csv"
    path.write_text(torn)
    rows = [{"step": 1, "epoch": 0.5, "lr": 0.1, "loss": 2.25}] if "2.25" in torn else []
    assert read_rows(path) == rows
    journal = Journal(path, step=2)
    journal.write(3, {"epoch": 1.5, "lr": 0.1, "loss": 1.5})
    assert read_rows(path) == [*rows, {"step": 3, "epoch": 1.5, "lr": 0.1, "loss": 1.5}]


def test_a_run_does_not_depend_on_torchs_defaults(tiles: Path, tmp_path: Path) -> None:
    """With torch.set_default_device("cuda") (for which "meta" stands) or another type no run began."""
    recipe = tiny_recipe(tiles, tmp_path / "plain", steps=2)
    plain = pretrain(recipe)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            other = pretrain(replace(recipe, out=str(tmp_path / "other")))
            assert torch.empty(1).device.type == "meta" and torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert (plain / "backbone.safetensors").read_bytes() == (other / "backbone.safetensors").read_bytes()


def test_a_checkpoint_of_another_versions_network_is_told(tiles: Path, tmp_path: Path) -> None:
    """timm calls layers otherwise now and then: there was a traceback."""
    recipe = tiny_recipe(tiles, tmp_path / "run", steps=2)
    folder = pretrain(recipe) / "checkpoints"
    stored = checkpoint.load_checkpoint(checkpoint.checkpoints(folder)[-1])
    for part in ("method", "optimizer"):
        changed = dict([*stored[part].items()][1:])
        checkpoint.save_checkpoint(folder, 2, stored | {part: changed}, 1)
        with pytest.raises(UserError, match=r"step000000002\.pt does not fit the networks as they are built now \("):
            pretrain(recipe, resume=True)


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_crops_are_given_as_they_are(precision: Any) -> None:
    """Rounded to bfloat16, corners beyond 256 px moved by up to two."""
    seen: list[Batch] = []

    class Watched(nn.Linear):
        def forward(self, batch: Batch) -> Tensor:
            seen.append(batch)
            return super().forward(batch.first.images[:, 0, 0])

    network = Watched(64, 1)
    fabric = launch(MachineConfig("cpu"), precision, 2)
    module, _ = fabric.setup(network, torch.optim.SGD(network.parameters()))
    batch = sample_views(torch.zeros(2, 3, 1000, 1000, dtype=torch.uint8), ViewConfig(size=64))
    assert module(batch).dtype == torch.float32
    for given, view in zip((seen[0].first, seen[0].second), (batch.first, batch.second), strict=True):
        assert given.images.dtype == torch.float32 and torch.equal(given.images, view.images)
        assert torch.equal(given.crop.rows, view.crop.rows) and torch.equal(given.crop.cols, view.crop.cols)
