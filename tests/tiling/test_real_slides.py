"""Two real slides, cut at 0.5 and 1.0 micrometres per pixel, against the whole picture read by tifffile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import tifffile
from PIL import Image

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
@pytest.mark.parametrize(("name", "own"), [("cmu-1-small-region.svs", 0.499), ("her2st_C2_pyramid.tif", 0.686)])
def test_tiles_agree_with_an_independent_read_of_the_whole_slide(
    shared_data: Path, tmp_path: Path, name: str, own: float
) -> None:
    """A tile is a crop of the whole picture resized once; off by the rounding of its place."""
    path, around = shared_data / "slides" / name, 8  # px more, as if the whole picture had been resized at once
    whole = Image.fromarray(tifffile.imread(path, key=0))
    for mpp in (0.5, 1.0):
        out = tmp_path / str(mpp)
        tile(find_slides([path]), out, TilingConfig(mpp=mpp, min_sharpness=0), manifest_only=True)
        rows, compared = parquet.read_table(out / "manifest.parquet").to_pylist(), 0
        for row in rows[:: max(1, len(rows) // 8)]:
            step = row["mpp"] / own
            left, top = (row[axis] - around * step for axis in "xy")
            box = (left, top, left + 272 * step, top + 272 * step)
            if min(box) < 0 or box[2] > whole.width or box[3] > whole.height:
                continue
            wanted = np.asarray(whole.resize((272, 272), Image.Resampling.BICUBIC, box))[8:-8, 8:-8].astype(int)
            found = Slide.open(path).read(row["x"], row["y"], 256, 256, row["mpp"]).astype(int)
            off = np.abs(found - wanted).mean()
            assert off < 1 and np.abs((found - wanted).mean((0, 1))).max() < 0.5  # of 255
            assert np.abs(found[:, 2:] - wanted[:, :-2]).mean() > 2 * off
            compared += 1
        assert compared > 3
