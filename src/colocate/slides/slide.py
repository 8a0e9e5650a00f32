"""Read any region of a slide at any resolution."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from colocate.base.errors import TileError
from colocate.slides.pictures import Reader
from colocate.slides.readers import open_reader
from colocate.slides.settings import check_mpp

SAID_MPP = (0.01, 20.0)  # that a file can mean: 21 micrometres are 1200 dots per inch, which say how to print
OPEN = 32  # files that a process keeps open
LARGEST_PX = 1 << 25  # of a level that are in memory at once
COARSER = 1.1  # a slide whose finest pixels are so many times larger than wanted has not the detail
NEAR = 0.01  # a level this near to the wanted resolution is read as it is
STEADY_PX = 0.05  # regions that fit pixels of a level to this are not resampled,
DRIFT_PX = 0.25  # nor are those that lose step by this from end to end, as levels of odd sizes make them
REMEDY = "say it with --slide-mpp, or in a table of slides (columns path, mpp)"


@final
@dataclass(frozen=True)
class Slide:
    """A slide with a known resolution; made by `Slide.open`.

    Holds no open file: those are kept by each process, the last few used ones. So it can be sent to workers.
    Positions are in pixels of the finest level ("level0"), x to the right and y down from its top left.
    """

    path: Path
    mpp: float
    """Micrometres per pixel of the finest level."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each level, finest first."""
    origin: tuple[int, int]
    """Where the scanned area begins (OpenSlide's bounds), in level0 pixels."""

    @classmethod
    def open(cls, path: str | Path, mpp: float | None = None, unsaid_mpp: float | None = None) -> Slide:
        """Open a slide; `mpp` overrides the file's resolution, `unsaid_mpp` is used where the file gives none.

        Raises:
            UserError: `mpp` or `unsaid_mpp` is no resolution.
            TileError: a file that cannot be read, or does not say its resolution, or an impossible one.
        """
        reader = _reader(Path(path))
        for given in (mpp, unsaid_mpp):
            if given is not None:
                check_mpp(given, "--slide-mpp")
        return cls(reader.path, _said_mpp(reader, unsaid_mpp) if mpp is None else mpp, reader.sizes, reader.origin)

    @property
    def width(self) -> int:
        """In level0 pixels."""
        return self.sizes[0][0]

    @property
    def height(self) -> int:
        """In level0 pixels."""
        return self.sizes[0][1]

    @cached_property
    def level_mpps(self) -> tuple[float, ...]:
        """Micrometres per pixel of each level."""
        return tuple(self.mpp * math.sqrt(self.width * self.height / (w * h)) for w, h in self.sizes)

    def nearest_mpp(self, mpp: float) -> float:
        """`mpp`, or a level's own if it is within 1 % of it: pixels are then read as they are."""
        return next((own for own in self.level_mpps if abs(own / mpp - 1) <= NEAR), mpp)

    def check_shows(self, mpp: float) -> None:
        """Raises TileError if the finest pixels are more than a tenth larger than `mpp` micrometres."""
        if self.mpp > mpp * COARSER:
            raise TileError(
                f"{self.path} has {self.mpp:g} micrometres per pixel, which cannot show {mpp:g} (over 10 % coarser)"
            )

    def read(
        self, x: float, y: float, width: int, height: int, mpp: float | None = None
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Read a region of `width` x `height` pixels of `mpp` micrometres with its top left corner at level0 (x, y).

        From the coarsest level that is as fine, resampled with antialiasing (a bicubic kernel as wide as the pixels),
        which sees beyond the region's edge: neighbouring regions fit without a seam. White outside the slide.

        Raises TileError: the file is damaged.
        """
        mpp = self.mpp if mpp is None else mpp
        level = max(i for i, own in enumerate(self.level_mpps) if i == 0 or own <= mpp * (1 + NEAR))
        # x and y in pixels of the level from here on
        shrunk, pixels = np.array(self.sizes[level]) / self.sizes[0], np.array((width, height))
        start, step = np.array((x, y)) * shrunk, mpp / self.mpp * shrunk
        stop = start + step * pixels
        if (stop - start).prod() > LARGEST_PX and height > 1:
            upper = height // 2
            lower = self.read(x, y + upper * mpp / self.mpp, width, height - upper, mpp)
            return np.concatenate([self.read(x, y, width, upper, mpp), lower])
        # places of whole level0 pixels fall between the pixels of coarser levels
        slack = STEADY_PX if level == 0 else np.maximum(STEADY_PX, 0.5 * shrunk)
        near, drift = np.abs(start - start.round()) <= slack + 1e-9, np.abs(step - 1) * pixels
        if near.all() and (drift <= DRIFT_PX).all():
            left, top = start.round().astype(int).tolist()
            return _padded(self, level, left, top, width, height)
        reach = np.ceil(2 * step.clip(1)) + 1  # of the bicubic kernel
        first, last = np.floor(start) - reach, np.ceil(stop) + reach
        (left, top), (wide, high) = first.astype(int).tolist(), (last - first).astype(int).tolist()
        region = _padded(self, level, left, top, wide, high)
        box = (*(start - first).tolist(), *(stop - first).tolist())
        return np.asarray(Image.fromarray(region).resize((width, height), Image.Resampling.BICUBIC, box))

    def thumbnail(self, longest_px: int) -> UInt8[np.ndarray, "h w 3"]:
        """Read the whole slide, scaled down so that its longer side is at most `longest_px`."""
        factor = max(1.0, max(self.width, self.height) / longest_px)
        width, height = (max(1, round(side / factor)) for side in (self.width, self.height))
        return self.read(0, 0, width, height, self.mpp * factor)


_open: OrderedDict[tuple[object, ...], Reader] = OrderedDict()


def _reader(path: Path) -> Reader:
    """The file as it is now, opened by this process: files opened before a fork must not be shared."""
    key: tuple[object, ...] = (os.getpid(), path)
    with suppress(OSError):  # which opening it tells better
        key += ((status := path.stat()).st_mtime_ns, status.st_size)
    reader = _open.pop(key, None) or open_reader(path)
    _open[key] = reader
    while len(_open) > OPEN:
        (process, *_), oldest = _open.popitem(last=False)
        if process == os.getpid():
            oldest.close()
    return reader


def _said_mpp(reader: Reader, unsaid: float | None) -> float:
    """The file's resolution; `unsaid` where it gives none or an impossible one."""
    can_be = reader.mpp is not None and all(SAID_MPP[0] < mpp < SAID_MPP[1] for mpp in reader.mpp)
    if unsaid is not None and not can_be:
        return unsaid
    if reader.mpp is None:
        hint = f" (an objective of {reader.power}x is no resolution)" if reader.power else ""
        raise TileError(f"{reader.path} does not say its micrometres per pixel{hint}: {REMEDY}")
    x, y = reader.mpp
    if not can_be:
        why = "which cannot be (dots per inch say how to print)"
        raise TileError(f"{reader.path} says that its pixels are {x:g} x {y:g} micrometres, {why}: {REMEDY}")
    if abs(x / y - 1) > 0.05:
        raise TileError(f"{reader.path} has pixels of {x:g} x {y:g} micrometres, not square ones: resample it first")
    return math.sqrt(x * y)


def _padded(slide: Slide, level: int, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """Read a region of a level, white outside of it. Raises TileError as `Slide.read` does."""
    reader = _reader(slide.path)
    if reader.sizes != slide.sizes:
        raise TileError(f"{slide.path} was replaced by a picture of another size: open it again")
    wide, high = slide.sizes[level]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, wide), min(y + height, high)
    if (left, top, right, bottom) == (x, y, x + width, y + height):
        return reader.read(level, x, y, width, height)
    region = np.full((height, width, 3), 255, np.uint8)
    if left < right and top < bottom:
        inside = reader.read(level, left, top, right - left, bottom - top)
        region[top - y : bottom - y, left - x : right - x] = inside
    return region
