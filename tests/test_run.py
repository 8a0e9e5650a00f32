"""A run's folder: where it finds its tiles, and what is left of a run that was refused."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colocate.base.errors import UserError
from colocate.data.index import Index
from colocate.training.journal import trackers
from colocate.training.loop import pretrain
from colocate.training.run import prepare_folder
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
    with pytest.raises(UserError):
        pretrain(replace(recipe, **changes))
    left = sorted(path.name for path in run.iterdir()) if run.exists() else None
    assert left == (["notes.txt", "recipe.json"] if there else None)


def test_tensorboard_on_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread dies of it, with a traceback, and the next call raises what is no OSError at times."""
    from tensorboard.compat.tensorflow_stub.io import gfile

    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    (log,) = trackers(("tensorboard",), tmp_path, {})
    log({"loss": 1.0}, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gfile.LocalFileSystem, "append", full)
    monkeypatch.setattr(gfile.LocalFileSystem, "write", full)
    for make in (lambda: log({"loss": 1.0}, 2), lambda: trackers(("tensorboard",), tmp_path / "new", {})):
        with pytest.raises(UserError, match=r"tensorboard was not written \(No space left on device\): make room, and"):
            make()
    assert said == []


@pytest.mark.parametrize(
    ("changes", "noted"), [({"epochs": 3}, True), ({"epochs": 2000}, False), ({"steps": 1}, False)]
)
def test_few_steps_of_few_tiles_are_said(
    changes: dict[str, Any], noted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(write_tiles(tmp_path / "tiles", count=8), tmp_path / "run")
    prepare_folder(tmp_path / "run", replace(recipe, **{"steps": None, **changes}), resume=False)
    assert ("3 epochs of 8 tiles are 3 steps;" in capsys.readouterr().out) == noted
