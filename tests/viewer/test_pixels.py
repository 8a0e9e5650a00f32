"""What is seen is what is trained on: tiles of the deep zoom against the slide's own pixels, at every level."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from colocate.base.errors import TileError
from colocate.slides.slide import Slide
from colocate.slides.tissue import Tissue
from colocate.viewer.pyramid import BORDER, DARK, OUTSIDE, TILE_PX, Region, draw_tissue, finest, region
from tests.phantom_slide import painted, write_pyramid
from tests.viewer.conftest import client_of, decoded


def tiles_of(width: int, height: int, level: int) -> list[tuple[int, int]]:
    """Columns and rows that a level needs, counted one by one."""
    scale = 2 ** (finest(width, height) - level)
    columns = [c for c in range(99) if c * TILE_PX * scale < width]
    rows = [r for r in range(99) if r * TILE_PX * scale < height]
    return [(c, r) for r in rows for c in columns]


def packed(pixels: np.ndarray) -> np.ndarray:
    """What a JPEG leaves of pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, subsampling=0)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(
    ("width", "height", "levels"), [(1300, 1101, 3), (1025, 400, 1), (512, 512, 1), (700, 3000, 2)]
)
def test_every_tile_of_every_level_has_the_slides_pixels(width: int, height: int, levels: int, tmp_path: Path) -> None:
    pixels = painted(width, height)
    path = write_pyramid(tmp_path / "slides" / "slide.tif", pixels, 0.5, levels)
    slide, client = Slide.open(path), client_of([path])
    top = client.get("/api/slides/0").json()["levels"]
    assert 2 ** (top - 1) * TILE_PX < max(width, height) <= 2**top * TILE_PX or top == 0
    for level in range(top + 1):
        scale = 2 ** (top - level)
        wide, high = math.ceil(width / scale), math.ceil(height / scale)
        seen = np.full((high, wide, 3), 0, np.uint8)
        for column, row in tiles_of(width, height, level):
            tile = decoded(client.get(f"/api/slides/0/pixels/{level}/{column}_{row}"))
            left, up = column * TILE_PX, row * TILE_PX
            own = slide.read(left * scale, up * scale, tile.shape[1], tile.shape[0], slide.mpp * scale)
            assert np.array_equal(tile, packed(own))
            seen[up : up + TILE_PX, left : left + TILE_PX] = tile
        assert client.get(f"/api/slides/0/pixels/{level}/{math.ceil(wide / TILE_PX)}_0").status_code == 404
        small = Image.fromarray(pixels).resize((wide, high), Image.Resampling.BICUBIC)
        assert np.abs(seen.astype(int) - np.asarray(small)).mean() < 5  # and is whole, in its place


def test_tiles_cover_a_slide_once(tmp_path: Path) -> None:
    for width, height in [(1, 1), (511, 513), (5000, 3), (4097, 2048)]:
        for level in range(finest(width, height) + 1):
            area = 0.0
            for column, row in tiles_of(width, height, level):
                place = region(width, height, level, column, row)
                assert (place.x, place.y) == (column * TILE_PX * place.scale, row * TILE_PX * place.scale)
                wide = min(place.width * place.scale, width - place.x)
                area += wide * min(place.height * place.scale, height - place.y)
            assert area == width * height
    with pytest.raises(LookupError):
        region(1000, 1000, -1, 0, 0)


def test_tissue_is_what_the_mask_says(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    tissue = Tissue(dice.random((13, 21)) < 0.5, 1000, 619)
    for place in (Region(0, 0, 125, 78, 8), Region(200, 100, 60, 50, 1), Region(500, 300, 250, 160, 2)):
        drawn = draw_tissue(tissue, place)
        assert drawn.shape == (place.height, place.width, 4) and (drawn[..., :3] == DARK).all()
        for row in range(0, place.height, 3):
            for col in range(0, place.width, 3):
                x, y = place.x + (col + 0.5) * place.scale, place.y + (row + 0.5) * place.scale
                inside = tissue.mask[min(int(y * 13 / 619), 12), min(int(x * 21 / 1000), 20)]
                assert drawn[row, col, 3] in (0 if inside else OUTSIDE, BORDER)
        assert (drawn[..., 3] == BORDER).mean() < 0.5


def test_tissue_of_the_slide_is_shown(client: TestClient) -> None:
    drawn = decoded(client.get("/api/slides/0/tissue/0/0_0"))
    high, wide = drawn.shape[:2]
    assert drawn[high // 2, wide // 2, 3] == 0 and drawn[3, 3, 3] == OUTSIDE


def test_a_damaged_slide_is_a_sentence_and_the_others_are_shown(tmp_path: Path) -> None:
    good = write_pyramid(tmp_path / "good.tif", painted(300, 200), 0.5, 1)
    (tmp_path / "bad.tif").write_bytes(good.read_bytes()[:60])
    write_pyramid(tmp_path / "unsaid.tif", painted(300, 200), 0, 1)
    client = client_of([tmp_path])
    names = {slide["name"]: slide["id"] for slide in client.get("/api/collection").json()["slides"]}
    for name, says in (("bad", "bad.tif"), ("unsaid", "does not say its micrometres per pixel")):
        for path in ("", "/thumbnail", "/pixels/0/0_0", "/tissue/0/0_0"):
            answer = client.get(f"/api/slides/{names[name]}{path}")
            assert answer.status_code == 422 and says in answer.json()["error"]
    assert decoded(client.get(f"/api/slides/{names['good']}/thumbnail")).shape == (160, 240, 3)


def test_a_slide_is_opened_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pyramid(tmp_path / "slide.tif", painted(300, 200), 0.5, 1)
    opened = []
    monkeypatch.setattr(
        "colocate.slides.slide.open_reader", lambda path: opened.append(path) or (_ for _ in ()).throw(TileError("x"))
    )
    client = client_of([tmp_path])
    assert client.get("/api/collection").status_code == 200 and opened == []
    assert client.get("/api/slides/0").status_code == 422 and len(opened) == 1
