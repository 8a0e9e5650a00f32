"""Laws of finding tissue: on any glass, whatever else the slide shows, and however much of it is tissue.

Scenes are made of optical densities: a blob of tissue of a kind on glass of a colour, and things laid over both.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import binary_dilation, gaussian_filter
from scipy.spatial import KDTree

from colocate.slides.tissue import tissue_mask

H, W = 240, 320  # of 8 micrometres
ROWS, COLUMNS = np.mgrid[:H, :W]
NOISE = np.random.default_rng(0).normal(0, 2, (H, W, 3))
HAEMATOXYLIN, EOSIN, DAB = np.array([[0.65, 0.70, 0.29], [0.09, 0.95, 0.28], [0.27, 0.57, 0.78]])
GLASS = {
    "white": (243, 243, 243),
    "saturated": (255, 255, 255),
    "grey": (215, 215, 215),
    "dim": (190, 190, 190),
    "dim pink": (185, 172, 180),
    "yellow": (235, 228, 200),
    "dim yellow": (190, 182, 160),
    "blue": (205, 215, 235),
    "pink": (235, 215, 228),
    "warm": (240, 225, 205),
    "green": (215, 228, 218),
}
KINDS = ("H&E", "eosin", "pale IHC", "DAB", "mucin", "lymphoid", "frozen", "fat")
Mask = Bool[np.ndarray, "h w"]


def blob(row: float, column: float, high: float, wide: float, seed: int = 0) -> Mask:
    rng, angle = np.random.default_rng(seed), np.arctan2(ROWS - row, COLUMNS - column)
    waves = sum(0.06 * rng.normal() * np.cos(k * angle + rng.uniform(0, 6)) for k in range(2, 7))
    return ((ROWS - row) / high) ** 2 + ((COLUMNS - column) / wide) ** 2 < (1 + waves) ** 2


def grown(mask: Mask, px: int) -> Mask:
    return np.asarray(binary_dilation(mask, iterations=px), bool)


def box(top: int, bottom: int, left: int, right: int) -> Mask:
    mask = np.zeros((H, W), bool)
    mask[top:bottom, left:right] = True
    return mask


def cloud(grain: float, seed: int) -> Float[np.ndarray, "h w 1"]:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(H, W)), grain, mode="wrap")
    return (noise / noise.std())[..., None]


@functools.cache
def stained(kind: str) -> Float[np.ndarray, "h w 3"]:
    """The optical density of tissue of a kind, everywhere."""
    fine, coarse = cloud(1, 1), cloud(4, 2)
    if kind == "H&E":
        return (0.25 + 0.12 * fine).clip(0.05) * HAEMATOXYLIN + (0.25 + 0.08 * coarse).clip(0.05) * EOSIN
    if kind == "eosin":  # paler than what stains the glass of some slides
        return (1 + 0.1 * coarse) * np.array([0.009, 0.039, 0.018])
    if kind in ("pale IHC", "DAB"):
        counterstain = (0.055 + 0.008 * fine).clip(0.03) * np.array([0.60, 0.60, 0.26])
        return counterstain + (kind == "DAB") * 0.7 * (coarse > 0.5) * DAB
    if kind == "mucin":
        return (0.06 + 0.01 * coarse).clip(0.03) * np.array([0.55, 0.60, 0.20])
    if kind == "lymphoid":
        return (0.65 + 0.1 * fine) * HAEMATOXYLIN + 0.1 * EOSIN
    if kind == "frozen":
        soft = (0.12 + 0.06 * fine).clip(0.02) * HAEMATOXYLIN + (0.08 + 0.03 * coarse).clip(0.02) * EOSIN
        return gaussian_filter(soft, (1.5, 1.5, 0))
    centres = np.random.default_rng(5).uniform(0, (H, W), (H * W // 64, 2))  # of fat cells, 64 um apart
    near = KDTree(centres).query(np.stack([ROWS, COLUMNS], -1), k=2)[0]
    walls = gaussian_filter((near[..., 1] - near[..., 0] < 1.2) * 1.0, 0.5)[..., None]
    return 0.22 * walls * (0.3 * HAEMATOXYLIN + EOSIN)


def of(red: int, green: int, blue: int) -> Float[np.ndarray, "3"]:
    return -np.log10(np.array([red, green, blue]) / 243)


PIECE = blob(120, 115, 75, 80)
BESIDE = box(30, 210, 230, 260)
DARK = {  # where, and the density there
    "DAB core": (blob(120, 115, 25, 25, 1), of(110, 70, 40)),
    "DAB beside": (blob(120, 265, 60, 40, 1), of(110, 70, 40)),
    "fold": (box(60, 180, 100, 108), 0.9 * HAEMATOXYLIN + 0.6 * EOSIN),
    "fold beside": (BESIDE, 0.9 * HAEMATOXYLIN + 0.6 * EOSIN),
    "lymphoid": (blob(120, 265, 80, 40, 8), 0.65 * HAEMATOXYLIN + 0.1 * EOSIN),
    "all but a ring of glass": (~blob(120, 115, 95, 100), 0.65 * HAEMATOXYLIN + 0.3 * EOSIN),
    "red pen": (BESIDE, of(200, 30, 40)),
}
UNWANTED = {
    "green pen": (BESIDE, of(30, 140, 60)),
    "blue pen": (BESIDE, of(20, 60, 170)),
    "turquoise pen": (BESIDE, of(30, 160, 170)),
    "black pen": (BESIDE, of(25, 25, 28)),
    "pen across": (box(110, 125, 0, W), of(30, 140, 60)),
    "edge": (box(0, H, 0, 16) | box(0, 16, 0, W), of(20, 20, 20)),
    "broad edge": (box(0, H, 215, W), of(8, 8, 8)),
}


def scene(
    glass: str, kind: str, where: Mask = PIECE, over: Sequence[str] = (), vignetting: float = 0
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of tissue of a kind; `vignetting`: the share of light that is lost in the corners."""
    density = where[..., None] * stained(kind)
    for name in over:
        place, there = (DARK | UNWANTED)[name]
        density[place] = there
    away = ((ROWS / H - 0.5) ** 2 + (COLUMNS / W - 0.5) ** 2) * 2
    light = np.array(GLASS[glass]) * 10**-density * (1 - vignetting * away)[..., None]
    return (gaussian_filter(light, (0.5, 0.5, 0)) + NOISE).clip(0, 255).round().astype(np.uint8)


