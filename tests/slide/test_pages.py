"""Of a file that holds several pictures one is read, with its own resolution; hostile ones end in one sentence."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zlib
from itertools import product
from pathlib import Path
from struct import pack
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from openslide import OpenSlide
from PIL import Image

from colocate.base.errors import TileError
from colocate.data.decode import decode
from colocate.slides.slide import Slide
from colocate.slides.tiff import Tiff
from tests.phantom_slide import painted

MAIN, LABEL, THUMB = painted(200, 120), painted(64, 64), painted(50, 30)
LAYOUTS: dict[str, dict[str, Any]] = {"tiled": {"tile": (32, 48)}, "strips": {"rowsperstrip": 16}}
ORDERS = {"main first": (MAIN, LABEL, THUMB), "main last": (LABEL, THUMB, MAIN), "label first": (LABEL, MAIN, THUMB)}


def at(pixels: np.ndarray) -> float:
    """The micrometres per pixel that a picture gets in these files."""
    return {MAIN.shape: 0.5, LABEL.shape: 12.0, THUMB.shape: 2.0}[pixels.shape]


@pytest.mark.parametrize(("order", "layout", "kind"), [*product(ORDERS, LAYOUTS, ("plain", "OME"))])
def test_the_largest_picture_and_its_own_resolution_are_read(
    tmp_path: Path, order: str, layout: str, kind: str
) -> None:
    path = tmp_path / "several.tif"
    with tifffile.TiffWriter(path, ome=kind == "OME") as file:
        for pixels in ORDERS[order]:
            mpp = at(pixels)
            if kind == "OME":
                facts: Any = {"metadata": {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}}
            else:
                facts = {"resolution": (10_000 / mpp, 10_000 / mpp), "resolutionunit": 3, "metadata": None}
            file.write(pixels, photometric="rgb", subfiletype=int(pixels is not MAIN), **facts, **LAYOUTS[layout])
    slide = Slide.open(path)
    assert slide.mpp == pytest.approx(0.5) and slide.sizes == ((200, 120), (50, 30))  # a label is no level
    assert np.array_equal(slide.read(0, 0, 200, 120), MAIN)
    assert np.array_equal(slide.read(0, 0, 50, 30, 2.0), THUMB)
    assert np.array_equal(decode(path.read_bytes(), "t").permute(1, 2, 0).numpy(), MAIN)


def test_a_small_region_is_read_and_not_its_larger_macro(tmp_path: Path) -> None:
    """As ImageScope saves a region of a slide: in tiles, its thumbnail and the slide's macro in strips."""
    path = tmp_path / "region.svs"
    said = "Aperio Image Library v11.2.1\r\n200x120 (32x48)|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(path) as file:
        for pixels, layout in ((MAIN, "tiled"), (THUMB, "strips"), (255 - painted(640, 215), "strips")):
            file.write(
                pixels, photometric="rgb", compression="jpeg", description=said, metadata=None, **LAYOUTS[layout]
            )
    slide = Slide.open(path)
    assert slide.sizes == ((200, 120),) == OpenSlide(path).level_dimensions
    assert np.abs(slide.read(0, 0, 200, 120).astype(int) - MAIN).mean() < 5  # of JPEG
    with tifffile.TiffWriter(tmp_path / "other.tif") as file:  # another program's, whose thumbnail comes first
        for pixels, layout in ((THUMB, "tiled"), (MAIN, "strips")):
            file.write(pixels, photometric="rgb", metadata=None, **LAYOUTS[layout])
    assert np.array_equal(Slide.open(tmp_path / "other.tif", 0.5).read(0, 0, 200, 120), MAIN)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dpi", [72, 300, 1200])
def test_how_to_print_is_no_resolution(tmp_path: Path, dpi: int, layout: str) -> None:
    path = tmp_path / "print.tif"
    tifffile.imwrite(path, MAIN, photometric="rgb", resolution=(dpi, dpi), resolutionunit="INCH", **LAYOUTS[layout])
    with pytest.raises(TileError, match=r"print\.tif says .* which cannot be .*dots per inch.*--slide-mpp"):
        Slide.open(path)
    assert Slide.open(path, unsaid_mpp=0.25).mpp == 0.25 == Slide.open(path, 0.25).mpp


