"""Classes of a slide's pixels, pasted window by window into a file and written as a pyramidal TIFF."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
import tifffile
from jaxtyping import Int64, UInt8, UInt16

from colocate.base.errors import UserError
from colocate.base.files import reserve, write_atomically
from colocate.prediction.outputs import class_colour
from colocate.prediction.predictor import UNSEEN, Classes
from colocate.prediction.stitch import Window, Windows

TILE_PX = 512
SMALLEST_PX = 1024  # longer side of the coarsest level
LARGE_BYTES = 2 << 30  # from here on BigTIFF: classic TIFF ends at 4 GiB


@final
class ClassMap:
    """A slide's classes and their confidence, in an unnamed file that is gone when this object is.

    Each window's core is kept (see `stitch`). So the map is what one window of the whole slide would give, wherever a
    network sees no further than half of the overlap.
    """

    def __init__(self, folder: Path, windows: Windows) -> None:
        """Raises UserError if the disk has no room for it: two bytes a pixel."""
        self.windows = windows
        shape = (2, windows.height, windows.width)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                reserve(file, int(np.prod(shape)))  # a mapped file must not meet a full disk
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                reason = f"no room for a map of {np.prod(shape) / 2**30:.1f} GiB" if full else error.strerror
                raise UserError(f"{folder}: {reason}; make room, the same command goes on") from error
            both = np.memmap(file, np.uint8, "r+", shape=shape)
        self.classes: UInt8[np.ndarray, "h w"] = both[0]
        """The class of each pixel; `UNSEEN` where there is no tissue."""
        self.confidence: UInt8[np.ndarray, "h w"] = both[1]
        """The classes' probability in 255ths."""
        self.classes[:] = UNSEEN

    def paste(self, window: Window, found: Classes) -> None:
        """Keep the core of a window."""
        core = self.windows.core(window)
        inside = core.slices(window.top, window.left)
        self.classes[core.slices()] = found.classes.numpy()[inside]
        self.confidence[core.slices()] = found.confidence.numpy()[inside]

    def counts(self) -> Int64[np.ndarray, "256"]:
        """Count the pixels of each class; the last count: no tissue."""
        counts = np.zeros(256, np.int64)
        for top in range(0, self.windows.height, TILE_PX):
            counts += np.bincount(self.classes[top : top + TILE_PX].ravel(), minlength=256)
        return counts

    def write(self, path: Path, mpp: float) -> None:
        """Write the classes as a tiled TIFF with levels of every second, fourth, ... pixel; whole or not at all.

        Values are classes, 255 where there is no tissue; viewers show them in the colours of the outlines.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        steps = [1]
        while max(self.classes.shape) / steps[-1] > SMALLEST_PX:
            steps.append(2 * steps[-1])

        def content(file: Any) -> None:
            with tifffile.TiffWriter(file, bigtiff=self.classes.size > LARGE_BYTES) as tiff:
                for step in steps:
                    level = self.classes[::step, ::step]
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
    """Cut into tiles, row by row; `UNSEEN` beyond the edge."""
    for top in range(0, level.shape[0], TILE_PX):
        for left in range(0, level.shape[1], TILE_PX):
            part = level[top : top + TILE_PX, left : left + TILE_PX]
            tile = np.full((TILE_PX, TILE_PX), UNSEEN, np.uint8)
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def _colours() -> UInt16[np.ndarray, "3 256"]:
    """Return the palette: the classes' colours in outlines; white where there is no tissue."""
    colours = np.full((256, 3), 255, np.uint16)
    colours[:UNSEEN] = [class_colour(class_) for class_ in range(UNSEEN)]
    return np.ascontiguousarray(colours.T * 257)
