"""Two real slides, cut at 0.5 and 1.0 micrometres per pixel, against the whole picture read by tifffile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import tifffile
from PIL import Image

from colocate.data.decode import decode
from colocate.slides.listing import find_slides
from colocate.slides.settings import TilingConfig
from colocate.slides.slide import Slide
from colocate.slides.tile import tile
from colocate.slides.tissue import find_tissue

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "least"), [("cmu-1-small-region.svs", 0.93), ("her2st_C2_pyramid.tif", 0.96)])
def test_tissue_is_where_it_was_drawn_by_hand(shared_data: Path, name: str, least: float) -> None:
    """The overlap with an outline that was drawn by hand (docs/results/slides.md)."""
    slide = Slide.open(shared_data / "slides" / name)
    drawn = find_tissue(slide, (ROOT / "benchmarks" / "tissue" / name).with_suffix(".geojson")).mask
    found = find_tissue(slide).mask
    assert (drawn & found).sum() > least * (drawn | found).sum()


@pytest.mark.slow
@pytest.mark.parametrize("mpp", [0.5, 1.0])
def test_tiles_agree_with_an_independent_read_of_the_whole_slide(shared_data: Path, tmp_path: Path, mpp: float) -> None:
    """A tile is a crop of the whole picture resized once; off by the JPEG's loss and the rounding of its place."""
    done = tile(find_slides([shared_data / "slides"]), tmp_path, TilingConfig(mpp=mpp, quality=100))
    assert done.failed == 0 and done.empty == 0
    table = parquet.read_table(tmp_path / "manifest.parquet")
    for path, own in (("cmu-1-small-region.svs", 0.499), ("her2st_C2_pyramid.tif", 0.686)):
        whole = Image.fromarray(tifffile.imread(shared_data / "slides" / path, key=0))
        rows = [row for row in table.to_pylist() if row["path"].endswith(path)]
        compared = 0
        for row in rows[:: max(1, len(rows) // 12)]:
            step = row["mpp"] / own
            side = 256 * step
            around = 8  # so that the whole picture's neighbourhood counts, as it would had it been resized at once
            box = (row["x"] - around * step, row["y"] - around * step)
            box = (*box, row["x"] + side + around * step, row["y"] + side + around * step)
            if min(box[:2]) < 0 or box[2] > whole.width or box[3] > whole.height:
                continue
            wanted = np.asarray(whole.resize((272, 272), Image.Resampling.BICUBIC, box))[8:-8, 8:-8]
            with (tmp_path / row["shard"]).open("rb") as shard:
                shard.seek(row["offset"])
                found = decode(shard.read(row["bytes"]), "tile").permute(1, 2, 0).numpy()
            off = np.abs(found.astype(int) - wanted.astype(int))
            assert off.mean() < 1  # of 255
            assert np.abs(found.mean((0, 1)) - wanted.mean((0, 1))).max() < 0.5
            compared += 1
            shifted = np.abs(found[:, 2:].astype(int) - wanted[:, :-2].astype(int)).mean()
            assert shifted > 2 * off.mean()
        assert compared > 3
