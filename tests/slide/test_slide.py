"""Regions of slides: the right pixels at the right place and size, and a sentence for what cannot be read."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from colocate.base.errors import TileError, UserError
from colocate.slides import readers
from colocate.slides import slide as slides
from colocate.slides.slide import Slide
from tests.phantom_slide import painted, write_pyramid


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pyramid(tmp_path_factory.mktemp("ramp") / "ramp.tif", painted(640, 384), mpp=0.5)


def test_pixels_of_levels_come_as_they_are(ramp: Path) -> None:
    slide = Slide.open(ramp)
    assert (slide.width, slide.height) == (640, 384) and slide.mpp == pytest.approx(0.5)
    with tifffile.TiffFile(ramp) as file:
        for level, mpp in enumerate((0.5, 1.0, 2.0)):
            whole = file.series[0].levels[level].asarray()
            read = slide.read(64, 32, 40, 30, mpp)
            assert np.array_equal(read, whole[32 >> level :, 64 >> level :][:30, :40])


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.6, 0.8, 1.0, 1.7, 3.1, 7.0])
def test_colour_says_that_pixels_lie_where_they_should(ramp: Path, mpp: float) -> None:
    """The paint is linear, so a resampled pixel has the colour of its own centre."""
    slide = Slide.open(ramp)
    x, y, width, height = 120.5, 90.25, 40, 20
    read = slide.read(x, y, width, height, mpp)
    step = mpp / 0.5
    columns = x + (np.arange(width) + 0.5) * step - 0.5
    rows = y + (np.arange(height) + 0.5) * step - 0.5
    inside = (columns < 600)[None, :] & (rows < 350)[:, None]
    for channel, wanted in enumerate((columns[None, :] / 639 * 255, rows[:, None] / 383 * 255)):
        off = np.abs(read[:, :, channel] - wanted)[inside]
        assert off.max() < 1.5


@pytest.mark.parametrize("mpp", [0.5, 0.65, 1.0, 1.9])
def test_neighbouring_regions_fit_without_a_seam(tmp_path: Path, mpp: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    slide = Slide.open(write_pyramid(tmp_path / "noise.tif", noise, mpp=0.5))
    whole = slide.read(10, 20, 120, 90, mpp).astype(int)
    step = mpp / 0.5
    parts = [[slide.read(10 + x * step, 20 + y * step, 40, 30, mpp) for x in (0, 40, 80)] for y in (0, 30, 60)]
    assert np.abs(np.concatenate([np.concatenate(row, 1) for row in parts]) - whole).max() <= 1


def test_large_reads_go_in_bands(ramp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = Slide.open(ramp)
    whole, whole_of_level = slide.thumbnail(100).astype(int), slide.read(0, 0, 640, 384)
    monkeypatch.setattr(slides, "LARGEST_PX", 10_000)
    read = []
    monkeypatch.setattr(
        slides, "_padded", lambda *region, _as=slides._padded: (read.append(region[4] * region[5]), _as(*region))[1]
    )
    assert np.abs(slide.thumbnail(100) - whole).max() <= 1
    assert np.array_equal(slide.read(0, 0, 640, 384), whole_of_level)
    assert len(read) > 20 and max(read) < 30_000


def test_outside_is_white(ramp: Path) -> None:
    slide = Slide.open(ramp)
    read = slide.read(-10, -10, 30, 30)
    assert (read[:10] == 255).all() and (read[:, :10] == 255).all() and not (read[10:, 10:] == 255).all()
    assert (slide.read(2000, 2000, 8, 8, 1.0) == 255).all()
    assert (slide.read(640, 0, 8, 8) == 255).all()


def test_a_level_within_a_hundredth_is_the_nearest(ramp: Path) -> None:
    slide = Slide.open(ramp)
    assert slide.nearest_mpp(0.503) == pytest.approx(0.5)
    assert slide.nearest_mpp(0.995) == pytest.approx(1.0)
    assert slide.nearest_mpp(0.52) == 0.52


def test_an_ome_tiff_has_its_levels_in_subifds(tmp_path: Path) -> None:
    pixels = painted(300, 200)
    with tifffile.TiffWriter(tmp_path / "pyramid.ome.tif", ome=True) as file:
        options: Any = {"photometric": "rgb", "tile": (64, 64)}
        units = {"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"}
        file.write(pixels, subifds=1, metadata={"axes": "YXS", **units}, **options)
        file.write(pixels[::2, ::2], subfiletype=1, **options)
    slide = Slide.open(tmp_path / "pyramid.ome.tif")
    assert slide.mpp == pytest.approx(0.5) and slide.sizes == ((300, 200), (150, 100))
    assert np.array_equal(slide.read(20, 30, 50, 40, 1.0), pixels[::2, ::2][15:55, 10:60])


def test_a_plain_picture_is_a_slide_once_its_resolution_is_said(tmp_path: Path) -> None:
    for name, options in (("photo.png", {"dpi": (300, 300)}), ("without-tags.tif", {})):
        Image.fromarray(painted(80, 60)).save(tmp_path / name, **options)
        with pytest.raises(TileError, match=rf"{name} does not say its micrometres per pixel: say it with --slide-mpp"):
            Slide.open(tmp_path / name)
        assert np.array_equal(Slide.open(tmp_path / name, 0.5).read(0, 0, 80, 60), painted(80, 60))


@pytest.mark.parametrize("mpp", [-0.5, 0.0, 200.0, float("nan")])
def test_an_impossible_resolution_is_refused(ramp: Path, mpp: float) -> None:
    with pytest.raises(UserError, match="no resolution"):
        Slide.open(ramp, mpp)


def test_what_fills_in_does_not_replace(ramp: Path, tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "unknown.tif", painted(64, 64), mpp=0)
    with pytest.raises(TileError, match="--slide-mpp, or in a table"):
        Slide.open(path)
    assert Slide.open(path, 0.25).mpp == Slide.open(path, unsaid_mpp=0.25).mpp == 0.25
    assert Slide.open(ramp, unsaid_mpp=0.25).mpp == pytest.approx(0.5)
    assert Slide.open(ramp, 1.5, unsaid_mpp=0.25).mpp == 1.5


def test_what_is_no_slide_says_so(tmp_path: Path) -> None:
    (tmp_path / "words.svs").write_text("not a slide at all\n" * 50)
    (tmp_path / "empty.svs").touch()
    for name in ("words.svs", "empty.svs"):
        with pytest.raises(TileError, match=f"{name} is no JPEG, .* and is no slide"):
            Slide.open(tmp_path / name, 0.5)
    with pytest.raises(TileError, match="cannot be opened"):
        Slide.open(tmp_path / "gone.svs")


def test_a_slide_cut_short_is_damaged(shared_data: Path, tmp_path: Path) -> None:
    svs = (shared_data / "slides" / "cmu-1-small-region.svs").read_bytes()
    for share in (0.3, 0.9):
        (tmp_path / "short.svs").write_bytes(svs[: int(len(svs) * share)])
        with pytest.raises(TileError, match=r"short\.svs is (cut short or damaged|no slide)"):
            slide = Slide.open(tmp_path / "short.svs", 0.5)
            slide.read(0, 0, slide.width, slide.height)
        slides._open.clear()


def test_files_stay_few_and_belong_to_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slides, "OPEN", 3)
    while slides._open:
        slides._open.popitem()[1].close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    paths = [write_pyramid(tmp_path / f"{number}.tif", painted(64, 64), 0.5, levels=1) for number in range(12)]
    for path in paths:
        Slide.open(path).read(0, 0, 8, 8)
    assert len(slides._open) == 3
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 7  # two for each of three
    slide = Slide.open(paths[0])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        reads = pool.starmap(slide.read, [(0, 0, 64, 64)] * 4)
    assert all(np.array_equal(read, painted(64, 64)) for read in reads)


def test_a_file_that_was_replaced_is_read_as_it_is_now(tmp_path: Path) -> None:
    """In one session: the resolution was missing, then the picture was another."""
    path = write_pyramid(tmp_path / "a.tif", painted(64, 64), mpp=0)
    with pytest.raises(TileError, match="does not say"):
        Slide.open(path)
    slide = Slide.open(write_pyramid(path, painted(64, 64), 0.5))
    assert slide.mpp == pytest.approx(0.5) and np.array_equal(slide.read(0, 0, 64, 64), painted(64, 64))
    write_pyramid(path, 255 - painted(96, 80), 0.5)
    assert np.array_equal(Slide.open(path).read(0, 0, 96, 80), 255 - painted(96, 80))
    with pytest.raises(TileError, match=r"a\.tif was replaced by a picture of another size: open it again"):
        slide.read(0, 0, 64, 64)


@pytest.mark.parametrize("size", [(1003, 777), (1021, 642)])
def test_levels_of_odd_sizes_are_read_as_they_are(tmp_path: Path, size: tuple[int, int]) -> None:
    """Such a level is no exact fraction of the finest; its pixels are taken where a tile's level0 place is nearest."""
    slide = Slide.open(write_pyramid(tmp_path / "odd.tif", painted(*size), mpp=0.5))
    with tifffile.TiffFile(slide.path) as file:
        for level, mpp in enumerate(slide.level_mpps):
            whole = file.series[0].levels[level].asarray().astype(int)
            for x, y in ((0, 0), (101, 203), (250, 307)):
                read = slide.read(x, y, 40, 30, mpp).astype(int)
                column, row = round(x / 2**level - 0.01), round(y / 2**level - 0.01)
                around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if min(row + j, column + i) >= 0]
                near = [whole[row + j :, column + i :][:30, :40] for i, j in around]
                assert min(np.abs(read - part).max() for part in near) <= 1


def test_pieces_too_large_to_unpack_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "one.tif", painted(300, 200), photometric="rgb", rowsperstrip=200)
    monkeypatch.setattr(readers, "LARGEST_CHUNK_PX", 1000)
    with pytest.raises(TileError, match="convert it to a tiled TIFF"):
        Slide.open(tmp_path / "one.tif", 0.5)
