"""Every kind of image becomes 8-bit RGB; every bad one ends in one sentence."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from colocate.base.errors import TileError
from colocate.data.decode import decode
from tests.data.pictures import packed, picture, png

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")  # pytest puts its own filters before ours


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("ending", ["png", "tiff", "bmp"])
def test_colours_are_kept_and_grey_is_repeated(ending: str, mode: str) -> None:
    image = picture(0, 13, 7).convert(mode)
    tile = decode(packed(image, ending), "tile")
    assert tile.dtype == torch.uint8
    assert tile.is_contiguous()
    assert torch.equal(tile, pixels(image.convert("RGB")))


def test_jpeg_and_lossy_webp_are_near() -> None:
    image = picture(0, 32, 32)
    for ending in ("jpg", "webp"):
        difference = decode(packed(image, ending, quality=95), "tile").int() - pixels(image).int()
        assert difference.abs().float().mean() < 5


@pytest.mark.parametrize(("kind", "count"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_of_a_png_are_rounded_and_not_cut(kind: int, count: int) -> None:
    """By numpy's rounding, and as a TIFF of the same samples."""
    samples = np.random.default_rng(0).integers(0, 2**16, (9, 7, count)).astype(np.uint16)
    samples[0, 0], samples[1, :, 0] = 65535, (0, 128, 129, 257, 32768, 65406, 65407)  # where rounding turns
    data = png([row.astype(">u2").tobytes() for row in samples], (7, 9), 16, kind)
    eight = np.round(samples / 257)
    alpha = eight[:, :, -1:] / 255 if count % 2 == 0 else 1
    colours = np.round(eight[:, :, : (count - 1) // 2 * 2 + 1] * alpha + 255 * (1 - alpha))
    tile = decode(data, "tile")
    assert np.array_equal(tile.permute(1, 2, 0), np.broadcast_to(colours, (9, 7, 3)))
    file, extra = io.BytesIO(), None if count % 2 else ["unassalpha"]
    tifffile.imwrite(file, samples.squeeze(), photometric="rgb" if count > 2 else "minisblack", extrasamples=extra)
    assert torch.equal(decode(file.getvalue(), "tile"), tile)
    for end in (60, len(data) - 40):
        with pytest.raises(TileError, match="cut short or damaged"):
            decode(data[:end], "tile")


def test_transparent_colours_greys_and_palettes_lie_on_white() -> None:
    image = Image.new("RGBA", (3, 1), (200, 100, 0, 255))
    image.putpixel((1, 0), (200, 100, 0, 0))
    image.putpixel((2, 0), (200, 100, 0, 51))
    tile = decode(packed(image, "png"), "tile")
    assert tile[:, 0].T.tolist() == [[200, 100, 0], [255, 255, 255], [244, 224, 204]]
    grey = Image.new("LA", (2, 1), (10, 255))
    grey.putpixel((1, 0), (10, 0))
    assert decode(packed(grey, "png"), "tile")[0].tolist() == [[10, 255]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putpixel((1, 0), 1)
    assert decode(packed(palette, "png"), "tile")[:, 0].T.tolist() == [[9, 8, 7], [1, 2, 3]]
    assert decode(packed(palette, "png", transparency=1), "tile")[:, 0].T.tolist() == [[9, 8, 7], [255] * 3]
    shades = packed(palette, "png", transparency=bytes([255, 0]))
    assert decode(shades, "tile")[:, 0].T.tolist() == [[9, 8, 7], [255] * 3]


@pytest.mark.parametrize(
    ("bits", "samples", "clear", "expected"),
    [
        (1, [0, 1, 0, 0], [1], [0, 255, 0, 0]),
        (2, [0, 1, 2, 3], [1], [0, 255, 170, 255]),
        (2, [0, 1, 2, 3], [2], [0, 85, 255, 255]),
        (4, [0, 5, 15, 6], [5], [0, 255, 255, 102]),
        (8, [0, 5, 255, 6], [5], [0, 255, 255, 6]),
        (16, [0, 0x1234, 0xFFFF, 0x1235], [0x1234], [0, 255, 255, 18]),
        (8, [1, 2, 3, 4, 5, 6], [4, 5, 6], [1, 255]),
        (16, [0x3412, 0x5634, 0x7856, 0x1234, 0x3456, 0x5678], [0x1234, 0x3456, 0x5678], [52, 255]),
        (16, [0x1234, 0x3456, 0x5679, 0x1234, 0x3456, 0x5678], [0x1234, 0x3456, 0x5678], [18, 255]),
    ],
)
def test_the_one_transparent_colour_of_a_png(
    bits: int, samples: list[int], clear: list[int], expected: list[int]
) -> None:
    """Written by hand, after the PNG specification: greys of 2, 4 and 16 bits and colours of 16 were opaque."""
    row = int("".join(f"{sample:0{bits}b}" for sample in samples).ljust(8, "0"), 2)
    packed_row = row.to_bytes(-(-len(samples) * bits // 8), "big")
    size, kind = (len(samples) // len(clear), 1), 0 if len(clear) == 1 else 2
    data = png([packed_row], size, bits, kind, tRNS=struct.pack(f">{len(clear)}H", *clear))
    assert decode(data, "tile")[0, 0].tolist() == expected


def test_cmyk_is_converted() -> None:
    tile = decode(packed(Image.new("CMYK", (8, 8), (0, 255, 0, 0)), "tiff"), "tile")
    assert tile[:, 0, 0].tolist() == [255, 0, 255]
    assert decode(packed(Image.new("CMYK", (8, 8), (0, 255, 0, 0)), "jpg"), "tile").shape == (3, 8, 8)


def test_orientation_is_ignored() -> None:
    image = picture(2, 8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(packed(image, "png", exif=exif), "tile").shape == (3, 4, 8)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "bmp", "webp"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated(ending: str, share: float) -> None:
    data = packed(picture(3, 64, 64), ending)
    with pytest.raises(TileError, match=r"^case 3/t\.x .*(copy it again or remove it|replace or remove it)$") as caught:
        decode(data[: int(len(data) * share)], "case 3/t.x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty: copy it again or remove it"),
        (b"dear colleague, the slides are in the post", "is no JPEG, PNG, .* image.*: replace or remove it"),
        (packed(picture(0, 4, 4), "gif"), "is no JPEG, PNG, .* image.*: replace or remove it"),
        (packed(Image.fromarray(np.array([[70000]], np.int32)), "tiff"), r".*signed numbers of 32 bits.*save it .*"),
        (packed(Image.fromarray(np.zeros((2, 2), np.float32)), "tiff"), r".*floating-point.*save it .*"),
    ],
)
def test_what_is_no_tile(data: bytes, reason: str) -> None:
    with pytest.raises(TileError, match=rf"^t\.jpg {reason}$"):
        decode(data, "t.jpg")


def test_damaged_bytes_end_in_one_sentence() -> None:
    """Whatever bytes are flipped, there is a picture or a TileError."""
    random = np.random.default_rng(0)
    for ending in ("jpg", "png", "tif", "bmp", "webp"):
        whole = packed(picture(4, 24, 24), ending)
        for _ in range(60):
            data = bytearray(whole)
            for place in random.integers(0, len(data), 4):
                data[place] = random.integers(256)
            try:
                assert decode(bytes(data), "t").shape[0] == 3
            except TileError as error:
                assert str(error).startswith("t ")


def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels, in a few bytes: its header is all that may be read."""
    return png([b"\0" * 100], (side, side), 8, 2)


@pytest.mark.parametrize("side", [10_001, 12_000, 30_000])  # above our limit, above Pillow's warning, above its error
def test_bomb(side: int) -> None:
    with pytest.raises(TileError, match=r"^huge\.png has over 100 million pixels and looks like a slide: cut it"):
        decode(bomb(side), "huge.png")


def test_no_warning_leaks(tmp_path: Path) -> None:
    """In a process of its own, as pytest has its own filters; what `decode` calls, without torch, which takes long."""
    tiff = packed(picture(0, 9, 9), "tif")
    files = {"bomb.png": bomb(9_900), "bomb2.png": bomb(12_000), "short.tif": tiff[:-20], "half.tif": tiff[:130]}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    code = """
import sys, pathlib
from colocate.base.errors import TileError
from colocate.slides.pictures import Plain
from colocate.slides.tiff import MAGIC, Tiff
for path in map(pathlib.Path, sys.argv[1:]):
    data = path.read_bytes()
    try:
        image = (Tiff if data.startswith(MAGIC) else Plain)(path, data)
        image.read(0, 0, 0, *image.size)
    except TileError:
        pass
"""
    names = [str(tmp_path / name) for name in files]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_tiff_pages_first_one_counts() -> None:
    file = io.BytesIO()
    first, second = picture(0, 6, 6), picture(1, 3, 3)
    first.save(file, "TIFF", save_all=True, append_images=[second])
    assert torch.equal(decode(file.getvalue(), "t"), pixels(first))


def test_a_jpeg_that_ends_in_zeros() -> None:
    """As a copy that was broken off leaves it: libjpeg makes grey of them, and only warns."""
    data = packed(picture(3, 64, 64), "jpg")
    with pytest.raises(TileError, match=r"^t\.jpg is cut short: it ends in zeros, .*: copy it again or remove it$"):
        decode(data[: len(data) // 2].ljust(len(data), b"\0"), "t.jpg")
    assert torch.equal(decode(data + b"\0" * 9, "t.jpg"), decode(data, "t.jpg"))
