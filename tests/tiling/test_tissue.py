"""Tissue: what is marked and what is not, and shares of rectangles against counting."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from colocate.base.errors import TileError
from colocate.slides.slide import Slide
from colocate.slides.tissue import Tissue, find_tissue, tissue_mask
from tests.phantom_slide import painted, tissue_slide, write_pyramid

BOX = [[[200, 100], [400, 100], [400, 300], [200, 300], [200, 100]]]
GLASS, PINK = (243, 242, 244), (205, 130, 170)


def scene(*patches: tuple[slice, slice, tuple[int, int, int]]) -> np.ndarray:
    """Glass with a large pink piece of tissue at its left, and patches of other colours; 8 micrometres a pixel."""
    image = np.full((200, 300, 3), GLASS, np.uint8)
    image[40:160, 20:120] = PINK
    for rows, columns, colour in patches:
        image[rows, columns] = colour
    noise = np.random.default_rng(0).integers(-2, 3, image.shape)
    return (image.astype(int) + noise).clip(0, 255).astype(np.uint8)


def share(tissue: Tissue, x: float, y: float, width: float, height: float) -> float:
    return float(tissue.shares(np.array([x], float), np.array([y], float), width, height)[0])


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    """Of 800 x 400 px, in which no tissue is found."""
    return Slide.open(write_pyramid(tmp_path_factory.mktemp("slide") / "slide.tif", painted(800, 400), mpp=4.0))


def test_debris_goes_and_small_holes_close() -> None:
    specks = [(np.s_[row : row + 3], np.s_[200:203], PINK) for row in (20, 90, 170)]
    mask = tissue_mask(scene(*specks, (np.s_[100:105], np.s_[60:65], GLASS)), 8.0)
    assert not mask[:, 150:].any() and mask[100:105, 60:65].all()


def test_bands_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = scene((np.s_[20:180], np.s_[200:260], (30, 140, 60)), (np.s_[90:110], np.s_[:], (228, 196, 212)))
    whole = tissue_mask(picture, 8.0)
    monkeypatch.setattr("colocate.slides.tissue.BAND", 7)
    assert np.array_equal(tissue_mask(picture, 8.0), whole)


def test_a_black_picture_has_none() -> None:
    assert not tissue_mask(np.zeros((50, 50, 3), np.uint8), 8.0).any()


@given(st.integers(0, 10_000), st.floats(-30, 120), st.floats(-30, 120), st.floats(1, 90), st.floats(1, 90))
def test_shares_agree_with_counting(seed: int, x: float, y: float, width: float, height: float) -> None:
    """A mask at a third and a quarter of the slide's pixels, against a fine raster of points."""
    mask = np.random.default_rng(seed).random((25, 40)) < 0.5
    tissue = Tissue(mask, 120, 100)
    columns = x + (np.arange(400) + 0.5) / 400 * width
    rows = y + (np.arange(400) + 0.5) / 400 * height
    inside = ((columns >= 0) & (columns < 120))[None, :] & ((rows >= 0) & (rows < 100))[:, None]
    at = np.ix_((rows / 4).astype(int).clip(0, 24), (columns / 3).astype(int).clip(0, 39))
    assert share(tissue, x, y, width, height) == pytest.approx((mask[at] & inside).mean(), abs=0.02)


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 40), st.floats(-90, 90), st.floats(0.01, 9))
def test_points_agree_with_interpolating_the_whole_mask(seed: int, high: int, wide: int, x: float, step: float) -> None:
    mask = np.random.default_rng(seed).random((high, wide)) < 0.5
    tissue = Tissue(mask, 120, 100)
    columns, rows = x + step * np.arange(37), 90 - x + step * np.arange(23)
    places = np.meshgrid(rows * high / 100 - 0.5, columns * wide / 120 - 0.5, indexing="ij")
    wanted = ndimage.map_coordinates(mask, places, np.float64, order=1, mode="nearest")
    assert np.array_equal(tissue.at(columns, rows) | (abs(wanted - 0.5) < 1e-9), (wanted > 0.5 - 1e-9))


def test_a_slide_of_known_tissue(tmp_path: Path) -> None:
    pixels, _ = tissue_slide(512, mpp=2.0)
    tissue = find_tissue(Slide.open(write_pyramid(tmp_path / "slide.tif", pixels, mpp=2.0)))
    assert share(tissue, 140, 140, 230, 230) > 0.95
    assert share(tissue, 0, 0, 512, 120) == 0


