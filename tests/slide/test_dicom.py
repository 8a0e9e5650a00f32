"""DICOM whole-slide images, read by OpenSlide: the files of a series in a folder are one slide."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from struct import pack

import imagecodecs
import numpy as np
import pytest
from jaxtyping import UInt8

from colocate.base.errors import TileError
from colocate.slides.listing import are_slides, find_slides
from colocate.slides.slide import Slide
from tests.phantom_slide import painted

Pixels = UInt8[np.ndarray, "h w 3"]
TILE = 64
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
PACKED: dict[str, tuple[str, Callable[[Pixels], bytes | bytearray]]] = {  # transfer syntax: colours, codec
    "1": ("RGB", lambda frame: frame.tobytes()),
    "4.50": ("YBR_FULL_422", lambda frame: imagecodecs.jpeg_encode(frame, level=98, subsampling="422")),
    "4.90": ("YBR_RCT", lambda frame: imagecodecs.jpeg2k_encode(frame, codecformat="j2k")),
    "4.91": ("YBR_ICT", lambda frame: imagecodecs.jpeg2k_encode(frame, level=60, codecformat="j2k")),
    "4.80": ("RGB", imagecodecs.jpegls_encode),
    "4.201": ("RGB", imagecodecs.htj2k_encode),
}
ITEM, END = pack("<HH", 0xFFFE, 0xE000), pack("<HHI", 0xFFFE, 0xE0DD, 0)


def element(group: int, number: int, kind: str, value: bytes | str | int | list[bytes]) -> bytes:
    """A DICOM element (explicit, little-endian); a list is a sequence of items."""
    if isinstance(value, list):
        value = b"".join(ITEM + pack("<I", len(item)) + item for item in value)
    elif isinstance(value, int):
        value = pack("<H" if kind == "US" else "<I", value)
    elif isinstance(value, str):
        value = value.encode()
    value += (b"\0" if kind in ("UI", "OB") else b" ") * (len(value) % 2)
    length = pack("<HI", 0, len(value)) if kind in ("OB", "SQ") else pack("<H", len(value))
    return pack("<HH", group, number) + kind.encode() + length + value


def write(
    path: Path, pixels: Pixels, mpp: float, syntax: str = "1", series: str = "1.2.9", kind: str = "VOLUME"
) -> None:
    """An instance of a series: a level, or a label."""
    high, wide = pixels.shape[:2]
    frames = []
    colours, pack_frame = PACKED[syntax]
    for y in range(0, high, TILE):
        for x in range(0, wide, TILE):
            part = pixels[y : y + TILE, x : x + TILE]
            edges = ((0, TILE - len(part)), (0, TILE - part.shape[1]), (0, 0))
            frames.append(pack_frame(np.ascontiguousarray(np.pad(part, edges, constant_values=255))))
    uid, transfer = f"{series}.{zlib.crc32(path.name.encode())}", f"1.2.840.10008.1.2.{syntax}"
    about = element(2, 1, "OB", b"\0\1") + element(2, 2, "UI", WHOLE_SLIDE) + element(2, 3, "UI", uid)
    about += element(2, 0x10, "UI", transfer) + element(2, 0x12, "UI", "1.2.3")
    data = element(8, 8, "CS", rf"ORIGINAL\PRIMARY\{kind}\NONE") + element(8, 0x16, "UI", WHOLE_SLIDE)
    data += element(8, 0x18, "UI", uid) + element(8, 0x60, "CS", "SM")
    data += element(0x20, 0xD, "UI", "1.2.3.4") + element(0x20, 0xE, "UI", series)
    data += element(0x20, 0x9311, "CS", "TILED_FULL")
    data += element(0x28, 2, "US", 3) + element(0x28, 4, "CS", colours) + element(0x28, 6, "US", 0)
    data += element(0x28, 8, "IS", str(len(frames)))
    for number, value in ((0x10, TILE), (0x11, TILE), (0x100, 8), (0x101, 8), (0x102, 7), (0x103, 0)):
        data += element(0x28, number, "US", value)
    data += element(0x48, 6, "UL", wide) + element(0x48, 7, "UL", high) + element(0x48, 0x303, "UL", 1)
    spacing = element(0x28, 0x30, "DS", rf"{mpp / 1000:g}\{mpp / 1000:g}")
    data += element(0x5200, 0x9229, "SQ", [element(0x28, 0x9110, "SQ", [spacing])])
    if syntax == "1":
        data += element(0x7FE0, 0x10, "OB", b"".join(frames))
    else:
        data += pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + ITEM + pack("<I", 0)
        for frame in frames:
            frame += b"\0" * (len(frame) % 2)
            data += ITEM + pack("<I", len(frame)) + frame
        data += END
    path.write_bytes(bytes(128) + b"DICM" + element(2, 0, "UL", len(about)) + about + data)


def write_slide(folder: Path, syntax: str = "1", series: str = "1.2.9") -> None:
    """Two levels and a label, in no order."""
    pixels = painted(200, 140)
    write(folder / f"b{series}.dcm", pixels, 0.5, syntax, series)
    write(folder / f"c{series}.dcm", pixels[::2, ::2], 1.0, syntax, series)
    write(folder / f"a{series}.dcm", painted(64, 64), 10.0, syntax, series, kind="LABEL")


@pytest.mark.parametrize(("syntax", "most"), [("1", 0), ("4.50", 12), ("4.90", 0), ("4.91", 3)])
def test_levels_of_a_series_are_a_slide(tmp_path: Path, syntax: str, most: int) -> None:
    write_slide(tmp_path, syntax)
    for path in tmp_path.iterdir():  # any file stands for all
        slide = Slide.open(path)
        assert slide.sizes == ((200, 140), (100, 70)) and slide.mpp == pytest.approx(0.5)
        assert np.abs(slide.read(10, 20, 150, 100).astype(int) - painted(200, 140)[20:120, 10:160]).max() <= most
        coarse = painted(200, 140)[::2, ::2][10:60, 5:80]
        assert np.abs(slide.read(10, 20, 75, 50, 1.0).astype(int) - coarse).max() <= most


@pytest.mark.parametrize("syntax", ["4.80", "4.201"])
def test_codecs_that_openslide_lacks_are_named(tmp_path: Path, syntax: str) -> None:
    write_slide(tmp_path, syntax)
    with pytest.raises(TileError, match=rf"\.dcm is packed in a way that is not read .*{syntax}.*: convert it"):
        Slide.open(tmp_path / "b1.2.9.dcm")


def test_a_series_that_is_referred_to_is_not_the_files_own(tmp_path: Path) -> None:
    refers = element(0x8, 0x1115, "SQ", [element(0x20, 0xE, "UI", "1.2.77")])
    for series in ("1.2.9", "1.2.10"):
        write_slide(tmp_path, series=series)
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        place = data.index(pack("<HH", 0x20, 0xD))
        path.write_bytes(data[:place] + refers + data[place:])
    assert [slide.name for slide in find_slides([tmp_path])] == ["a1.2.10", "a1.2.9"]


def test_a_folder_lists_each_series_once(tmp_path: Path) -> None:
    for folder, series in (("x", "1.2.9"), ("x", "1.2.10"), ("y", "1.2.9")):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_slide(tmp_path / folder, series=series)
    (tmp_path / "x" / "words.dcm").write_text("no DICOM")
    listed = [slide.name for slide in find_slides([tmp_path])]
    assert listed == ["x/a1.2.10", "x/a1.2.9", "x/words", "y/a1.2.9"]
    assert are_slides(tmp_path)
    one_by_one = [slide.name for slide in find_slides(sorted((tmp_path / "x").iterdir(), reverse=True))]
    assert one_by_one == ["a1.2.10", "a1.2.9", "words"]
