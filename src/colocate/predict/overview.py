"""A slide in small with the outlines of what was found in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import final

import shapely
from PIL import Image, ImageDraw
from shapely.geometry.base import BaseGeometry

from ..files import write_atomically
from ..png import light_png
from ..slide import Slide

SIDES_PX = (1500, 1200, 950, 750, 600, 450)  # of the longer side; the largest whose PNG is light
LINE_PX = 2


@final
class Overview:
    """Outlines drawn one by one, then written as a PNG of at most 1,500 px and 300 kB."""

    def __init__(self, slide: Slide) -> None:
        self.picture = Image.fromarray(slide.thumbnail(SIDES_PX[0]))
        self.scale = self.picture.width / slide.width
        self.draw = ImageDraw.Draw(self.picture)

    def add(self, shape: BaseGeometry, colour: tuple[int, int, int]) -> None:
        """An outline in level0 pixels."""
        for polygon in shapely.get_parts(shape):
            for ring in (polygon.exterior, *polygon.interiors):
                points = shapely.get_coordinates(ring) * self.scale
                self.draw.line(points.ravel().tolist(), colour, LINE_PX)

    def write(self, path: Path) -> None:
        """Write the picture, smaller where it would be too heavy. Raises UserError where it cannot be written."""
        packed = light_png(self._versions())
        write_atomically(path, lambda file: file.write(packed))

    def _versions(self) -> Iterator[Image.Image]:
        for side in SIDES_PX:
            smaller = self.picture.copy()
            smaller.thumbnail((side, side), Image.Resampling.BOX)
            yield smaller.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
