"""Read slide files: by OpenSlide, else tifffile (other TIFFs) or Pillow (plain images); JPEG tiles directly."""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import count, product
from pathlib import Path
from threading import Lock
from typing import Any, final

import numpy as np
import openslide
import tifffile
from jaxtyping import UInt8
from PIL import Image

from colocate.base.errors import TileError

CACHE_BYTES = 64 << 20  # of decoded tiles, for all slides of a process together


class Reader(ABC):
    """An open file of one or more levels of the same picture, finest first."""

    path: Path
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each level, in its own pixels."""
    mpp: tuple[float, float] | None
    """Micrometres per pixel of the finest level, along x and y; None where the file does not say."""
    properties: dict[str, str]
    """What OpenSlide says of the file, by its names."""
    origin: tuple[int, int] = (0, 0)
    """Where the scanned area begins, in pixels of the finest level."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    @abstractmethod
    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
        """Read a region of a level, which must lie within it; x and y are in its pixels. The result is read-only.

        Raises:
            TileError: the file is damaged.
        """


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what OpenSlide, tifffile, its codecs and Pillow raise on damaged files (almost anything) into TileError."""
    try:
        yield
    except TileError:
        raise
    except Image.UnidentifiedImageError:
        raise TileError(f"{path} is no slide: OpenSlide, tifffile and Pillow know no such file") from None
    except Image.DecompressionBombError:
        raise TileError(
            f"{path} would be unpacked whole and is too large for that: convert it to a tiled TIFF"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TileError(f"{path} is cut short or damaged ({reason}): copy it again") from error


JPEG = 7  # of TIFF's compressions; not the obsolete 6
VENDORS = ("generic-tiff", "aperio")  # whose levels are plain pages, with nothing to put in order

Tile = UInt8[np.ndarray, "h w 3"]


@final
class _LastUsed:
    """A cache of decoded tiles, least recently used first out, up to `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self.lock = Lock()  # threads, as Dask's workers have them
        self.tiles: OrderedDict[Hashable, Tile] = OrderedDict()

    def get(self, key: Hashable, unpack: Callable[[], Tile]) -> Tile:
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
class JpegTiles(Reader):
    """Decodes JPEG tiles directly; takes levels, resolution and bounds from another reader."""

    def __init__(self, known: Reader, file: tifffile.TiffFile, pages: Sequence[Any]) -> None:
        self.path, self.sizes, self.mpp = known.path, known.sizes, known.mpp
        self.properties, self.origin = known.properties, known.origin
        self.file, self.pages, self.number = file, pages, next(_numbers)

    @classmethod
    def of(cls, known: Reader) -> JpegTiles | None:
        """A reader of the same levels, or None unless all of them are complete and in JPEG tiles."""
        plain = known.properties.get("openslide.vendor") in VENDORS
        if not plain or len({*known.sizes}) < len(known.sizes):  # planes of one size are told apart by OpenSlide
            return None
        with ExitStack() as stack:
            file = stack.enter_context(tifffile.TiffFile(known.path))
            pages = [_page(file, size) for size in known.sizes]
            if not all(pages):
                return None
            stack.pop_all()  # it stays open
        return cls(known, file, pages)

    def close(self) -> None:
        self.file.close()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Tile:
        page = self.pages[level]
        wide, high = page.tilewidth, page.tilelength
        rows, columns = range(y // high, (y + height - 1) // high + 1), range(x // wide, (x + width - 1) // wide + 1)
        if (x % wide, y % high, width, height) == (0, 0, wide, high):
            return self._tile(level, rows[0], columns[0])
        region = np.empty((height, width, 3), np.uint8)
        for row, column in product(rows, columns):
            left, top = column * wide - x, row * high - y
            tile = self._tile(level, row, column)[max(-top, 0) : height - top, max(-left, 0) : width - left]
            top, left = max(top, 0), max(left, 0)
            region[top : top + len(tile), left : left + tile.shape[1]] = tile
        return region

    def _tile(self, level: int, row: int, column: int) -> Tile:
        page = self.pages[level]
        place = row * -(-page.imagewidth // page.tilewidth) + column
        return _unpacked.get((self.number, level, place), lambda: self._unpack(page, place))

    def _unpack(self, page: Any, place: int) -> Tile:
        size = page.databytecounts[place]
        with reading(self.path):
            packed = os.pread(self.file.filehandle.fileno(), size, page.dataoffsets[place])
            if len(packed) < size:  # libjpeg would make up the rest
                raise EOFError("its tiles reach beyond its end")
            tile, _, _ = page.decode(packed, place, jpegtables=page.jpegtables)
            return tile.reshape(page.tilelength, page.tilewidth, 3)


def _page(file: tifffile.TiffFile, size: tuple[int, int]) -> Any:
    """The TIFF page of a level, or None unless it is in JPEG tiles and none is missing (OpenSlide fills those in)."""
    pages: Any = file.pages
    for page in pages:
        if (page.imagewidth, page.imagelength) != size or not page.is_tiled:
            continue
        plain = page.compression == JPEG and page.samplesperpixel == 3 and page.planarconfig == 1
        return page if plain and page.dtype == np.uint8 and min(page.databytecounts) > 0 else None
    return None


ENDINGS = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu", ".czi")
PLAIN_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")  # and .dcm: slides only where they are named one by one
LARGEST_CHUNK_PX = 1 << 25  # of a TIFF: a piece is unpacked whole for each read from it
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_reader(path: Path) -> Reader:
    """Open a slide's file.

    Raises:
        TileError: no such file, no picture, a damaged one, or one of a kind that is not known.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise TileError(f"{path} cannot be opened ({error.strerror}): check it and its permissions") from None
    with reading(path):
        try:
            reader = _OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError:
            return _Tiff(path) if start in TIFF_MAGIC else _Plain(path)
        # OpenSlide takes an OME-TIFF for a plain one: it sees neither its levels nor its resolution
        ome = "<OME " in reader.properties.get("tiff.ImageDescription", "")
        other = _Tiff(path) if ome else JpegTiles.of(reader)
        if other is not None:
            reader.close()
        return other or reader


@final
class _OpenSlide(Reader):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.slide = openslide.OpenSlide(path)
        self.slide.set_cache(_shared_cache())
        self.sizes, self.downsamples = self.slide.level_dimensions, self.slide.level_downsamples
        self.properties = dict(self.slide.properties)
        said = [self.properties.get(name) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
        self.mpp = None if said[0] is None or said[1] is None else (float(said[0]), float(said[1]))
        bounds = (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y)
        self.origin = (int(self.properties.get(bounds[0], 0)), int(self.properties.get(bounds[1], 0)))
        colour = self.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self.background = "#" + colour

    def close(self) -> None:
        self.slide.close()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
        # OpenSlide counts in pixels of the finest level; rounding shifts by less than half of one
        place = (round(x * self.downsamples[level]), round(y * self.downsamples[level]))
        with reading(self.path):
            region = self.slide.read_region(place, level, (width, height))
        if region.getchannel("A").getextrema() != (255, 255):  # holes, which the scanner left out
            region = Image.alpha_composite(Image.new("RGBA", region.size, self.background), region)
        return np.asarray(region.convert("RGB"))


@final
class _Tiff(Reader):
    def __init__(self, path: Path) -> None:
        import zarr  # half a second, which only these files are worth

        self.path = path
        self.file = tifffile.TiffFile(path)
        self._check_is_whole()
        series = max(self.file.series, key=lambda one: one.size)
        kept = [n for n, level in enumerate(series.levels) if level.axes in ("YXS", "YX") and level.dtype == np.uint8]
        pages = [series.levels[n] for n in kept]
        if not pages or (pages[0].axes == "YXS" and pages[0].shape[2] not in (3, 4)):
            kind = f"{series.shape} {series.dtype}, axes {series.axes}"
            raise TileError(f"{path} holds {kind}: slides are read as 8-bit grey or RGB; convert it")
        self.levels = [zarr.open_array(series.aszarr(level=level), mode="r") for level in kept]
        if max(level.chunks[0] * level.chunks[1] for level in self.levels) > LARGEST_CHUNK_PX:
            raise TileError(
                f"{path} is stored in pieces too large to unpack for every read: convert it to a tiled TIFF"
            )
        self.sizes = tuple((page.shape[1], page.shape[0]) for page in pages)
        page: Any = pages[0].keyframe
        self.mpp, self.properties = _ome_mpp(self.file) or _tiff_mpp(page), {}

    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
        with reading(self.path):
            region: Any = self.levels[level][y : y + height, x : x + width]
        return np.repeat(region[:, :, None], 3, 2) if region.ndim == 2 else np.ascontiguousarray(region[:, :, :3])

    def close(self) -> None:
        self.file.close()

    def _check_is_whole(self) -> None:
        """tifffile reads what pages it finds; a file cut short still names the place of the next one."""
        pages: Any = self.file.pages
        len(pages)  # reads them all
        handle, tiff = self.file.filehandle, self.file.tiff
        handle.seek(pages.next_page_offset)
        if struct.unpack(tiff.offsetformat, handle.read(tiff.offsetsize))[0]:
            raise EOFError("pages are missing at its end")


@final
class _Plain(Reader):
    def __init__(self, path: Path) -> None:
        self.path = path
        image = Image.open(path)
        self.pixels = np.asarray(image.convert("RGB"))
        self.sizes = ((image.width, image.height),)
        self.mpp, self.properties = None, {}  # dots per inch of a picture say how to print it

    def close(self) -> None:
        pass  # nothing is open

    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
        return self.pixels[y : y + height, x : x + width]


@cache
def _shared_cache() -> openslide.OpenSlideCache:
    return openslide.OpenSlideCache(CACHE_BYTES)


def _ome_mpp(file: tifffile.TiffFile) -> tuple[float, float] | None:
    """PhysicalSize of the first image of OME-XML; its unit is the micrometre unless it says another."""
    if not file.ome_metadata:
        return None
    described: Any = tifffile.xml2dict(file.ome_metadata)
    images = described["OME"].get("Image", {})
    pixels = (images[0] if isinstance(images, list) else images).get("Pixels", {})
    factor = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3}
    sides = []
    for axis in "XY":
        unit = factor.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if unit is None or f"PhysicalSize{axis}" not in pixels:
            return None
        sides.append(float(pixels[f"PhysicalSize{axis}"]) * unit)
    return sides[0], sides[1]


def _tiff_mpp(page: tifffile.TiffPage) -> tuple[float, float] | None:
    """Resolution tags, unless they say how to print: pixels of 40 micrometres (635 dots per inch) or more."""
    unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.resolutionunit or 0))  # micrometres
    x, y = page.resolution
    if unit is None or min(x, y) <= unit / 40:
        return None
    return unit / x, unit / y
