"""Slides given to pretraining: told from tiles, cut without shards, and read as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from colocate.base.errors import UserError
from colocate.data.index import Index
from colocate.data.inspect import inspect
from colocate.slides import listing as on_the_fly
from colocate.slides.listing import are_slides, find_slides
from colocate.slides.settings import TilingConfig
from colocate.slides.slide import Slide
from colocate.slides.tile import tile
from colocate.training.loop import pretrain
from tests.phantom_slide import tissue_slide, write_pyramid, write_slides
from tests.tiny import tiny_recipe, write_tiles


def test_slides_are_told_from_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = write_tiles(tmp_path / "tiles", 2)
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(tmp_path / "tile.tif")
    large = write_pyramid(tmp_path / "large" / "slide.tif", tissue_slide(256, 1.0, 0)[0], 1.0)
    (tmp_path / "svs" / "sub").mkdir(parents=True)
    (tmp_path / "svs" / "sub" / "a.svs").touch()
    (tmp_path / "tiles.csv").write_text("path\ntiles/00.png\n")
    (tmp_path / "slides.csv").write_text("path\nsvs/sub/a.svs\n")
    (tmp_path / "other.csv").write_text("file\nx\n")
    assert not any(are_slides(path) for path in (tiles, tmp_path / "tile.tif", large, tmp_path / "gone"))
    assert not any(are_slides(tmp_path / name) for name in ("tiles.csv", "other.csv"))
    assert all(are_slides(tmp_path / name) for name in ("svs", "svs/sub/a.svs", "slides.csv"))
    monkeypatch.setattr(on_the_fly, "LONGEST_TILE_PX", 200)
    assert are_slides(large) and are_slides(large.parent)
    with pytest.raises(UserError, match="holds slides, not tiles: look at them with colocate view"):
        inspect(large.parent)
    tile(find_slides([large]), tmp_path / "cut", TilingConfig(mpp=1.0, size=64, min_sharpness=0), manifest_only=True)
    assert not are_slides(tmp_path / "cut" / "manifest.parquet")


def test_pretraining_reads_tiles_from_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_the_fly, "LONGEST_TILE_PX", 200)
    write_slides(tmp_path / "slides", 2, 256)
    tiling = TilingConfig(mpp=1.0, size=64, min_sharpness=0)
    recipe = tiny_recipe(tmp_path / "slides", tmp_path / "run", tiling=tiling)
    run = pretrain(replace(recipe, steps=2))
    index = Index.open(run / "tiles.arrow")
    assert index.kind == "slides" and len(index) == 8 and set(index.mpp.tolist()) == {1.0}
    x, y = (index.table[name][6].as_py() for name in ("x", "y"))
    wanted = Slide.open(tmp_path / "slides" / "s1.tif").read(x, y, 64, 64)
    assert np.array_equal(index.read(6).permute(1, 2, 0).numpy(), wanted)
    pretrain(replace(recipe, steps=2), resume=True)
