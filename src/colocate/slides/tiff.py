"""Read TIFFs by tifffile's codecs: which pages are the levels of the slide, and their tiles or strips one by one."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from itertools import count, product
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, final
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image
from tifffile.tifffile import jpeg_shape

from colocate.base.errors import TileError
from colocate.slides.pictures import JPEGS, LARGEST_PX, ORIENTATION, RGB, Reader, Samples, reading

CACHE_BYTES = 64 << 20  # of decoded tiles, for all slides of a process together
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_PAGES = 100  # of a slide there are a dozen
PICTURES = (33003, 33004, 33005, 34712, 34927, 34933, 50001)  # compressions: JPEG 2000, WebP, PNG
REDUCED, MASK = 1, 4  # bits of TIFF's NewSubfileType
UNITS = {2: 25_400.0, 3: 10_000.0, 4: 1000.0, 5: 1.0}  # micrometres in units of resolution: inch, cm, mm, µm
LENGTHS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "Å": 1e-4, "nm": 1e-3, "mm": 1e3, "cm": 1e4}  # micrometres, by OME's names
LENGTHS |= {"micron": 1.0, "\\u00B5m": 1.0}  # ImageJ's

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is raised, in one sentence


@final
class _LastUsed:
    """A cache of decoded tiles, least recently used first out, up to `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self.lock = Lock()  # threads, as Dask's workers have them
        self.tiles: OrderedDict[Hashable, RGB] = OrderedDict()

    def get(self, key: Hashable, unpack: Callable[[], RGB]) -> RGB:
        with self.lock:
            tile = self.tiles.get(key)
            if tile is not None:
                self.tiles.move_to_end(key)
                return tile
        tile = unpack()
        tile.flags.writeable = False  # whoever is given it shares it
        with self.lock:
            if key not in self.tiles:
                self.tiles[key] = tile
                self.bytes += tile.nbytes
            while self.bytes > self.most_bytes:
                self.bytes -= self.tiles.popitem(last=False)[1].nbytes
        return tile


_unpacked = _LastUsed(CACHE_BYTES)
_numbers = count()  # of readers: an address is used again


@final
class Tiff(Reader):
    """A TIFF or OME-TIFF, from a file or its bytes: its largest picture, with the smaller ones of it as levels."""

    format = "TIFF"

    def __init__(self, path: Path, data: bytes | None = None, most_px: int = LARGEST_PX) -> None:
        """most_px: of a tile or strip, which is unpacked whole for each read from it."""
        self.path, self.data, self.number = path, data, next(_numbers)
        with reading(path):
            self.file = tifffile.TiffFile(path if data is None else io.BytesIO(data), is_ndpi=False)
            try:
                pages = _chain(self.file, path)
                main = _largest(pages, path)
                if (main.is_imagej or main.is_shaped) and _hidden(self.file):
                    raise TileError(f"{path} holds a stack in one page: save the picture that is meant as grey or RGB")
                self.levels = [_Level(page, path, most_px) for page in _levels(main, pages)]
                said = (_ome_mpp(self.file, main.treeindex[0]), _aperio_mpp(pages[0]), _tags_mpp(main))
                self.mpp = next((mpp for mpp in said if mpp and all(0 < side < math.inf for side in mpp)), None)
            except BaseException:
                self.file.close()
                raise
        self.sizes = tuple(level.size for level in self.levels)
        power = re.search(r"AppMag = ([\d.]+)", pages[0].description)
        self.power = power[1] if power else None

    @property
    def is_plain_jpeg(self) -> bool:
        """Whether all levels are whole and in JPEG tiles."""
        return all(level.page.compression == 7 and min(level.page.databytecounts) > 0 for level in self.levels)

    @property
    def orientation(self) -> int:
        """How it is to be turned, by EXIF's numbers; 1 is not at all."""
        return int(self.levels[0].page.tags.valueof(ORIENTATION, default=1))

    def close(self) -> None:
        self.file.close()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        wide, high = self.levels[level].chunk
        rows, columns = range(y // high, (y + height - 1) // high + 1), range(x // wide, (x + width - 1) // wide + 1)
        if (x % wide, y % high, width, height) == (0, 0, wide, high):
            return self._chunk(level, rows[0], columns[0])
        region = np.empty((height, width, 3), np.uint8)
        for row, column in product(rows, columns):
            left, top = column * wide - x, row * high - y
            tile = self._chunk(level, row, column)[max(-top, 0) : height - top, max(-left, 0) : width - left]
            top, left = max(top, 0), max(left, 0)
            region[top : top + len(tile), left : left + tile.shape[1]] = tile
        return region

    def _chunk(self, level: int, row: int, column: int) -> RGB:
        place = row * self.levels[level].columns + column
        unpack = partial(self._unpack, level, place)
        return unpack() if self.data is not None else _unpacked.get((self.number, level, place), unpack)

    def _unpack(self, level: int, place: int) -> RGB:
        with reading(self.path):
            return self.levels[level].unpack(place, self._stored)

    def _stored(self, offset: int, size: int) -> bytes:
        """Bytes of the file, without its position, which threads would share."""
        handle = self.file.filehandle
        if offset + size > handle.size:  # libjpeg would make up the rest
            raise EOFError("its tiles reach beyond its end")
        return os.pread(handle.fileno(), size, offset) if self.data is None else self.data[offset : offset + size]


@final
class _Level:
    """A page, cut into chunks: its tiles or strips. Raises TileError if it is of a kind that is not read."""

    def __init__(self, page: Any, path: Path, most_px: int) -> None:
        self.page, self.samples = page, Samples(page, path)
        self.size = (page.imagewidth, page.imagelength)
        self.chunk = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        if prod(self.chunk) > most_px:
            raise TileError(f"{path} is stored in pieces too large to unpack for a read: convert it to a tiled TIFF")
        self.columns, rows = (-(-side // part) for side, part in zip(self.size, self.chunk, strict=True))
        self.chunks = self.columns * rows
        self.planes = page.samplesperpixel if page.planarconfig == 2 else 1
        if min(len(page.dataoffsets), len(page.databytecounts)) < self.chunks * self.planes:
            raise EOFError("it lists fewer tiles than its size needs")
        if page.decode.__name__.startswith("decode_raise"):  # tifffile's, for what it knows that it cannot read
            kind = f"{getattr(page.photometric, 'name', '')} {getattr(page.compression, 'name', page.compression)}"
            raise TileError(f"{path} is packed in a way that is not read ({kind}): convert it to a tiled TIFF")

    def unpack(self, place: int, stored: Callable[[int, int], bytes]) -> RGB:
        """Unpack a chunk; white if there is none. At the edges it may end where the picture does."""
        parts = [self._plane(place + plane * self.chunks, stored) for plane in range(self.planes)]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts):
            return np.full((*self.chunk[::-1], 3), 255, np.uint8)
        return self.samples.rgb(whole[0] if len(whole) == 1 else np.concatenate(whole, 2))

    def _plane(self, place: int, stored: Callable[[int, int], bytes]) -> np.ndarray | None:
        page, size = self.page, self.page.databytecounts[place]
        if not size:
            return None
        packed, tables = stored(page.dataoffsets[place], size), {}
        wide, high = self.chunk
        if page.compression in JPEGS:
            tables = {"jpegtables": page.jpegtables}
            _, high, wide, _ = jpeg_shape(packed)
        elif page.compression in PICTURES:
            with Image.open(io.BytesIO(packed), formats=("JPEG2000", "PNG", "WEBP")) as image:
                wide, high = image.size
        if wide * high > 2 * prod(self.chunk):  # some gigabytes would be made of it
            raise ValueError(f"a tile of {wide} x {high} px where {self.chunk[0]} x {self.chunk[1]} are said")
        samples = page.decode(packed, place, **tables)[0]
        if samples.dtype.itemsize != page.dtype.itemsize:
            raise ValueError(f"a tile of {samples.dtype} where {page.dtype} is said")
        return samples[0].view(np.uint8) if samples.dtype == bool else samples[0]


def _chain(file: tifffile.TiffFile, path: Path) -> list[Any]:
    """All pages; tifffile takes a file that is cut short for one with fewer."""
    pages: list[Any] = []
    for page in iter(file.pages):
        pages.append(page)
        if len(pages) > MOST_PAGES:
            raise TileError(f"{path} holds over {MOST_PAGES} pages, or some in a circle: save the one that is meant")
    handle, tiff = file.filehandle, file.tiff
    handle.seek(file.pages.next_page_offset or 0)
    if struct.unpack(tiff.offsetformat, handle.read(tiff.offsetsize))[0]:
        raise EOFError("pages are missing at its end")
    return pages


def _largest(pages: list[Any], path: Path) -> Any:
    """The largest picture, of an Aperio file that in tiles: labels, macros and thumbnails are smaller or in strips.

    Raises TileError if several are as large.
    """
    tiled = bool(pages) and pages[0].is_tiled and pages[0].description.startswith("Aperio")
    pictures = [page for page in pages if not page.subfiletype & MASK and (page.is_tiled or not tiled)]
    areas = [page.imagewidth * page.imagelength for page in pictures]
    if not areas or not max(areas):
        raise ValueError("it holds no picture")
    if (equal := areas.count(max(areas))) > 1:
        raise TileError(f"{path} holds a stack of {equal} pictures: save the one that is meant as grey or RGB")
    return pictures[areas.index(max(areas))]


def _hidden(file: tifffile.TiffFile) -> bool:
    """Whether a page stands for pictures that have no pages of their own, as ImageJ and tifffile may write them."""
    return any(len(series.pages) == 1 and series.size > series.keyframe.size for series in file.series)


def _levels(main: Any, pages: list[Any]) -> list[Any]:
    """The picture and what is said to be smaller versions of it, finest first, one of a size."""
    # Aperio's levels are not marked as such, but all that is tiled is one
    aperio = pages[0].description.startswith("Aperio")
    smaller, whole = list(main.pages or ())[:MOST_PAGES], main
    for page in pages:
        if page.is_tiled == main.is_tiled and not page.subfiletype & (REDUCED | MASK) and not aperio:
            whole = page  # of another scene, if it is not the largest: what is smaller and follows is of it
        elif whole is main and (page.subfiletype & REDUCED or page.is_tiled):
            smaller.append(page)
    width, height, levels = main.imagewidth, main.imagelength, {}
    for page in (main, *smaller):
        size = (page.imagewidth, page.imagelength)
        same_shape = abs(size[0] * height - size[1] * width) <= width + height  # each side rounded to a pixel
        if page.is_tiled == main.is_tiled and same_shape and min(size) > 0 and not page.subfiletype & MASK:
            levels.setdefault(size, page)
    return [levels[size] for size in sorted(levels, reverse=True)]


def _tags_mpp(page: Any) -> tuple[float, float] | None:
    unit, (x, y) = UNITS.get(int(page.resolutionunit)), page.resolution
    if unit is None and (named := re.search(r"^ImageJ=.*\nunit=([^\r\n]+)", page.description, re.DOTALL)):
        unit = LENGTHS.get(named[1])
    said = unit is not None and min(x, y) > 0 and 282 in page.tags and 283 in page.tags  # XResolution, YResolution
    return (unit / x, unit / y) if said else None


def _aperio_mpp(page: Any) -> tuple[float, float] | None:
    said = re.search(r"^Aperio.*\| *MPP *= *([\d.,]+(e[+-]?\d+)?)", page.description, re.DOTALL | re.IGNORECASE)
    if said is None:
        return None
    mpp = _number(said[1].replace(",", "."))
    return mpp, mpp


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _ome_mpp(file: tifffile.TiffFile, number: int) -> tuple[float, float] | None:
    """PhysicalSize of the image that begins last at or before this page; its unit is the micrometre unless it says."""
    if not file.ome_metadata:
        return None
    before, sides = [], []
    root = ElementTree.fromstring(file.ome_metadata)
    own = root.get("UUID")  # of several files that belong together each may tell of the images in all
    for image in root.iterfind("{*}Image/{*}Pixels"):
        for part in image.findall("{*}TiffData") or [image]:
            here, first = part.findtext("{*}UUID", own) == own, int(part.get("IFD", 0))
            if first <= number:
                before.append(((here, first), image.attrib))
    if not before:
        return None
    pixels = max(before, key=lambda image: image[0])[1]  # of equals the first
    for axis in "XY":
        unit = LENGTHS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if unit is None or f"PhysicalSize{axis}" not in pixels:
            return None
        sides.append(_number(pixels[f"PhysicalSize{axis}"]) * unit)
    return sides[0], sides[1]
