"""JPEG tiles of a TIFF, unpacked one by one: a quarter of the time that OpenSlide takes for the same pixels."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from itertools import count, product
from threading import Lock
from typing import Any, final

import numpy as np
import tifffile
from jaxtyping import UInt8

from .reader import CACHE_BYTES, Reader, told

JPEG = 7  # of TIFF's compressions; not the obsolete 6
VENDORS = ("generic-tiff", "aperio")  # whose levels are plain pages, with nothing to put in order

Tile = UInt8[np.ndarray, "h w 3"]


@final
class _LastUsed:
    """Unpacked tiles, the last used ones up to so many bytes."""

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
    """Levels as another reader found them, their pixels straight from the file."""

    def __init__(self, known: Reader, file: tifffile.TiffFile, pages: Sequence[Any]) -> None:
        self.path, self.sizes, self.mpp = known.path, known.sizes, known.mpp
        self.properties, self.origin = known.properties, known.origin
        self.file, self.pages, self.number = file, pages, next(_numbers)

    @classmethod
    def of(cls, known: Reader) -> JpegTiles | None:
        """The reader of the same levels, if all of them are whole and of JPEG tiles."""
        plain = known.properties.get("openslide.vendor") in VENDORS
        if not plain or len({*known.sizes}) < len(known.sizes):  # planes of one size are told apart by OpenSlide
            return None
        file = tifffile.TiffFile(known.path)
        try:
            pages = [_page(file, size) for size in known.sizes]
        except BaseException:
            file.close()
            raise
        if all(pages):
            return cls(known, file, pages)
        file.close()
        return None

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
        return _unpacked.get((self.number, level, place), lambda: told(self.path, lambda: self._unpack(page, place)))

    def _unpack(self, page: Any, place: int) -> Tile:
        size = page.databytecounts[place]
        packed = os.pread(self.file.filehandle.fileno(), size, page.dataoffsets[place])
        if len(packed) < size:  # libjpeg would make up the rest
            raise EOFError("its tiles reach beyond its end")
        tile, _, _ = page.decode(packed, place, jpegtables=page.jpegtables)
        return tile.reshape(page.tilelength, page.tilewidth, 3)


def _page(file: tifffile.TiffFile, size: tuple[int, int]) -> Any:
    """The page of a level, if it is of JPEG tiles and none is missing (OpenSlide knows what to put there)."""
    pages: Any = file.pages
    for page in pages:
        if (page.imagewidth, page.imagelength) != size or not page.is_tiled:
            continue
        plain = page.compression == JPEG and page.samplesperpixel == 3 and page.planarconfig == 1
        return page if plain and page.dtype == np.uint8 and min(page.databytecounts) > 0 else None
    return None
