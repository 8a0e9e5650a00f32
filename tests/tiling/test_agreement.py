"""What is said of tiles and masks of other tools (benchmarks/peers/slides/agreement.py), on ones that are known."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from benchmarks.peers.slides.agreement import of_masks, of_tiles
from benchmarks.slides import write_slide


def tile_of(slide: Path, x: float, y: float, side: int, size: int) -> Image.Image:
    """A tile as another tool would read it: by OpenSlide, resized from more than itself."""
    step, around = side / size, 16
    corner = (round(x - around * step), round(y - around * step))
    region = openslide.OpenSlide(slide).read_region(corner, 0, (9 * side, 9 * side))
    box = (around * step, around * step, around * step + side, around * step + side)
    return region.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide") / "slide.tif", 1024)


@pytest.mark.slow
@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_true_tile_differs_by_nothing_and_a_moved_one_is_seen(
    slide: Path, tmp_path: Path, side: int, kind: str
) -> None:
    for off in (0, 1, -2):
        folder = tmp_path / f"{kind}{off}"
        folder.mkdir()
        file = io.BytesIO()
        tile_of(slide, 192 + off * side / 64, 288, side, 64).save(file, kind)
        (folder / "0.tile").write_bytes(file.getvalue())
        (folder / "0.json").write_text(json.dumps({"x": 192, "y": 288, "side": side}))
        found = of_tiles(slide, folder)
        assert found["tile_mpp"] == pytest.approx(0.5 * side / 64)
        assert (found["jpeg_levels"] > 0) == (kind == "JPEG")
        if (off and side == 64) or off == -2:  # whole pixels of the slide
            assert found["placed"] == 0 and found["difference_levels"] > 1
        if not off:
            assert found["placed"] == 1 and found["difference_levels"] == 0


def test_the_overlap_of_a_mask_is_counted_where_it_counts(tmp_path: Path) -> None:
    tissue = np.zeros((40, 60), bool)
    tissue[10:30, 10:30] = True
    mask, counts = np.roll(tissue, 10, axis=1), np.ones_like(tissue)
    Image.fromarray(np.kron(mask, np.ones((2, 2), bool))).save(tmp_path / "mask.png")  # of twice the pixels
    assert of_masks(tmp_path / "mask.png", tissue, counts) == {
        "dice": 0.5,
        "iou": 0.3333,
        "coverage": 0.5,
        "precision": 0.5,
    }
    counts[:, 30:] = False
    assert of_masks(tmp_path / "mask.png", tissue, counts)["precision"] == 1
