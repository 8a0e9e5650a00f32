"""Open slides: plain TIFFs by tifffile, vendors' formats by OpenSlide, plain pictures by Pillow."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from PIL import Image

from colocate.base.errors import TileError
from colocate.slides.pictures import RGB, Plain, Reader, reading
from colocate.slides.tiff import CACHE_BYTES, MAGIC, Tiff

if TYPE_CHECKING:
    from openslide import OpenSlideCache

ENDINGS = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu", ".czi", ".dcm")
AMBIGUOUS = (".tif", ".tiff")  # tiles as well as slides
PLAIN_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")  # slides only where they are named one by one
LARGEST_CHUNK_PX = 1 << 25  # of a TIFF: a piece is unpacked whole for each read from it


def open_reader(path: Path) -> Reader:
    """Open a slide's file.

    Raises TileError: no such file, no picture, a damaged one, or one of a kind that is not known.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            path.stat()
            raise TileError(f"{path} is no file: give slides or pictures")
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise TileError(f"{path} cannot be opened ({error.strerror}): check it and its permissions") from None
    vendor = _vendor(path)
    with reading(path):
        if start not in MAGIC:
            return _OpenSlide(path) if vendor else Plain(path)
        if vendor == "aperio":  # OpenSlide fills its holes and reads its JPEG 2000, Tiff what libtiff cannot unpack
            said = None
            with suppress(TileError):
                tiff = Tiff(path, most_px=LARGEST_CHUNK_PX)
                if tiff.is_plain_jpeg:
                    return tiff
                said = tiff.mpp
                tiff.close()
            with suppress(TileError):
                slide = _OpenSlide(path)
                slide.mpp = slide.mpp or said
                return slide
        elif vendor not in (None, "generic-tiff"):
            return _OpenSlide(path)
        return Tiff(path, most_px=LARGEST_CHUNK_PX)


def _vendor(path: Path) -> str | None:
    """OpenSlide's name of a slide's kind. Where it is not installed, what may be a tile is none; slides then raise."""
    if path.suffix.lower() in (*AMBIGUOUS, *PLAIN_ENDINGS) and find_spec("openslide") is None:
        return None
    import openslide

    with reading(path):
        return openslide.OpenSlide.detect_format(path)


# DICOM's SeriesInstanceUID, as slides store it: right after that of the study, or it is of a series that is referred to
SERIES = re.compile(rb"\x20\x00\x0d\x00UI..[0-9.]*\x00?\x20\x00\x0e\x00UI..([0-9.]+)", re.DOTALL)


def one_a_series(paths: Iterable[Path]) -> list[Path]:
    """Sort files, and of the .dcm of a series in a folder keep the first: they are one slide, which OpenSlide finds."""
    kept: dict[object, Path] = {}
    for path in sorted(paths):
        series = None
        if path.suffix.lower() == ".dcm" and path.is_file():
            with suppress(OSError), path.open("rb") as file:  # whoever opens it says so
                series = SERIES.search(file.read(1 << 20))
        kept.setdefault((path.parent, series[1]) if series else path, path)
    return list(kept.values())


@final
class _OpenSlide(Reader):
    def __init__(self, path: Path) -> None:
        import openslide

        self.path = path
        try:
            self.slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            if "nsupported" not in str(error):
                raise
            raise TileError(
                f"{path} is packed in a way that is not read ({error}): convert it to a tiled TIFF"
            ) from None
        self.slide.set_cache(_shared_cache())
        self.sizes, self.downsamples = self.slide.level_dimensions, self.slide.level_downsamples
        properties = self.slide.properties
        names = openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y
        x, y = (float(properties.get(name, 0)) for name in names)  # scanners write 0 for what they do not know
        self.mpp = (x, y) if min(x, y) > 0 else None
        bounds = (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y)
        self.origin = (int(properties.get(bounds[0], 0)), int(properties.get(bounds[1], 0)))
        self.background = "#" + properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self.power = properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)

    def close(self) -> None:
        self.slide.close()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        # OpenSlide counts in pixels of the finest level; rounding shifts by less than half of one
        place = (round(x * self.downsamples[level]), round(y * self.downsamples[level]))
        with reading(self.path):
            region = self.slide.read_region(place, level, (width, height))
        if region.getchannel("A").getextrema() != (255, 255):  # holes, which the scanner left out
            region = Image.alpha_composite(Image.new("RGBA", region.size, self.background), region)
        return np.asarray(region.convert("RGB"))


@cache
def _shared_cache() -> OpenSlideCache:
    import openslide

    return openslide.OpenSlideCache(CACHE_BYTES)
