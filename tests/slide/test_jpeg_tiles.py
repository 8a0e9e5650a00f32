"""JPEG tiles unpacked without OpenSlide are the pixels that it shows."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from jaxtyping import UInt8
from PIL import Image

from colocate.base.errors import TileError
from colocate.slides import tiff
from colocate.slides.readers import open_reader
from colocate.slides.tiff import Tiff

SIZES = ((700, 500), (350, 250), (175, 125))


def write(path: Path, **options: object) -> Path:
    """A JPEG pyramid of odd sizes: the last tile of each row and column is in part beyond the picture."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level, (width, height) in enumerate(SIZES):
            pixels = np.random.default_rng(level).integers(0, 256, (height // 5, width // 5, 3), np.uint8)
            pixels = pixels.repeat(5, 0).repeat(5, 1)
            file.write(pixels, tile=(128, 112), photometric="rgb", compression="jpeg", subfiletype=level > 0, **options)  # pyright: ignore[reportArgumentType]
    return path


def regions(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Tiles as they are, single pixels, the whole, and regions anywhere."""
    rng = np.random.default_rng(0)
    found = [(0, 0, 112, min(128, height)), (0, 0, width, height), (width - 1, height - 1, 1, 1)]
    for _ in range(40):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        found.append((x, y, int(rng.integers(1, width - x + 1)), int(rng.integers(1, height - y + 1))))
    return found


def by_openslide(path: Path, level: int, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    with openslide.OpenSlide(path) as slide:
        factor = slide.level_downsamples[level]
        read = slide.read_region((round(x * factor), round(y * factor)), level, (width, height))
    return np.asarray(read.convert("RGB"))


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
def test_pixels_are_those_of_openslide(tmp_path: Path, subsampling: tuple[int, int]) -> None:
    path = write(tmp_path / "jpeg.tif", subsampling=subsampling)
    reader = open_reader(path)
    assert isinstance(reader, Tiff) and reader.sizes == SIZES
    for level, size in enumerate(SIZES):
        whole = tifffile.imread(path, key=level)
        for x, y, width, height in regions(*size):
            read = reader.read(level, x, y, width, height)
            assert np.array_equal(read, whole[y : y + height, x : x + width])
            if level == 0:  # between its places on other levels OpenSlide interpolates
                assert np.array_equal(read, by_openslide(path, level, x, y, width, height))


@pytest.mark.parametrize("name", ["cmu-1-small-region.svs", "her2st_C2_pyramid.tif"])
def test_real_slides_show_what_openslide_shows(shared_data: Path, name: str) -> None:
    path = shared_data / "slides" / name
    reader = open_reader(path)
    assert isinstance(reader, Tiff)
    for level, (width, height) in enumerate(reader.sizes):
        x, y, wide, high = width // 3, height // 3, min(width // 2, 700), min(height // 2, 700)
        read = reader.read(level, x, y, wide, high)
        assert np.array_equal(read, tifffile.imread(path, key=level)[y : y + high, x : x + wide])
        if level == 0:
            assert np.array_equal(read, by_openslide(path, level, x, y, wide, high))


@pytest.mark.parametrize("description", ["", "Aperio Image|MPP = 0.5"])
def test_holes_are_what_openslide_makes_of_them(tmp_path: Path, description: str) -> None:
    path = write(tmp_path / "holes.tif", description=description, metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        counts = file.pages[0].tags["TileByteCounts"]  # pyright: ignore[reportAttributeAccessIssue]
        counts.overwrite([0, *counts.value[1:]])
    reader = open_reader(path)
    assert isinstance(reader, Tiff) == (not description)  # Aperio's are filled from coarser levels
    with openslide.OpenSlide(path) as slide:
        region = slide.read_region((0, 0), 0, (200, 200))
    shown = Image.alpha_composite(Image.new("RGBA", region.size, "white"), region).convert("RGB")
    assert np.array_equal(reader.read(0, 0, 0, 200, 200), np.asarray(shown))


@pytest.mark.parametrize("broken", ["beyond the end", "no JPEG"])
def test_broken_tiles_are_damage_and_others_are_read(tmp_path: Path, broken: str) -> None:
    path = write(tmp_path / "jpeg.tif")
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages.first
        if broken == "beyond the end":
            tag = page.tags["TileOffsets"]
            tag.overwrite([path.stat().st_size - page.databytecounts[0] // 2, *tag.value[1:]])
        else:
            file.filehandle.seek(page.dataoffsets[0])
            file.filehandle.write(bytes(page.databytecounts[0]))
    reader = open_reader(path)
    assert isinstance(reader, Tiff)
    with pytest.raises(TileError, match=r"jpeg\.tif is cut short or damaged"):
        reader.read(0, 0, 0, 10, 10)
    assert reader.read(0, 300, 300, 10, 10).shape == (10, 10, 3)


def test_few_unpacked_tiles_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tiff._LastUsed(5 * 128 * 112 * 3)
    monkeypatch.setattr(tiff, "_unpacked", kept)
    readers = [open_reader(write(tmp_path / f"{number}.tif")) for number in range(2)]
    wholes = [reader.read(0, 0, 0, *SIZES[0]) for reader in readers]
    assert len(kept.tiles) == 5 and kept.bytes == sum(tile.nbytes for tile in kept.tiles.values())
    again = [reader.read(0, 0, 0, *SIZES[0]) for reader in readers]
    assert np.array_equal(wholes, again)
    with pytest.raises(ValueError, match="read-only"):
        readers[0].read(0, 0, 0, 112, 128)[:] = 0


def test_threads_may_share_it() -> None:
    """Dask's workers have several: what is kept stays what was unpacked, and its bytes are counted right."""
    kept = tiff._LastUsed(10 * 300)

    def work(thread: int) -> bool:
        rng = np.random.default_rng(thread)
        numbers = rng.integers(0, 40, 3000).tolist()
        return all(kept.get(n, lambda n=n: np.full((10, 10, 3), n, np.uint8))[0, 0, 0] == n for n in numbers)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(before)
    assert kept.bytes == sum(tile.nbytes for tile in kept.tiles.values()) <= 3000
