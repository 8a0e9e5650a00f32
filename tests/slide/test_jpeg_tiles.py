"""JPEG tiles unpacked by us are the pixels that OpenSlide shows."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from jaxtyping import UInt8

from colocate.base.errors import TileError
from colocate.slides import readers as jpeg_tiles
from colocate.slides.readers import JpegTiles, open_reader

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
    assert isinstance(reader, JpegTiles) and reader.sizes == SIZES
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
    assert isinstance(reader, JpegTiles)
    for level, (width, height) in enumerate(reader.sizes):
        x, y, wide, high = width // 3, height // 3, min(width // 2, 700), min(height // 2, 700)
        read = reader.read(level, x, y, wide, high)
        assert np.array_equal(read, tifffile.imread(path, key=level)[y : y + high, x : x + wide])
        if level == 0:
            assert np.array_equal(read, by_openslide(path, level, x, y, wide, high))


def test_a_level_with_holes_is_left_to_openslide(tmp_path: Path) -> None:
    path = write(tmp_path / "holes.tif")
    with tifffile.TiffFile(path, mode="r+") as file:
        counts = file.pages[0].tags["TileByteCounts"]  # pyright: ignore[reportAttributeAccessIssue]
        counts.overwrite([0, *counts.value[1:]])
    reader = open_reader(path)
    assert not isinstance(reader, JpegTiles)
    assert (reader.read(0, 0, 0, 112, 128) == 255).all() and not (reader.read(0, 112, 0, 112, 128) == 255).all()


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
    assert isinstance(reader, JpegTiles)
    with pytest.raises(TileError, match=r"jpeg\.tif is cut short or damaged"):
        reader.read(0, 0, 0, 10, 10)
    assert reader.read(0, 300, 300, 10, 10).shape == (10, 10, 3)


def test_few_unpacked_tiles_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = jpeg_tiles._LastUsed(5 * 128 * 112 * 3)
    monkeypatch.setattr(jpeg_tiles, "_unpacked", kept)
    readers = [open_reader(write(tmp_path / f"{number}.tif")) for number in range(2)]
    wholes = [reader.read(0, 0, 0, *SIZES[0]) for reader in readers]
    assert len(kept.tiles) == 5 and kept.bytes == sum(tile.nbytes for tile in kept.tiles.values())
    again = [reader.read(0, 0, 0, *SIZES[0]) for reader in readers]
    assert np.array_equal(wholes, again)
    with pytest.raises(ValueError, match="read-only"):
        readers[0].read(0, 0, 0, 112, 128)[:] = 0


def test_threads_may_share_it() -> None:
    """Dask's workers have several: what is kept stays what was unpacked, and its bytes are counted right."""
    kept = jpeg_tiles._LastUsed(10 * 300)

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


def test_levels_of_one_size_are_left_to_openslide(tmp_path: Path) -> None:
    """Planes of a stack: OpenSlide knows which is which."""
    path = tmp_path / "stack.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for grey in (50, 150):
            pixels = np.full((256, 256, 3), grey, np.uint8)
            file.write(pixels, tile=(128, 128), photometric="rgb", compression="jpeg", subfiletype=int(grey > 50))
    assert not isinstance(open_reader(path), JpegTiles)
