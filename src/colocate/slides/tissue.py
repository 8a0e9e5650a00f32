"""Find a slide's tissue at low resolution, leaving out pen marks and dark edges, or read the user's own mask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import shapely
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy.ndimage import map_coordinates
from shapely.geometry.base import BaseGeometry
from skimage.filters import threshold_otsu
from skimage.morphology import closing, disk, remove_small_holes, remove_small_objects

from colocate.base.errors import TileError
from colocate.base.shapes import rasterise
from colocate.slides.slide import Slide

MPP = 8.0  # of the mask
LONGEST_PX = 3000  # of the mask: larger slides get a coarser one
DENSITY = (0.03, 0.05)  # bounds of the threshold of optical density: Otsu's alone would part dense tissue from pale
SATURATION = (0.05, 0.08)
CLOSING_UM = 16.0
SKEWED = 0.02  # how much longer or shorter than the slide's a side of the user's mask may be
SMALLEST_UM2 = 10_000.0  # debris below, and holes


@final
@dataclass(frozen=True, eq=False)
class Tissue:
    """The tissue of a slide of `width` x `height` level0 pixels."""

    mask: Bool[np.ndarray, "h w"]
    """The whole slide, scaled down."""
    width: int
    height: int

    @cached_property
    def _sums(self) -> Float[np.ndarray, "_ _"]:
        return np.pad(self.mask.cumsum(0, np.int64).cumsum(1), ((1, 0), (1, 0))).astype(np.float64)

    def shares(
        self, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], width: float, height: float
    ) -> Float[np.ndarray, " n"]:
        """The share of tissue in n rectangles (level0 pixels) of one size, in [0, 1]; outside the slide is none."""
        edges = [self._below(x + i * width, y + j * height) for j in (0, 1) for i in (0, 1)]
        area = width * height * self.mask.size / (self.width * self.height)  # in pixels of the mask
        return ((edges[3] - edges[2] - edges[1] + edges[0]) / area).clip(0, 1)

    def share_of(self, shape: BaseGeometry) -> float:
        """The share of tissue in a shape (level0 pixels), in [0, 1]; 0 or 1 for one below a pixel of the mask."""
        high, wide = self.mask.shape
        small = shapely.transform(shape, lambda points: points * (wide / self.width, high / self.height))
        top, left, inside = rasterise(small, high, wide)
        if not inside.any():
            point = small.representative_point()
            return float(self.mask[min(int(point.y), high - 1), min(int(point.x), wide - 1)])
        return float(self.mask[top : top + inside.shape[0], left : left + inside.shape[1]][inside].mean())

    def _below(self, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Tissue above and left of points, in pixels of the mask: sums between whole pixels are linear."""
        high, wide = self.mask.shape
        u, v = (x * wide / self.width).clip(0, wide), (y * high / self.height).clip(0, high)
        return map_coordinates(self._sums, np.stack([v, u]), order=1)


def find_tissue(slide: Slide, mask: Path | None = None) -> Tissue:
    """Find the tissue of a slide.

    `mask` replaces what would be found: GeoJSON in level0 pixels (of a slide with bounds relative to them, as in
    QuPath), or a small image of the whole slide that is not black where tissue is.

    Raises:
        TileError: the slide is damaged, or the mask is none.
    """
    longest = min(LONGEST_PX, max(slide.width, slide.height) * slide.mpp / MPP)
    thumbnail = slide.thumbnail(max(1, round(longest)))
    found = tissue_mask(thumbnail, max(slide.width, slide.height) * slide.mpp / max(thumbnail.shape[:2]))
    return Tissue(found if mask is None else _users(mask, slide, found.shape), slide.width, slide.height)


def tissue_mask(image: UInt8[np.ndarray, "h w 3"], mpp: float) -> Bool[np.ndarray, "h w"]:
    """Find the tissue in a picture of `mpp` (about 4 to 32) micrometres per pixel.

    Tissue absorbs light (optical density) and has colour (saturation); both thresholds are Otsu's, within bounds.
    Strongly coloured pixels whose red is weaker than their green are ink (blue, green), dark ones without colour are
    black ink or the scanner's edge. Red ink is taken for tissue: it looks like blood.
    """
    red, green, blue = (image[:, :, channel].astype(np.float32) for channel in range(3))
    bright, dark = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    saturation = (bright - dark) / bright.clip(1)
    white = max(float(np.percentile(dark, 98)), 200.0)
    density = -np.log10(((red + green + blue) / 3).clip(1) / white).clip(None, 1)
    ink = (saturation > 0.2) & (green - red > 15)
    black = (bright < 80) & (bright - dark < 30)
    usable = ~(ink | black)
    if not usable.any():
        return usable
    tissue = usable & (density > _threshold(density[usable], DENSITY))
    tissue &= saturation > _threshold(saturation[usable], SATURATION)
    radius = round(CLOSING_UM / mpp / 2)
    if radius:
        tissue = np.asarray(closing(np.pad(tissue, radius), disk(radius)))[radius:-radius, radius:-radius]
    smallest = round(SMALLEST_UM2 / mpp**2)
    return remove_small_holes(remove_small_objects(tissue, max_size=smallest), max_size=smallest) & usable


def _threshold(values: Float[np.ndarray, " n"], bounds: tuple[float, float]) -> float:
    return float(np.clip(threshold_otsu(values), *bounds))


def _users(file: Path, slide: Slide, shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    try:
        if file.suffix.lower() in (".geojson", ".json"):
            drawn = shapely.make_valid(shapely.from_geojson(file.read_text()))
            scale = (shape[1] / slide.width, shape[0] / slide.height)
            small = shapely.transform(drawn, lambda points: (points + slide.origin) * scale)
            patch = rasterise(shapely.union_all(shapely.get_parts(small)), *shape)
            mask = np.zeros(shape, bool)
            high, wide = patch.mask.shape
            mask[patch.top : patch.top + high, patch.left : patch.left + wide] = patch.mask
            return mask
        with Image.open(file) as image:
            mask = np.asarray(image.convert("L")) > 0
    except Exception as error:  # shapely, Pillow and files raise each their own
        reason = " ".join(str(error).split())
        raise TileError(f"{file} is no mask of tissue (GeoJSON, or a picture of the whole slide): {reason}") from error
    high, wide = mask.shape
    sides = wide * slide.height, high * slide.width
    if abs(sides[0] - sides[1]) > SKEWED * sides[1] + slide.width + slide.height:  # each side rounded to a pixel
        raise TileError(
            f"{file} is {wide} x {high} px, not of the shape of the slide ({slide.width} x {slide.height} px): give a "
            "mask of the whole slide"
        )
    return mask
