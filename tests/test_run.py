"""Where a run finds its tiles: in their folder, wherever that lies now."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.data.index import Index
from colocate.pretrain.loop import pretrain
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
