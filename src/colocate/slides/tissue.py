"""Find a slide's tissue at low resolution, leaving out pen marks and dark edges, or read the user's own mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import shapely
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image, ImageFilter
from scipy import ndimage
from shapely.geometry.base import BaseGeometry
from skimage.morphology import closing, disk, remove_small_holes, remove_small_objects

from colocate.base.errors import TileError, UserError
from colocate.base.shapes import class_name, rasterise, read_geojson
from colocate.slides.slide import Slide

MPP, LONGEST_PX = 8.0, 3000  # of the mask: larger slides get a coarser one
BAND = 256  # rows whose densities are in memory at once
SMOOTH_UM, CLOSING_UM = 4.0, 16.0
ABSORBED = -np.log10(np.arange(256).clip(1) / 255).astype(np.float32)  # optical density; the following are such, too
PALE, STRONG = 0.014, 0.06  # colour (largest density less smallest) of tissue, and of tissue that need no outline
DARK, COLOURLESS = 0.4, 0.27  # density of black, and its share that is colour
INK = 0.33  # share of ink's colour by which it absorbs more red than green
EDGE = 0.3  # share of its neighbours' strongest colour that a pixel must have: less is glass that they spill on
STEEP = 0.3  # share of a pale region's colour by which it steps, within 6 px, at its border
FLAT, DIMMEST, VIGNETTE = 0.012, 0.26, 0.15  # of glass: change a pixel, density, and more of it along each side
LEAST = 0.01  # share of the picture that is glass, where any is
BIN, REACH, ALIKE, PINK = 0.005, 24, 0.006, 0.012  # of glass's hue; bins to each side of none
SKEWED = 0.02  # how much longer or shorter than the slide's a side of the user's mask may be
IGNORED = "Ignore*"  # QuPath's class of what is to be left out
SMALLEST_UM2 = 10_000.0  # debris below, and holes
Mask = Bool[np.ndarray, "h w"]
Finder = Callable[[UInt8[np.ndarray, "h w 3"], float], Mask]  # picture, micrometres per pixel


@final
@dataclass(frozen=True, eq=False)
class Tissue:
    """The tissue of a slide of `width` x `height` level0 pixels."""

    mask: Mask
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
        inside = rasterise(small, high, wide)
        if not inside.mask.any():
            point = small.representative_point()
            return float(self.mask[min(int(point.y), high - 1), min(int(point.x), wide - 1)])
        return float(self.mask[inside.place][inside.mask].mean())

    def at(self, x: Float[np.ndarray, " w"], y: Float[np.ndarray, " h"]) -> Bool[np.ndarray, "h w"]:
        """Whether tissue is at the points of a grid (level0 pixels); the mask's steps are rounded off."""
        high, wide = self.mask.shape
        u = (x * wide / self.width - 0.5).clip(0, wide - 1)
        v = (y * high / self.height - 0.5).clip(0, high - 1)
        left, top = u.astype(int), v.astype(int)
        rows = self.mask[top.min() : top.max() + 2].astype(np.float32)  # first along rows, then along columns: fast
        across = rows[:, left] + (u - left) * (rows[:, (left + 1).clip(max=wide - 1)] - rows[:, left])
        top, below = top - top.min(), (top - top.min() + 1).clip(max=len(rows) - 1)
        return across[top] + (v % 1)[:, None] * (across[below] - across[top]) >= 0.5

    def _below(self, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Tissue above and left of points, in pixels of the mask: sums between whole pixels are linear."""
        high, wide = self.mask.shape
        u, v = (x * wide / self.width).clip(0, wide), (y * high / self.height).clip(0, high)
        return ndimage.map_coordinates(self._sums, np.stack([v, u]), order=1)


def find_tissue(slide: Slide, mask: Path | None = None, find: Finder | None = None) -> Tissue:
    """Find the tissue of a slide, by `find` or else `tissue_mask`.

    `mask` replaces what would be found: GeoJSON in level0 pixels (of a slide with bounds relative to them, as in
    QuPath; less what has its class `Ignore*`), or a small image of the whole slide that is not black where tissue is.

    Raises TileError if the slide is damaged or the mask is none, UserError if `find` gives no mask of the picture.
    """
    longest = min(LONGEST_PX, max(slide.width, slide.height) * slide.mpp / MPP)
    thumbnail = slide.thumbnail(max(1, round(longest)))
    shape = thumbnail.shape[:2]
    if mask is not None:
        return Tissue(_users(mask, slide, shape), slide.width, slide.height)
    found = (find or tissue_mask)(thumbnail, max(slide.width, slide.height) * slide.mpp / max(shape))
    if not isinstance(found, np.ndarray) or found.dtype != bool or found.shape != shape:
        said = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        name = getattr(find, "__qualname__", find)
        raise UserError(f"{name} gave {said} for the tissue of {slide.path}: return a NumPy array of bool {shape}")
    return Tissue(found, slide.width, slide.height)


def tissue_mask(image: UInt8[np.ndarray, "h w 3"], mpp: float) -> Mask:
    """Find the tissue in a picture of `mpp` (about 4 to 32) micrometres per pixel.

    Tissue has another colour than the empty glass; how bright either is does not count. What absorbs red most is ink
    (not red ink, which looks like blood), what is dark without colour is black ink or the scanner's edge, and what is
    pale and fades into the glass is stain beside the tissue.
    """
    smooth = np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(SMOOTH_UM / mpp)))
    tint = _glass(smooth)
    bands = [_colour(smooth[top : top + BAND], tint) for top in range(0, len(smooth), BAND)]
    colour, usable, stained = (np.concatenate(parts) for parts in zip(*bands, strict=True))
    least = ndimage.maximum_filter(colour, 3)
    least *= EDGE
    tissue = stained & (colour > np.maximum(least, PALE, out=least))
    del bands, least, stained, smooth  # of large slides they are tens of megabytes each
    pad = round(CLOSING_UM / mpp / 2) + 1
    tissue = np.asarray(closing(np.pad(tissue, pad), disk(pad - 1)))[pad:-pad, pad:-pad]
    smallest = round(SMALLEST_UM2 / mpp**2)
    tissue = remove_small_holes(tissue, max_size=smallest) & usable
    return remove_small_objects(tissue & ~_faded(tissue, usable & (colour <= PALE), colour), max_size=smallest)


def _colour(
    picture: UInt8[np.ndarray, "h w 3"], tint: Float32[np.ndarray, "2"]
) -> tuple[Float32[np.ndarray, "h w"], Mask, Mask]:
    """Largest density less smallest; where a pixel is neither ink nor black; and where it may be tissue besides."""
    density = ABSORBED[picture]
    red, green, blue = density[..., 0] - tint[0], density[..., 1], density[..., 2] - tint[1]
    colour = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    mean = (red + green + blue) / 3
    ink = red - green > INK * colour
    usable = ~(ink & (colour > STRONG) | (mean > DARK) & (colour < COLOURLESS * mean))
    return colour, usable, usable & ~ink & (picture != 255).any(-1)  # white was not scanned, and may differ from glass


def _glass(picture: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "2"]:
    """How much more density the empty glass has in red and in blue than in green; 0 where no glass is to be seen.

    Flat, bright pixels vote in bins of this hue; of those with enough votes the brightest wins. A lamp's light may
    fall off to the corners, so a bin's brightness is that of a line through it at the picture's centre.
    """
    step = max(1, max(picture.shape[:2]) // 500)
    some = ABSORBED[picture[::step, ::step]].astype(np.float64)
    mean = some.mean(-1)
    y, x = (np.linspace(-1, 1, side) for side in mean.shape)
    hue = some[..., ::2] - some[..., 1:2]
    flat = np.hypot(ndimage.sobel(mean, 0), ndimage.sobel(mean, 1)) < 8 * FLAT
    votes = flat & (some.max(-1) < DIMMEST) & (mean > 0)  # white is mostly what was not scanned
    hues, far, dark = hue[votes], (y[:, None] ** 2 + x**2)[votes], mean[votes]
    edges = np.arange(-REACH, REACH + 1) * BIN

    def sums(weights: Float[np.ndarray, " n"]) -> Float[np.ndarray, "bins bins"]:
        bins = np.histogram2d(hues[:, 0], hues[:, 1], (edges, edges), weights=weights)[0]
        return ndimage.uniform_filter(bins, 3, mode="constant") * 9

    count = sums(np.ones_like(far))
    n, f, d = count.clip(1), sums(far), sums(dark)
    slope = (sums(far * dark) - f * d / n) / (sums(far**2) - f**2 / n + 0.02 * n)
    middle = (edges[1:] + edges[:-1]) / 2
    pink = -(middle[:, None] + middle).clip(None, 0) / 2  # of two alike the pinker is tissue
    rank = np.where(count < LEAST * mean.size, np.inf, (d - slope.clip(0, VIGNETTE) * f) / n + pink)
    if np.isinf(rank).all():  # none is to be seen
        return np.zeros(2, np.float32)
    best = np.where(rank < rank.min() + ALIKE, count, 0).argmax()  # of neighbours the fullest
    found = middle[np.array(np.unravel_index(best, rank.shape))]
    for _ in range(3):  # to the top of its peak
        found = np.average(hues, 0, np.exp(-2 * ((hues - found) ** 2).sum(1) / BIN**2))
    white = -found.mean() > PINK and (mean == 0).mean() > LEAST  # pale tissue on white, not tinted glass beside holes
    return (0 * found if white else found).astype(np.float32)


def _faded(tissue: Mask, glass: Mask, colour: Float32[np.ndarray, "h w"]) -> Mask:
    """Pale regions of `tissue` whose colour does not step at their border with the glass."""
    parts, count = cast(Any, ndimage.label(tissue & (ndimage.maximum_filter(colour, 5) < STRONG)))
    y, x = np.nonzero((parts > 0) & np.asarray(ndimage.maximum_filter(glass & ~tissue, 3)))
    colour = np.asarray(ndimage.uniform_filter(colour, 5))

    def at(dy: int, dx: int) -> Float32[np.ndarray, " n"]:
        return colour[(y + dy).clip(0, len(colour) - 1), (x + dx).clip(0, colour.shape[1] - 1)]

    rim, pale = parts[y, x], parts > 0
    steps = np.bincount(rim, np.hypot(at(3, 0) - at(-3, 0), at(0, 3) - at(0, -3)), count + 1)
    rims, sizes = (np.bincount(some, minlength=count + 1) for some in (rim, parts[pale]))
    colours = np.bincount(parts[pale], colour[pale], count + 1)
    return ((rims > 0) & (steps / rims.clip(1) < STEEP * colours / sizes.clip(1)))[parts]


def _users(file: Path, slide: Slide, shape: tuple[int, int]) -> Mask:
    try:
        if file.suffix.lower() in (".geojson", ".json"):
            features = read_geojson(file)
            ignored, drawn = (
                shapely.union_all([feature.shape for feature in features if (class_name(feature) == IGNORED) == out])
                for out in (True, False)
            )
            drawn = drawn.difference(ignored)
            scale = (shape[1] / slide.width, shape[0] / slide.height)
            small = shapely.transform(drawn, lambda points: (points + slide.origin) * scale)
            patch = rasterise(small, *shape)
            mask = np.zeros(shape, bool)
            mask[patch.place] = patch.mask
            return mask
        with Image.open(file) as image:
            if image.has_transparency_data and np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
                raise ValueError("transparent in places: save it without transparency")
            grey = image.mode != "P" and len(image.getbands()) == 1
            values = np.asarray(image if grey else image.convert("RGB")) > 0  # as grey a dark colour would be black
            mask = np.asarray(values if grey else values.any(-1))
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
