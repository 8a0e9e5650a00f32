"""A map of classes becomes regions: connected pixels of one class, outlined."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, cast

import numpy as np
import shapely
from jaxtyping import UInt8
from scipy import ndimage

from .outline_files import Outlined
from .trace import bevelled, outline

LONGEST_PX = 8192
"""Of the picture in which regions are outlined: of larger maps every second, fourth, ... pixel is taken."""


def regions(
    seen: UInt8[np.ndarray, "h w"],
    confidence: UInt8[np.ndarray, "h w"],
    classes: Collection[int],
    least: float,
    scale: float,
) -> Iterator[Outlined]:
    """The regions of some classes, those of the first class first; class i stands in `seen` as i + 1.

    Pixels that touch at a corner only are not connected. `least`: pixels that a region has at least; `scale`: level0
    pixels a pixel of the map. A region's score is the mean confidence of its pixels (in 255ths there).
    """
    step = 1
    while max(seen.shape) / step > LONGEST_PX:
        step *= 2
    seen, confidence = np.ascontiguousarray(seen[::step, ::step]), np.ascontiguousarray(confidence[::step, ::step])
    for class_ in classes:
        labelled, _ = cast(Any, ndimage.label(seen == class_ + 1))
        areas = np.bincount(labelled.ravel())
        for id, where in enumerate(ndimage.find_objects(labelled), start=1):
            if where is None or areas[id] * step**2 < least:
                continue
            mask = labelled[where] == id
            shape = bevelled(outline(mask, where[0].start, where[1].start))
            score = float(confidence[where][mask].mean()) / 255
            yield Outlined(shapely.transform(shape, lambda points: points * (step * scale)), class_, score)