def test_a_stack_of_many_pages_says_so(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "many.tif") as file:
        for _ in range(120):
            file.write(THUMB, photometric="rgb", metadata=None)
    with pytest.raises(TileError, match=r"many\.tif holds over 100 pages.*: save the one that is meant"):
        Slide.open(tmp_path / "many.tif")


@pytest.mark.parametrize("said", ["0.2521", "0,2521", "2.521e-1", "2.521E-01"])
def test_aperio_writes_its_resolution_in_several_ways(tmp_path: Path, said: str) -> None:
    description = f"Aperio Image Library v12.0.15\r\n200x120 |AppMag = 40|MPP = {said}|Left = 25.69"
    tifffile.imwrite(tmp_path / "a.tif", MAIN, photometric="rgb", tile=(32, 48), description=description, metadata=None)
    assert Tiff(tmp_path / "a.tif").mpp == (0.2521, 0.2521)


@pytest.mark.parametrize(("unit", "factor"), [("\u00b5m", 1), ("\u03bcm", 1), ("um", 1), ("nm", 1e-3), ("Å", 1e-4)])
def test_ome_names_its_units_in_several_ways(tmp_path: Path, unit: str, factor: float) -> None:
    sides = {"PhysicalSizeX": 0.5 / factor, "PhysicalSizeY": 0.5 / factor}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    tifffile.imwrite(tmp_path / "a.ome.tif", MAIN, photometric="rgb", metadata=sides | units)
    assert Slide.open(tmp_path / "a.ome.tif").mpp == pytest.approx(0.5)


def test_a_file_of_several_knows_which_image_is_its_own(tmp_path: Path) -> None:
    """As bfconvert writes the images of a file to one each: every OME-XML tells of all, each at the start of a file."""
    files = {"whole": (MAIN, 0.5), "overview": (THUMB, 2.0)}
    images = "".join(
        f'<Image ID="Image:{name}"><Pixels ID="Pixels:{name}" PhysicalSizeX="{mpp}" PhysicalSizeY="{mpp}">'
        f'<TiffData IFD="0"><UUID FileName="{name}.tif">urn:uuid:{name}</UUID></TiffData></Pixels></Image>'
        for name, (_, mpp) in files.items()
    )
    for name, (pixels, mpp) in files.items():
        said = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{name}">{images}</OME>'
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", description=said, metadata=None)
        assert Slide.open(tmp_path / f"{name}.tif").mpp == mpp


@pytest.mark.parametrize("nonsense", ["0", "0.0", "-1", "nan", "inf", "none"])
@pytest.mark.parametrize("says", ["ome", "aperio"])
def test_a_resolution_of_nothing_is_unknown_and_the_next_tag_counts(tmp_path: Path, says: str, nonsense: str) -> None:
    """Scanners write 0 for what they do not know."""
    said = f"Aperio Image Library v12.0.15\r\n200x120 |AppMag = 40|MPP = {nonsense}|Left = 25.69"
    if says == "ome":
        tifffile.imwrite(tmp_path / "o.ome.tif", MAIN, photometric="rgb", metadata={"PhysicalSizeX": 7})
        with tifffile.TiffFile(tmp_path / "o.ome.tif") as file:
            sizes = f'PhysicalSizeX="{nonsense}" PhysicalSizeY="{nonsense}"'
            said = str(file.ome_metadata).replace('PhysicalSizeX="7"', sizes)
        assert sizes in said
    options: Any = {"photometric": "rgb", "description": said.encode(), "metadata": None}
    dots: Any = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", MAIN, **options, **dots)
    assert Slide.open(tmp_path / "a.tif").mpp == 0.5
    tifffile.imwrite(tmp_path / "b.tif", MAIN, **options)
    with pytest.raises(TileError, match=r"b\.tif does not say its micrometres per pixel"):
        Slide.open(tmp_path / "b.tif")


