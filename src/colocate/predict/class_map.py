"""The class of each pixel of a slide: pasted window by window into a file, then written as a pyramidal TIFF."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
import tifffile
from jaxtyping import Int64, UInt8, UInt16

from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.predict.outputs import class_colour
from colocate.predict.predictor import Classes
from colocate.predict.stitch import Box, Place, Window, Windows

UNSEEN = 255
"""In the TIFF: pixels that no window looked at."""
TILE_PX = 512
SMALLEST_PX = 1024  # longer side of the coarsest level
LARGE_BYTES = 2 << 30  # from here on BigTIFF: classic TIFF ends at 4 GiB


@final
class ClassMap:
    """A slide's classes and their confidence, in an unnamed temporary file that ends with the context.

    A window's core is kept (see `windows.Windows`): the window less half of the overlap on inner sides. So the map is
    what one window of the whole slide would give, wherever a network sees no further than half of the overlap.
    """

    def __init__(self, folder: Path, windows: Windows) -> None:
        """Raises UserError if the disk has no room for it: two bytes a pixel."""
        self.windows = windows
        shape = (2, windows.height, windows.width)
        folder.mkdir(parents=True, exist_ok=True)
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        try:
            os.posix_fallocate(self.file.fileno(), 0, int(np.prod(shape)))  # a mapped file must not meet a full disk
        except OSError as error:
            self.file.close()
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = f"no room for a map of {np.prod(shape) / 2**30:.1f} GiB" if full else error.strerror
            raise UserError(f"{folder}: {reason}; make room, the same command goes on") from error
        self.both: UInt8[np.memmap, "2 h w"] = np.memmap(self.file, np.uint8, "r+", shape=shape)

    def __enter__(self) -> ClassMap:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        del self.both
        self.file.close()

    @property
    def seen(self) -> UInt8[np.ndarray, "h w"]:
        """Class i as i + 1; 0 where no window looked."""
        return self.both[0]

    @property
    def confidence(self) -> UInt8[np.ndarray, "h w"]:
        """The classes' probability in 255ths."""
        return self.both[1]

    def paste(self, window: Window, found: Classes) -> None:
        """Keep the core of a window."""
        place = Place(window.row, window.column)
        view = self.windows.view(place)
        owners = zip(self.windows.cores(view), place, strict=True)
        rows, columns = (np.flatnonzero(owner == own).tolist() for owner, own in owners)
        top, left = view.top + rows[0], view.left + columns[0]
        core = Box(top, left, top + len(rows), left + len(columns))
        inside = core.within(view)
        kept = np.s_[core.top : core.bottom, core.left : core.right]
        self.seen[kept] = found.classes.numpy()[inside] + 1
        self.confidence[kept] = found.confidence.numpy()[inside]

    def counts(self) -> Int64[np.ndarray, "256"]:
        """Pixels of each class; the last: not looked at."""
        counts = np.zeros(256, np.int64)
        for top in range(0, self.windows.height, TILE_PX):
            counts += np.bincount(self.seen[top : top + TILE_PX].ravel(), minlength=256)
        return np.roll(counts, -1)

    def write(self, path: Path, mpp: float) -> None:
        """Write the classes as a tiled TIFF with levels of every second, fourth, ... pixel; whole or not at all.

        Values are classes, 255 where no window looked; viewers show them in the colours of the outlines.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        steps = [1]
        while max(self.seen.shape) / steps[-1] > SMALLEST_PX:
            steps.append(2 * steps[-1])

        def content(file: Any) -> None:
            with tifffile.TiffWriter(file, bigtiff=self.seen.size > LARGE_BYTES) as tiff:
                for step in steps:
                    level = self.seen[::step, ::step]
                    tiff.write(
                        _tiles(level),
                        shape=level.shape,
                        dtype=np.uint8,
                        tile=(TILE_PX, TILE_PX),
                        compression="deflate",
                        photometric="palette",
                        colormap=_colours(),
                        subfiletype=int(step > 1),
                        resolution=(10_000 / mpp / step, 10_000 / mpp / step),
                        resolutionunit="CENTIMETER",
                        metadata=None,
                    )

        write_atomically(path, content)


def _tiles(level: UInt8[np.ndarray, "h w"]) -> Iterator[UInt8[np.ndarray, "t t"]]:
    """Row by row, 255 where nothing was seen and beyond the edge."""
    for top in range(0, level.shape[0], TILE_PX):
        strip = np.ascontiguousarray(level[top : top + TILE_PX])
        for left in range(0, level.shape[1], TILE_PX):
            part = strip[:, left : left + TILE_PX]
            tile = np.zeros((TILE_PX, TILE_PX), np.uint8)
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile - np.uint8(1)


def _colours() -> UInt16[np.ndarray, "3 256"]:
    """Of the classes as outlines have them; white where no window looked."""
    colours = np.full((256, 3), 255, np.uint16)
    colours[:UNSEEN] = [class_colour(class_) for class_ in range(UNSEEN)]
    return np.ascontiguousarray(colours.T * 257)
