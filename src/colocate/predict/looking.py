"""A slide as windows with tissue in them, read ahead of the network that looks at them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from ..slide import Slide
from ..tiling.tissue import Tissue
from .predictor import Predictor
from .reading import read_regions
from .windows import Window, Windows


class Grid(NamedTuple):
    """A slide at the resolution of a network, seen as one picture: pixels of `mpp`, each `scale` level0 pixels."""

    width: int
    height: int
    mpp: float
    scale: float


def grid_of(slide: Slide, mpp: float) -> Grid:
    """The slide at a resolution, or at a level's own that is within 1 % of it.

    Raises:
        TileError: the slide's finest pixels are more than a tenth larger than that.
    """
    slide.check_shows(mpp)
    mpp = slide.nearest_mpp(mpp)
    scale = mpp / slide.mpp
    width, height = (max(1, math.ceil(round(length / scale, 6))) for length in (slide.width, slide.height))
    return Grid(width, height, mpp, scale)


def windows_of_tissue(grid: Grid, tissue: Tissue, side: int, overlap: int) -> list[Window]:
    """The windows that hold some tissue, row by row."""
    every = list(Windows(grid.width, grid.height, side, overlap))
    x, y = (np.array(places) * grid.scale for places in ([w.left for w in every], [w.top for w in every]))
    shares = tissue.shares(x, y, side * grid.scale, side * grid.scale)
    return [window for window, share in zip(every, shares, strict=True) if share > 1e-9]


def look(
    predictor: Predictor, slide: Slide, grid: Grid, places: Sequence[Window], batch: int, workers: int
) -> Iterator[list[tuple[Window, Any]]]:
    """What the predictor sees in each window, batch after batch: no more is in memory than is read ahead.

    Raises:
        TileError: the slide is damaged.
    """
    corners = np.array([(window.left, window.top) for window in places]).reshape(-1, 2) * grid.scale
    rest = iter(places)
    for images in read_regions(slide, corners, places[0].side, grid.mpp, batch, workers):
        yield list(zip(islice(rest, len(images)), predictor.look(images.contiguous()), strict=True))