@pytest.mark.parametrize(("unit", "a_um"), [("micron", 1), ("\\u00B5m", 1), ("um", 1), ("mm", 1e3)])
def test_imagej_names_its_units_in_its_description(tmp_path: Path, unit: str, a_um: float) -> None:
    options: Any = {"imagej": True, "resolution": (2 * a_um, 2 * a_um), "metadata": {"unit": unit}}
    tifffile.imwrite(tmp_path / "a.tif", MAIN, photometric="rgb", **options)
    assert Slide.open(tmp_path / "a.tif").mpp == pytest.approx(0.5)
    tifffile.imwrite(tmp_path / "b.tif", MAIN, photometric="rgb", **options | {"metadata": {"unit": "pixel"}})
    with pytest.raises(TileError, match="does not say"):
        Slide.open(tmp_path / "b.tif")


@pytest.mark.parametrize("first", ["larger", "smaller"])
def test_smaller_pages_of_another_scene_are_no_levels(tmp_path: Path, first: str) -> None:
    other = 255 - painted(160, 96)  # of the same shape, so that sizes alone do not tell
    scenes = {"larger": (MAIN, MAIN[::2, ::2]), "smaller": (other, other[::2, ::2], other[::4, ::4])}
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        for name in sorted(scenes, key=lambda name: name != first):
            for place, pixels in enumerate(scenes[name]):
                options = {"subfiletype": int(place > 0), **LAYOUTS["tiled"]}
                file.write(np.ascontiguousarray(pixels), photometric="rgb", metadata=None, **options)
    slide = Slide.open(tmp_path / "two.tif", 0.5)
    assert slide.sizes == ((200, 120), (100, 60)) and np.array_equal(slide.read(0, 0, 100, 60, 1.0), MAIN[::2, ::2])


def test_a_stack_in_one_page_is_refused(tmp_path: Path) -> None:
    """As ImageJ and tifffile write large ones: only the first picture has a page."""
    tifffile.imwrite(tmp_path / "z.tif", np.stack([MAIN[..., 0]] * 5), photometric="minisblack", truncate=True)
    with pytest.raises(TileError, match=r"z\.tif holds a stack in one page: save the picture that is meant"):
        Slide.open(tmp_path / "z.tif", 0.5)
    tifffile.imwrite(tmp_path / "one.tif", MAIN[None], photometric="rgb", truncate=True)
    assert Slide.open(tmp_path / "one.tif", 0.5).sizes == ((200, 120),)


Tags = dict[int, tuple[int, list[int]]]  # by code: 3 (16 bits) or 4 (32 bits), and values
JPEG, JPEG_2000, WEBP, JPEG_XL, DEFLATE = 7, 34712, 50001, 50002, 8


def tiff(width: int, height: int, content: bytes = b"", tile: int = 0, compression: int = 1, **more: Any) -> bytes:
    """An RGB TIFF of one page, of any size, which holds one tile, or one row as a strip. next: of the page after it."""
    tags: Tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [8, 8, 8]), 259: (3, [compression])}
    tags |= {262: (3, [2]), 277: (3, [3])}
    tags |= {322: (4, [tile]), 323: (4, [tile])} if tile else {278: (4, [1])}
    tags |= {324 if tile else 273: (4, [8]), 325 if tile else 279: (4, [len(content)])}
    tags |= more.get("tags", {})
    start, entries, after = 8 + len(content), b"", b""
    for code in sorted(tags):
        kind, values = tags[code]
        packed = b"".join(pack("<H" if kind == 3 else "<I", value) for value in values)
        if len(packed) > 4:
            place = start + 2 + 12 * len(tags) + 4 + len(after)
            after, packed = after + packed, pack("<I", place)
        entries += pack("<HHI", code, kind, len(values)) + packed.ljust(4, b"\0")
    following = more.get("next", 0)
    page = pack("<H", len(tags)) + entries + pack("<I", start if following == "itself" else following) + after
    return b"II*\0" + pack("<I", start) + content + page


def ring(pages: int) -> bytes:
    """Pages whose last one names the first as the next; 8 bytes of picture each."""
    one = tiff(2, 1, bytes(8))[16:]  # of nine tags
    data = b"II*\0" + pack("<I", 16) + bytes(8)
    for number in range(pages):
        follow = 16 + (number + 1) % pages * len(one)
        shifted = bytearray(one)
        shifted[2 + 9 * 12 : 6 + 9 * 12] = pack("<I", follow)
        data += shifted
    return data


