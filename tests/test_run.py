"""Where a run finds its tiles: in their folder, wherever that lies now, or in a cache, which changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from colocate.data import Index
from colocate.errors import UserError
from colocate.recipe import MachineConfig
from colocate.train import pretrain
from tests.test_train import same_run
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


def test_a_cache_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(write_tiles(tmp_path / "tiles"), tmp_path / "plain")
    pretrain(recipe)
    assert "the cache" not in capsys.readouterr().err
    for number, where in enumerate(("memory", str(tmp_path / "cache"), str(tmp_path / "cache"))):
        machine = replace(recipe.machine, cache=where, cache_gb=0.01)
        pretrain(replace(recipe, machine=machine, out=str(tmp_path / str(number))))
        same_run(tmp_path / "plain", tmp_path / str(number))
        assert capsys.readouterr().err.count("the cache holds") == 1


@pytest.mark.parametrize(("cache", "gb"), [(None, 3), ("", 3), ("memory", 0), ("memory", -1), ("memory", float("nan"))])
def test_what_a_cache_may_take(cache: str | None, gb: float) -> None:
    with pytest.raises(UserError, match="cache_gb is a positive number, and goes with --cache"):
        MachineConfig(cache=cache, cache_gb=gb)
