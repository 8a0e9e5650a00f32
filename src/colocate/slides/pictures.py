"""A picture as RGB, whoever reads it: palettes, CMYK, transparency and up to 16 bits become 8-bit colours on white."""

from __future__ import annotations

import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import UInt, UInt8
from PIL import Image, UnidentifiedImageError

from colocate.base.errors import TileError

LARGEST_PX = 100_000_000  # of a picture that is unpacked whole
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # that Pillow reads; TIFF is tifffile's
ORIENTATION = 0x0112  # EXIF's entry, and TIFF's
ROWS = 512  # that are laid on white at once

# What matters in Pillow's warnings (bombs, broken files) is raised below. One filter for good, because catch_warnings
# is not safe in threads and makes every other warning of the program appear again.
warnings.filterwarnings("ignore", module=r"PIL\.")

RGB = UInt8[np.ndarray, "h w 3"]


class Reader(ABC):
    """An open file of one or more levels of the same picture, finest first."""

    path: Path
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each level, in its own pixels."""
    mpp: tuple[float, float] | None = None
    """Micrometres per pixel of the finest level, along x and y, as the file says; None where it does not."""
    power: str | None = None
    """Of the objective, as the file says."""
    origin: tuple[int, int] = (0, 0)
    """Where the scanned area begins, in pixels of the finest level."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the finest level."""
        return self.sizes[0]

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    @abstractmethod
    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        """Read a region of a level, which must lie within it; x and y are in its pixels. The result is read-only.

        Raises TileError: the file is damaged.
        """


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what OpenSlide, tifffile, its codecs and Pillow raise on damaged files (almost anything) into TileError."""
    try:
        yield
    except TileError:
        raise
    except UnidentifiedImageError:
        kinds = "JPEG, PNG, TIFF, BMP or WebP image and is no slide"
        raise TileError(f"{path} is no {kinds}, or is cut off in its first bytes: replace or remove it") from None
    except Image.DecompressionBombError:
        raise too_large(path) from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TileError(f"{path} is cut short or damaged ({reason}): copy it again or remove it") from error


def too_large(path: Path | str) -> TileError:
    """Return the error for a picture that would have to be unpacked whole and is too large for that."""
    size = f"has over {LARGEST_PX // 10**6} million pixels"
    return TileError(f"{path} {size} and looks like a slide: cut it into tiles (colocate tile), as a tiled TIFF")


@final
class Plain(Reader):
    """A JPEG, PNG, BMP or WebP, from a file or its bytes. Unpacked when it is first read."""

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        self.path, self.data = path, data  # its dots per inch say how to print it
        with reading(path):
            self.image: Any = Image.open(path if data is None else io.BytesIO(data), formats=FORMATS)
        self.format, self.sizes = self.image.format or "", (self.image.size,)
        if self.image.width * self.image.height > LARGEST_PX:
            raise too_large(path)

    @property
    def orientation(self) -> int:
        """How it is to be turned, by EXIF's numbers, before its pixels are read; 1 is not at all."""
        return self.image.getexif().get(ORIENTATION, 1)

    def close(self) -> None:
        self.image.close()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        region = self._pixels[y : y + height, x : x + width]
        region.flags.writeable = False  # whoever is given it shares it
        return region

    @cached_property
    def _pixels(self) -> RGB:
        with reading(self.path), self.image as image:
            coded, clear = str(image.tile[0][3]) if image.tile else "", image.info.get("transparency")
            if coded in COLOURS_16:
                return self._of_16_bits()
            image.load()
            if clear is not None and coded in STRETCHED:
                image.info["transparency"] = clear * STRETCHED[coded]
            if image.mode.startswith("I"):
                grey = np.asarray(image).astype(np.uint16)[:, :, None]
                _say_if_dark(grey, self.path)
                colours = to_8_bits(65535)[grey].repeat(3, 2)
                return colours if clear is None else np.where(grey == clear, np.uint8(255), colours)
            if not image.has_transparency_data:
                return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
            pixels = np.asarray(image.convert("RGBA"))
            return on_white(pixels[:, :, :3], pixels[:, :, 3:])

    def _of_16_bits(self) -> RGB:
        """As of a TIFF; Pillow would cut off the lower 8. What is transparent comes as a channel in any case."""
        import imagecodecs  # which takes a tenth of a second

        samples = imagecodecs.png_decode(self.path.read_bytes() if self.data is None else self.data)
        count = 1 if samples.shape[2] == 2 else 3  # of colours
        _say_if_dark(samples[:, :, :count], self.path)
        colours, alpha = np.split(to_8_bits(65535)[samples], [count], axis=2)
        return on_white(colours.repeat(3 // count, 2), alpha) if alpha.size else colours


# A PNG's one transparent colour is not given by Pillow as its pixels are, by how they are coded:
STRETCHED = {"L;2": 85, "L;4": 17}
COLOURS_16 = ("RGB;16B", "LA;16B", "RGBA;16B")  # a PNG's pixels of 16 bits a sample, in Pillow's words
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # TIFF's photometrics that have a meaning here: how many samples each
WHITE_IS_0, PALETTE, CMYK, YCBCR = 0, 3, 5, 6
PREMULTIPLIED, STRAIGHT = 1, 2  # of TIFF's extra samples
JPEGS = (6, 7, 33007, 34892)  # TIFF's compressions whose decoder gives RGB


@final
class Samples:
    """What the samples of a TIFF page mean. Raises TileError: they are no colours, or of an unknown range."""

    def __init__(self, page: Any, path: Path) -> None:
        self.path, bits, extra = path, page.bitspersample, page.samplesperpixel - COLOURS.get(page.photometric, 0)
        alpha = (page.extrasamples or (STRAIGHT,))[0]  # many writers of RGBA leave it out
        if page.photometric not in COLOURS:
            name = getattr(page.photometric, "name", page.photometric)
            raise self._refused(f"colours of the kind {name}")
        if page.sampleformat != 1 or not isinstance(bits, int) or not 1 <= bits <= 16:
            kind = {2: "signed", 3: "floating-point"}.get(int(page.sampleformat), "whole") if page.dtype else "odd"
            raise self._refused(f"{kind} numbers of {bits} bits, whose white is unknown")
        if page.imagedepth > 1 or not 0 <= extra <= 1 or (extra and COLOURS[page.photometric] == 1 and not alpha):
            raise self._refused(f"{page.samplesperpixel} channels that are no colours")
        self.colours, self.photometric = COLOURS[page.photometric], int(page.photometric)
        self.alpha = alpha if extra and alpha in (PREMULTIPLIED, STRAIGHT) else 0
        self.opaque = to_8_bits(2**bits - 1)
        said = page.tags.valueof(281, default=0) or page.tags.valueof(341, default=0)  # MaxSampleValue
        said = int(np.max(said))
        fewer = 255 < said < 2**bits - 1 and said & (said + 1) == 0  # 12 bits in 16; others are mere statistics
        self.table = to_8_bits(said if fewer else 2**bits - 1, 2**bits)
        self.dark = bits == 16 and not fewer
        if self.photometric == WHITE_IS_0:
            self.table = 255 - self.table
        elif self.photometric == PALETTE:
            colours = np.asarray(page.colormap).T
            self.table = (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
        elif self.photometric == YCBCR and page.compression in JPEGS and page.planarconfig == 1:
            self.photometric = 2
        self.as_stored = bits == 8 and self.photometric not in (WHITE_IS_0, PALETTE)

    def _refused(self, what: str) -> TileError:
        return TileError(f"{self.path} holds {what}: save it as grey or RGB with 8 or 16 bits")

    def rgb(self, samples: UInt[np.ndarray, "h w _"]) -> RGB:
        """Return them as colours."""
        colours, alpha = samples[:, :, : self.colours], samples[:, :, self.colours :]
        if self.dark:
            _say_if_dark(colours, self.path)
        if not self.as_stored:
            colours = self.table[colours[:, :, 0] if self.photometric == PALETTE else colours]
        if self.photometric in (CMYK, YCBCR):
            mode = "CMYK" if self.photometric == CMYK else "YCbCr"
            colours = np.asarray(Image.frombytes(mode, colours.shape[1::-1], colours.tobytes()).convert("RGB"))
        elif colours.shape[2] == 1:
            colours = colours.repeat(3, 2)
        if not self.alpha:
            return np.ascontiguousarray(colours)
        return on_white(colours, self.opaque[alpha], premultiplied=self.alpha == PREMULTIPLIED)


def to_8_bits(white: int, values: int = 0) -> UInt8[np.ndarray, "_"]:
    """Return the 8-bit value of 0, 1, ..., of which `white` becomes 255, and what lies above it.

    >>> to_8_bits(3, 6)
    array([  0,  85, 170, 255, 255, 255], dtype=uint8)
    """
    return ((np.arange(values or white + 1) * 255 + white // 2) // white).clip(max=255).astype(np.uint8)


def on_white(colours: RGB, alpha: UInt8[np.ndarray, "h w 1"], *, premultiplied: bool = False) -> RGB:
    """Lay a transparent picture on white, a slide's background.

    >>> on_white(np.full((1, 1, 3), 200, np.uint8), np.full((1, 1, 1), 51, np.uint8))
    array([[[244, 244, 244]]], dtype=uint8)
    """
    flat = np.empty(colours.shape, np.uint8)
    for top in range(0, len(colours), ROWS):
        colour, share = (part[top : top + ROWS].astype(np.uint16) for part in (colours, alpha))
        behind = 255 - share
        if premultiplied:
            flat[top : top + ROWS] = np.minimum(colour + behind, 255)
        else:
            flat[top : top + ROWS] = (colour * share + behind * 255 + 127) // 255
    return flat


_said: list[Path] = []


def _say_if_dark(samples: UInt[np.ndarray, "h w _"], path: Path) -> None:
    """Say once that 16-bit samples look like 12 bits; not whether they are: a black region looks the same."""
    if _said or not 0 < (highest := int(samples.max())) < 4096:
        return
    _said.append(path)
    warnings.warn(
        f"{path} has 16-bit samples of at most {highest}: if its white is 4095 (12 bits), it is read 16 times too "
        "dark; save it with 8 bits, or say so in its TIFF tag MaxSampleValue",
        stacklevel=2,
    )
