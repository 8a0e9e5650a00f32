"""Whether tiles show what they say, by OpenSlide's own reads; whether masks lie where tissue was drawn."""

from __future__ import annotations

import io
import json
import math
import statistics
from pathlib import Path

import numpy as np
import openslide
import shapely
from jaxtyping import Bool, UInt8
from PIL import Image, JpegImagePlugin

from colocate.base.shapes import rasterise, read_geojson
from colocate.slides.slide import Slide

OUTLINES = Path(__file__).parents[2] / "tissue"
SCORED_UM = 4.0  # pixels on which masks are compared
AROUND = 2  # px of a tile by which it is moved, to see where it fits best
Mask = Bool[np.ndarray, "h w"]


def of_tiles(slide: Path, tiles: Path) -> dict[str, float]:
    """Compare the tiles in a folder (`script.py` wrote it) within the slide with what OpenSlide reads there.

    OpenSlide's pixels are resized, where the tile's are, by Pillow's bicubic kernel, and packed with the tile's own
    JPEG tables: what differs then is how the peer reads and resizes.

    Returns:
        difference_levels: Mean absolute difference, grey levels of 255.
        jpeg_levels: What JPEG alone does to OpenSlide's pixels.
        placed: Share of the tiles that fit nowhere better within 2 px than where they say.
        tile_mpp: Micrometres per pixel of the tiles, by their side on the slide.
    """
    bare, own_mpp, found = openslide.OpenSlide(slide), Slide.open(slide).mpp, []
    for path in sorted(tiles.glob("*.tile")):
        place = json.loads(path.with_suffix(".json").read_text())
        if place["x"] + place["side"] > bare.dimensions[0] + 1 or place["y"] + place["side"] > bare.dimensions[1] + 1:
            continue  # beyond the slide each fills as it likes
        with Image.open(path) as tile:
            pixels = np.asarray(tile.convert("RGB"))
            around = _read(bare, **place, size=len(pixels))
            read = around[AROUND:-AROUND, AROUND:-AROUND]
            packed = _jpeg(read, tile)
        moved = {(y, x): around[y : y + len(pixels), x : x + len(pixels)] for y in range(5) for x in range(5)}
        best = min(moved, key=lambda at: _difference(moved[at], pixels))
        found.append(
            {
                "difference_levels": _difference(packed, pixels),
                "jpeg_levels": _difference(packed, read),
                "placed": float(best == (AROUND, AROUND)),
                "tile_mpp": own_mpp * place["side"] / len(pixels),
            }
        )
    return {name: round(statistics.fmean(one[name] for one in found), 4) for name in found[0]} if found else {}


def _read(slide: openslide.OpenSlide, x: float, y: float, side: float, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """A tile of `size` px with AROUND px more on each side."""
    step = 1.0 if abs(side - size) < 0.05 else side / size
    start, length = np.array((x, y)) - AROUND * step, (size + 2 * AROUND) * step
    first = np.floor(start) - math.ceil(2 * step) - 1  # the kernel sees beyond the edge
    wide = math.ceil(length + 4 * step) + 4
    region = slide.read_region((int(first[0]), int(first[1])), 0, (wide, wide))
    region = Image.alpha_composite(Image.new("RGBA", region.size, "white"), region).convert("RGB")
    box = (*(start - first).tolist(), *(start - first + length).tolist())
    if step == 1:
        return np.asarray(region.crop(tuple(round(edge) for edge in box)))
    return np.asarray(region.resize((size + 2 * AROUND, size + 2 * AROUND), Image.Resampling.BICUBIC, box))


def _jpeg(pixels: UInt8[np.ndarray, "h w 3"], like: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels packed and unpacked as a JPEG is; themselves where `like` is lossless."""
    if not isinstance(like, JpegImagePlugin.JpegImageFile):
        return pixels
    file = io.BytesIO()
    subsampling = JpegImagePlugin.get_sampling(like)
    Image.fromarray(pixels).save(file, "JPEG", qtables=like.quantization, subsampling=subsampling)
    return np.asarray(Image.open(file))


def _difference(one: UInt8[np.ndarray, "h w 3"], other: UInt8[np.ndarray, "h w 3"]) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())


def drawn(slide: Path) -> tuple[Mask, Mask]:
    """Where tissue was drawn by hand on a slide, and where it counts: half-empty places may be called either.

    Both in pixels of SCORED_UM micrometres.
    """
    opened = Slide.open(slide)
    scale = opened.mpp / SCORED_UM
    places = []
    for name in (slide.stem, f"{slide.stem}-unsure"):
        shape = shapely.union_all([one.shape for one in read_geojson(OUTLINES / f"{name}.geojson")])
        place = np.zeros((round(opened.height * scale), round(opened.width * scale)), bool)
        patch = rasterise(shapely.transform(shape, lambda points: points * scale), *place.shape)
        place[patch.place] = patch.mask
        places.append(place)
    return places[0], ~places[1]


def of_masks(found: Path, tissue: Mask, counts: Mask) -> dict[str, float]:
    """Compare a mask (a picture of the whole slide, not black where tissue is) with tissue, where it counts.

    Returns:
        dice, iou: Of the two.
        coverage: Share of the tissue that is found.
        precision: Share of what is found that is tissue.
    """
    with Image.open(found) as picture:
        mask = np.asarray(picture.convert("L").resize(tissue.shape[::-1], Image.Resampling.NEAREST)) > 0
    mask, tissue = mask & counts, tissue & counts
    both, either = (mask & tissue).sum(), (mask | tissue).sum()
    shares = {
        "dice": 2 * both / (mask.sum() + tissue.sum()),
        "iou": both / either,
        "coverage": both / tissue.sum(),
        "precision": both / max(mask.sum(), 1),
    }
    return {name: round(float(share), 4) for name, share in shares.items()}