def found(*args: object, **options: object) -> Mask:
    return tissue_mask(scene(*args, **options), 8.0)  # type: ignore[arg-type]


@functools.cache
def alone(glass: str, kind: str) -> Mask:
    return found(glass, kind)


def iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


@pytest.mark.parametrize("vignetting", [0, 0.25])
@pytest.mark.parametrize("glass", GLASS)
def test_any_glass_is_background(glass: str, vignetting: float) -> None:
    for kind in ("eosin", "pale IHC", "mucin") if vignetting else KINDS:
        mask = found(glass, kind, vignetting=vignetting) if vignetting else alone(glass, kind)
        assert iou(mask, PIECE) > (0.93 if kind == "fat" else 0.95), kind


@pytest.mark.parametrize("glass", ["white", "dim yellow"])
@pytest.mark.parametrize("over", DARK | UNWANTED)
def test_what_is_added_takes_nothing_away_elsewhere(over: str, glass: str) -> None:
    """Monotone, and local: but for 3 px around what was added the mask is what it was (to 1 % of it)."""
    place = (DARK | UNWANTED)[over][0]
    away = ~grown(place, 3)
    for kind in ("eosin", "pale IHC", "fat"):
        before, after = alone(glass, kind), found(glass, kind, over=[over])
        assert (before & ~after & away).sum() <= 0.01 * before.sum(), kind
        assert (after & ~before & away).sum() <= 0.01 * before.sum(), kind
        assert iou(after & away, PIECE & away) >= 0.9, kind
        inside = place & ~grown(~place, 2)
        assert after[inside].mean() > 0.99 if over in DARK else not after[inside].any()


@pytest.mark.parametrize("glass", ["white", "dim yellow", "pink"])
@pytest.mark.parametrize("corner", [(40, 40), (120, 160)], ids=["2 %", "25 %"])
def test_a_slide_that_is_almost_all_tissue(corner: tuple[int, int], glass: str) -> None:
    where = ~box(0, corner[0], 0, corner[1])
    kinds = ("H&E", "eosin", "pale IHC", "mucin", "fat")
    assert {kind: score for kind in kinds if (score := iou(found(glass, kind, where), where)) < 0.95} == {}


@pytest.mark.parametrize("kind", ["H&E", "lymphoid", "frozen", "fat"])
def test_a_slide_without_any_glass(kind: str) -> None:
    """Stained tissue is no glass. (Pale, even tissue without any glass would be taken for it.)"""
    assert found("white", kind, np.ones((H, W), bool)).mean() > 0.95


@pytest.mark.parametrize("glass", GLASS)
def test_a_slide_that_is_almost_all_glass(glass: str) -> None:
    where = blob(120, 160, 12, 12)
    for kind in ("H&E", "eosin", "pale IHC", "fat"):
        mask = found(glass, kind, where)
        assert mask[where].mean() > 0.85 and not mask[~grown(where, 3)].any(), kind
    assert not found(glass, "H&E", np.zeros((H, W), bool)).any()


@pytest.mark.parametrize("glass", ["grey", "dim yellow", "warm"])
def test_white_that_was_not_scanned_is_not_the_glass(glass: str) -> None:
    picture = scene(glass, "H&E")
    picture[:, 230:] = 255
    assert iou(tissue_mask(picture, 8.0), PIECE) > 0.93  # but for the pixels that are half and half


def test_stain_that_fades_into_the_glass_is_none() -> None:
    """As pink as pale tissue, which has an outline; beside tissue, and alone."""
    haze = gaussian_filter(blob(120, 230, 50, 45) * 1.0, 20)[..., None] * np.array([0.018, 0.078, 0.036])
    for kind in ("H&E", "eosin"):
        there = scene("white", kind) * 10**-haze if kind == "H&E" else np.array(GLASS["white"]) * 10**-haze
        mask = tissue_mask(there.round().clip(0, 255).astype(np.uint8), 8.0)
        assert not mask[~grown(PIECE, 5)].any()
        assert iou(mask, PIECE) > 0.9 if kind == "H&E" else not mask.any()


@pytest.mark.parametrize("mpp", [4.0, 16.0, 32.0])
def test_other_resolutions(mpp: float) -> None:
    for kind in ("H&E", "eosin", "pale IHC", "lymphoid"):
        assert iou(tissue_mask(scene("dim yellow", kind), mpp), PIECE) > 0.95