@pytest.mark.parametrize("ignored", [{"name": "Ignore*"}, {"names": ["Ignore*"]}, "Ignore*"])
def test_what_was_drawn_to_be_ignored_is_no_tissue(slide: Slide, tmp_path: Path, ignored: Any) -> None:
    """A fold or a bubble in tissue that is found nowhere else, in whatever order they were drawn."""

    def drawn(left: int, right: int, class_: Any) -> dict[str, Any]:
        box = [[[left, 100], [right, 100], [right, 300], [left, 300], [left, 100]]]
        geometry = {"type": "Polygon", "coordinates": box}
        return {"type": "Feature", "properties": {"classification": class_}, "geometry": geometry}

    features = [drawn(300, 500, ignored), drawn(200, 400, None), drawn(250, 400, None)]
    features.append(drawn(600, 700, {"name": "Region*"}))
    for some in (features, features[::-1]):
        (tmp_path / "own.geojson").write_text(json.dumps(some))
        tissue = find_tissue(slide, tmp_path / "own.geojson")
        assert share(tissue, 200, 100, 100, 200) == share(tissue, 600, 100, 100, 200) == pytest.approx(1, abs=0.01)
        assert share(tissue, 0, 0, 800, 400) == pytest.approx(2 * 100 * 200 / (800 * 400), rel=0.03)


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "F", "P", "RGB", "LA", "RGBA"])
def test_all_that_is_not_black_is_tissue_however_dark(slide: Slide, tmp_path: Path, mode: str) -> None:
    """Label masks: 1 in grey, in the red channel or of a palette is as good as 255."""
    dark: Any = {"I;16": 1, "F": 0.25, "P": 1, "RGB": (1, 0, 0), "LA": (1, 255), "RGBA": (0, 0, 1, 255)}.get(mode, 1)
    mask = Image.new(mode, (80, 40), {"LA": (0, 255), "RGBA": (0, 0, 0, 255)}.get(mode, 0))
    mask.paste(dark, (20, 10, 40, 30))
    if mode == "P":
        mask.putpalette([0, 0, 0, 0, 1, 0])
    mask.save(tmp_path / "own.tif")
    tissue = find_tissue(slide, tmp_path / "own.tif")
    assert share(tissue, 200, 100, 200, 200) == 1 and share(tissue, 0, 0, 800, 400) == 200 * 200 / (800 * 400)


def test_bounds_shift_what_qupath_drew(slide: Slide, tmp_path: Path) -> None:
    (tmp_path / "own.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": BOX}))
    moved = find_tissue(replace(slide, origin=(100, 50)), tmp_path / "own.geojson")
    assert share(moved, 300, 150, 200, 200) > 0.98


def test_a_transparent_mask_is_refused_and_an_opaque_one_is_not(slide: Slide, tmp_path: Path) -> None:
    """White that nobody sees would count as tissue."""
    mask = Image.new("RGBA", (80, 40), (255, 255, 255, 255))
    mask.save(tmp_path / "own.png")
    assert share(find_tissue(slide, tmp_path / "own.png"), 0, 0, 800, 400) == 1
    mask.putpixel((0, 0), (255, 255, 255, 0))
    mask.save(tmp_path / "own.png")
    with pytest.raises(TileError, match=r"own\.png is no mask of tissue .*transparent in places"):
        find_tissue(slide, tmp_path / "own.png")


@pytest.mark.parametrize("content", ["", "{}", '{"type": "FeatureCollection"}', "words"])
def test_a_mask_that_is_none_is_named(slide: Slide, tmp_path: Path, content: str) -> None:
    (tmp_path / "own.geojson").write_text(content)
    with pytest.raises(TileError, match=r"own\.geojson is no mask of tissue"):
        find_tissue(slide, tmp_path / "own.geojson")


@pytest.mark.parametrize("size", [(80, 41), (160, 81), (800, 409), (3, 1), (1, 1), (1600, 800)])
def test_a_mask_may_be_rounded_to_its_pixels(slide: Slide, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size, 255).save(tmp_path / "own.png")
    assert share(find_tissue(slide, tmp_path / "own.png"), 0, 0, 800, 400) == 1


@pytest.mark.parametrize("size", [(80, 80), (40, 80), (800, 420), (420, 200)])
def test_a_mask_of_another_shape_is_refused(slide: Slide, tmp_path: Path, size: tuple[int, int]) -> None:
    """A part of the slide, or the slide turned, which would be stretched to lie anywhere."""
    Image.new("L", size, 255).save(tmp_path / "own.png")
    said = rf"own\.png is {size[0]} x {size[1]} px, not of the shape of the slide \(800 x 400 px\): give a mask of"
    with pytest.raises(TileError, match=said):
        find_tissue(slide, tmp_path / "own.png")
