"""The picture of a slide's features: like features in like colours, at their places, in a small file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from colocate.prediction.features import GREY, draw_components
from colocate.slides.slide import Slide
from tests.phantom_slide import write_pyramid


def drawn(tmp_path: Path, slide: Slide, coords: np.ndarray, features: np.ndarray, side: int) -> np.ndarray:
    """The half of the picture that shows features."""
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["features"] = features.astype(np.float32)
        file["coords"] = coords.astype(np.int64)
        file["coords"].attrs.update({"patch_size": side, "mpp": slide.mpp})
    draw_components(tmp_path / "features.h5", slide, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size < 300_000
    with Image.open(tmp_path / "picture.png") as image:
        assert max(image.size) <= 1600
        pixels = np.asarray(image.convert("RGB"))
    return pixels[:, (pixels.shape[1] + 10) // 2 :]


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)  # noise, which PNG cannot make small
    return Slide.open(write_pyramid(tmp_path / "slide.tif", pixels, 0.5))


def test_features_show_at_their_places(tmp_path: Path, slide: Slide) -> None:
    coords = np.array([(x, y) for y in range(160, 480, 32) for x in range(0, 640, 32)])
    rng = np.random.default_rng(1)
    kinds = rng.normal(size=(2, 16))
    features = kinds[(coords[:, 0] >= 320).astype(int)] + 0.01 * rng.normal(size=(len(coords), 16))
    shown = drawn(tmp_path, slide, coords, features, 32).astype(int)
    high, wide = shown.shape[:2]
    assert np.abs(shown[: high // 3 - 1] - GREY).max() < 12  # nothing was computed there
    below = shown[high // 3 + 1 :, :, 0]  # the first component tells the two kinds apart
    left, right = below[:, : wide // 2 - 1], below[:, wide // 2 + 1 :]
    assert abs(left.mean() - right.mean()) > 150
    assert left.std() < 40 and right.std() < 40


def test_more_features_than_pixels_are_averaged(tmp_path: Path) -> None:
    slide = Slide.open(write_pyramid(tmp_path / "slide.tif", np.full((1200, 1600, 3), 240, np.uint8), 0.5))
    coords = np.stack(np.meshgrid(np.arange(1600), np.arange(1200)), -1).reshape(-1, 2)
    dots = (coords.sum(1) % 2).astype(float)  # a chessboard, too fine to be seen
    shown = drawn(tmp_path, slide, coords, np.stack([dots, 1 - dots, 0 * dots + 0.1], 1), 1)[:, :, 0].astype(int)
    assert shown.shape == (592, 790)
    assert np.abs(shown[5:-5, 5:-5] - 127).max() < 90 and abs(shown.mean() - 127) < 15