def bomb(side: int, codec: str) -> bytes:
    """A picture of one colour, of few bytes a pixel."""
    return getattr(imagecodecs, f"{codec}_encode")(np.full((side, side, 3), 200, np.uint8))


def hostile() -> dict[str, bytes]:
    """Files by name, each of few bytes, that promise too much."""
    png = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(png, "PNG")
    ome = b'<?xml version="1.0"?><OME><Image><Pixels SizeX="100" SizeY="2490880"/></Image></OME>\0'
    described: Any = {"tags": {270: (3, [*np.frombuffer(ome + b"\0" * (len(ome) % 2), "<u2").tolist()])}}
    jpeg = bytearray(bomb(512, "jpeg"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = pack(">HH", 60_000, 60_000)
    jpeg_2000 = bytearray(imagecodecs.jpeg2k_encode(np.zeros((64, 64, 3), np.uint8), codecformat="j2k"))
    place = jpeg_2000.index(b"\xff\x51") + 6
    jpeg_2000[place : place + 8] = pack(">II", 12_000, 12_000)
    flood = zlib.compress(bytes(100 << 20), 1)
    return {
        "bomb.png": png.getvalue(),
        "all.tif": tiff(10**9, 10**9, b"x" * 8, tile=1024),
        "piece.tif": tiff(10**9, 10**9, b"x" * 8, tile=10**9),
        "tile.tif": tiff(64, 64, b"x" * 8, tile=2**30),
        "rows.tif": tiff(100, 2_490_880, b"x" * 300),
        "ome.tif": tiff(100, 2_490_880, b"x" * 300, **described),
        "itself.tif": tiff(2, 1, bytes(8), next="itself"),
        "two.tif": ring(2),
        "ring.tif": ring(150),
        "tables.tif": tiff(64, 64, b"x" * 8, tags={330: (4, [7] * 4)}, tile=64),
        "jpeg.tif": tiff(64, 64, bytes(jpeg), tile=64, compression=JPEG),
        "jpeg2000.tif": tiff(64, 64, bytes(jpeg_2000), tile=64, compression=JPEG_2000),
        "larger.tif": tiff(64, 64, bomb(1500, "jpeg2k"), tile=64, compression=JPEG_2000),
        "webp.tif": tiff(64, 64, bomb(1500, "webp"), tile=64, compression=WEBP),
        "jpegxl.tif": tiff(64, 64, bomb(1500, "jpegxl"), tile=64, compression=JPEG_XL),
        "short.tif": tiff(64, 64, b"x" * 8, tile=64),
        "deflate.tif": tiff(64, 64, flood, tile=64, compression=DEFLATE),
    }


READ = """
import sys, time
from pathlib import Path
from colocate.base.errors import TileError
from colocate.data.decode import decode
from colocate.slides.slide import Slide
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
before = peak()
for name in sys.argv[1:]:
    path = Path(name)
    for read in (lambda: Slide.open(path, 0.5).thumbnail(100), lambda: decode(path.read_bytes(), name)):
        began = time.monotonic()
        try:
            read()
            print(path.name, "is read")
        except TileError as error:
            print(str(error).removeprefix(str(path.parent) + "/"))
        if time.monotonic() - began > 5:
            print(path, "took", time.monotonic() - began)
print(peak() - before)
"""


@pytest.mark.slow
def test_hostile_files_end_in_one_sentence(tmp_path: Path) -> None:
    """In little time and memory: no picture is unpacked before its size is known to be bearable."""
    files = hostile()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    names = [str(tmp_path / name) for name in files]
    done = subprocess.run([sys.executable, "-c", READ, *names], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    *said, megabytes = done.stdout.splitlines()
    assert [line.split()[0] for line in said] == [name for name in files for _ in range(2)], said
    assert [line for line in said if line.endswith("is read")] == []
    assert float(megabytes) < 500


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    for ending in (".png", ".tif", ".svs"):
        os.mkfifo(tmp_path / f"a{ending}")
        with pytest.raises(TileError, match=rf"a\{ending} is no file"):
            Slide.open(tmp_path / f"a{ending}", 0.5)
