"""Phantom tissue: procedural H&E of colon mucosa with gland and nucleus instances, for the demo and the tests.

A tile is a pure function of (seed, index, size, mpp). Eight tiles share a slide: its stain vectors and strengths, its
grade, its cellularity, its focus. Geometry is in micrometres; pixels appear only where something is rasterised.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Complex64, Float32, Int32, Shaped, UInt8
from numpy.random import Generator
from PIL import Image, ImageDraw

TILES_PER_SLIDE = 8
# Haematoxylin and eosin: optical density per channel at unit concentration (Ruifrok & Johnston 2001).
STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
THETA = np.arange(384) * (2 * np.pi / 384)  # where a crypt's outline is sampled
# Stroma's cells: per mm2, how they huddle, wander off the fibres; then as in Cells, from the semi-axes on.
STROMA_CELLS = (
    (4500, 1, 9.0, 2.9, 2.6, 1.60, 0.3, 0.15),  # lymphocytes
    (1800, 1, 9.0, 3.8, 2.7, 1.10, 0.3, 0.40),  # plasma cells and histiocytes
    (2200, 1, 0.3, 5.8, 1.5, 1.25, 0.3, 0.10),  # fibroblasts
    (500, 6, 9.0, 3.3, 2.9, 0.00, 1.1, 0.20),  # red blood cells: no haematoxylin, no nucleus
)
Array = Shaped[np.ndarray, "..."]
Stain = Float32[np.ndarray, "h w 2"]  # concentrations of haematoxylin and eosin
Ids = Int32[np.ndarray, "h w"]
Cells = Float32[np.ndarray, "m 8"]  # ellipses: x, y, angle of the long axis, both semi-axes, both stains, pale middle


@dataclass(frozen=True)
class PhantomTile:
    """An RGB tile; instances are numbered 1..n, 0 is none. A gland is its epithelium and its lumen."""

    image: UInt8[np.ndarray, "h w 3"]
    glands: Ids
    nuclei: Ids


@dataclass(frozen=True)
class _Crypts:
    """Star-shaped outlines of n crypts, sampled at the angles THETA (k). Points are complex, x + iy, in um."""

    grade: float  # 0: normal; 1: crowded and irregular, with large, dark nuclei
    slope: float  # of the stroma's fibres, radians
    centres: Complex64[np.ndarray, "n"]
    points: Complex64[np.ndarray, "n k"]  # of the outline, from the centre
    normals: Complex64[np.ndarray, "n k"]  # unit, outward
    reach: Float32[np.ndarray, "n k"]  # from the centre to the tangent: depth = (1 - fraction of radius) * reach
    arc: Float32[np.ndarray, "n k"]  # along the outline
    wall: Float32[np.ndarray, "n k"]  # thickness of the epithelium


def phantom_tile(seed: int, index: int, size: int = 224, mpp: float = 1.0) -> PhantomTile:
    """Tile `index` of the phantom cohort `seed`: size x size px at mpp micrometres per pixel."""
    slide = np.random.default_rng([seed, 0, index // TILES_PER_SLIDE])  # always drawn from in the same order
    rng = np.random.default_rng([seed, 1, index])
    grade = slide.uniform(0.6, 1.0) if slide.random() < 0.45 else slide.uniform(0.0, 0.2)
    crypts = _crypts(rng, grade, size * mpp)
    stain, glands, room = _tissue(slide, rng, crypts, size, mpp)
    nuclei = _paint(rng, stain, _cells(slide, rng, crypts, room, mpp), mpp)
    return PhantomTile(_expose(slide, rng, stain), _contiguous(glands), _contiguous(nuclei))


def write_phantom(folder: Path, count: int, *, seed: int = 0, size: int = 224, mpp: float = 1.0) -> None:
    """Write tiles as images/slideNN/NNNN.png, gland ids as 16-bit glands/slideNN/NNNN.png, and tiles.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path,source,mpp"]
    for index in range(count):
        tile = phantom_tile(seed, index, size, mpp)
        source = f"slide{index // TILES_PER_SLIDE:02d}"
        for kind, pixels in (("images", tile.image), ("glands", tile.glands.astype(np.uint16))):
            path = folder / kind / source / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, compress_level=1)
        rows.append(f"images/{source}/{index:04d}.png,{source},{mpp}")
    (folder / "tiles.csv").write_text("\n".join(rows) + "\n")


def _wave(rng: Generator, n: int, roughness: float) -> Shaped[np.ndarray, "n k"]:
    """n smooth closed curves about zero, from a few low Fourier terms."""
    order = np.arange(2, 8)[:, None]
    size = rng.normal(0, roughness, (n, 2, 6)) / order.T**0.8
    return size[:, 0] @ np.cos(order * THETA) + size[:, 1] @ np.sin(order * THETA)


def _crypts(rng: Generator, grade: float, extent: float) -> _Crypts:
    """Crypts on a jittered, stretched hexagonal lattice, each kept inside its own convex cell: none can overlap."""
    pitch = rng.uniform(88, 118) + rng.uniform(-10, 30) * grade
    stretch = np.sqrt(rng.uniform(1.0, 1.6 + 0.8 * rng.random() ** 2))
    spin, tilt = np.exp(1j * rng.uniform(0, np.pi, 2))
    half = int(0.9 * extent * stretch / pitch) + 4
    i, j = np.mgrid[-half : half + 1, -half : half + 1].reshape(2, -1)
    jitter = rng.normal(0, 0.09, (2, len(i))).clip(-0.18, 0.18) - rng.random((2, 1))
    even = pitch * spin * (i + j / 2 + jitter[0] + 1j * (j * np.sqrt(0.75) + jitter[1]))  # before the stretch
    middle = tilt * (even.real * stretch + 1j * even.imag / stretch)  # from the tile's middle
    keep = np.maximum(np.abs(middle.real), np.abs(middle.imag)) < extent / 2 + pitch * stretch
    keep &= rng.random(len(i)) > 0.1  # a missing crypt here and there leaves room for stroma
    even, middle = even[keep], middle[keep]
    n = len(even)
    ray = np.exp(1j * THETA) / tilt
    ray = ray.real / stretch + 1j * ray.imag * stretch  # a step of 1 um along THETA, before the stretch
    size = pitch * rng.uniform(0.36, 0.50, n) * (1 + 0.3 * grade)
    free = size[:, None] * (1 + _wave(rng, n, 0.05 + 0.27 * grade)).clip(0.45) / np.abs(ray)
    offset = even - even[:, None]
    other = np.argsort(np.abs(offset), 1)[:, 1:11]  # only nearby crypts can touch
    offset = np.take_along_axis(offset, other, 1)
    share = size[:, None] / (size[:, None] + size[other])
    limit = np.abs(offset) * share - rng.uniform(8, 26) / 2 + 2.5 * grade  # to the wall between the two cells
    toward = ((offset / np.abs(offset))[..., None] * ray.conj()).real.clip(0) / limit[..., None]
    # A soft minimum, never above the hard one: crypts press flat against each other and keep round corners.
    points = (free**-8 + (((toward**2) ** 2) ** 2).sum(1)) ** -0.125 * np.exp(1j * THETA)
    tangent = (np.roll(points, -1, 1) - np.roll(points, 1, 1)) / 2
    normals = -1j * tangent / np.abs(tangent)
    low = np.exp(-((np.arange(len(THETA) // 2 + 1) / 7) ** 2))  # smoothed: else a kink would show down to the centre
    reach = np.fft.irfft(np.fft.rfft((points * normals.conj()).real) * low, len(THETA))
    wall = rng.uniform(0.5, 0.8, (n, 1)) * np.median(reach, 1, keepdims=True)
    wall = np.minimum(wall * (1 + _wave(rng, n, 0.08 + 0.1 * grade)).clip(0.6), 42).clip(None, 0.8 * reach)
    places = (a.astype(np.complex64) for a in (middle + (1 + 1j) * extent / 2, points, normals))
    lengths = (a.astype(np.float32) for a in (reach, np.cumsum(np.abs(tangent), 1), wall))
    return _Crypts(grade, rng.uniform(0, np.pi), *places, *lengths)


def _raster(outlines: Complex64[np.ndarray, "n k"], size: int, mpp: float) -> Ids:
    canvas = Image.new("I", (size, size))
    for i, polygon in enumerate((outlines / mpp - 0.5 - 0.5j).view(np.float32).tolist()):
        ImageDraw.Draw(canvas).polygon(polygon, fill=i + 1)
    return np.array(canvas, np.int32)


def _noise(rng: Generator, x: Array, y: Array) -> Array:
    """Smooth noise about zero (deviation 0.7) at points given in units of its grain."""
    table = rng.standard_normal(64 * 64, np.float32)
    i, j = np.floor(x), np.floor(y)
    u, v = x - i, y - j
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    i, j = i.astype(np.int32), j.astype(np.int32)
    left, right, top, base = i & 63, (i + 1) & 63, (j & 63) << 6, ((j + 1) & 63) << 6
    upper, lower = (table[k + left] * (1 - u) + table[k + right] * u for k in (top, base))
    return upper * (1 - v) + lower * v


def _cover(distance: Array, mpp: float) -> Array:
    """The share of a pixel covered by something whose edge is `distance` um away, positive inside."""
    return (0.5 + distance / mpp).clip(0, 1)


def _mix(under: Array, over: Array, share: Array) -> Array:
    return under + (over - under) * share[..., None]


def _tissue(slide: Generator, rng: Generator, crypts: _Crypts, size: int, mpp: float) -> tuple[Stain, Ids, Array]:
    """The tissue before any nucleus, gland ids, and where stroma has room for cells."""
    outlines = crypts.centres[:, None] + crypts.points
    glands = _raster(outlines, size, mpp)
    near = np.where(glands > 0, glands, _raster(outlines + 16 * crypts.normals, size, mpp)).reshape(-1)
    y, x = (np.mgrid[:size, :size].reshape(2, -1).astype(np.float32) + np.float32(0.5)) * np.float32(mpp)
    # Where in its crypt each nearby pixel is: the ratio to the outline's radius is linear along a ray.
    at = np.flatnonzero(near)
    own = near[at] - 1
    ray = x[at] + 1j * y[at] - crypts.centres[own]
    k = (np.angle(ray) / np.float32(THETA[1])).round().astype(np.int32) % len(THETA)
    ratio = np.abs(ray) / np.abs(crypts.points)[own, k]
    depth = (1 - ratio) * crypts.reach[own, k]
    where = np.stack((x[at], y[at], crypts.arc[own, k], ratio, depth, crypts.wall[own, k]))
    # Collagen: noise drawn out along a bent direction, near a crypt along its outline; gaps are long holes in it.
    cos, sin = np.float32(np.cos(crypts.slope)), np.float32(np.sin(crypts.slope))
    along, across = cos * x + sin * y, cos * y - sin * x + 14 * _noise(rng, x / 55, y / 55)
    strand = _noise(rng, along / 26, across / 4) + 0.6 * _noise(rng, along / 11, across / 2)
    fleck = _noise(rng, x / 2.3, y / 2.3)
    loose = _noise(rng, along / 36, across / 11) + 0.5 * _noise(rng, x / 9, y / 9)
    gap = _cover((loose - np.float32(rng.uniform(0.4, 1.7))) * 10, mpp)
    hug = np.exp(depth.clip(None, 0) / 6)
    strand[at] += (_noise(rng, where[2] / 22 + 7 * own.astype(np.float32), depth / 2.5) - strand[at]) * hug
    gap[at] *= 1 - hug
    basophilia = np.float32(rng.uniform(0.08, 0.24))
    stain = np.stack((basophilia * (1 + 0.3 * strand + 0.3 * fleck), 0.42 + 0.15 * strand + 0.08 * fleck), -1)
    stain = _mix(stain.clip(0.05), np.array([0.01, 0.015], np.float32), gap)
    room = 1 - gap
    room[at] *= depth < -3
    inside = glands.reshape(-1)[at] > 0
    gland = _epithelium(slide, rng, crypts, own[inside], where[:, inside], mpp)
    stain[at[inside]] = _mix(stain[at[inside]], gland, _cover(depth[inside], mpp))
    return stain.reshape(size, size, 2), glands, room.reshape(size, size)


def _epithelium(slide: Generator, rng: Generator, crypts: _Crypts, own: Array, where: Array, mpp: float) -> Array:
    """Columnar cells that taper towards the lumen, some filled with mucin, and what the lumen holds."""
    x, y, arc, ratio, depth, wall = where
    n, perimeter = len(crypts.arc), crypts.arc[:, -1]
    count = np.round(perimeter / rng.uniform(10, 13)).astype(np.int32)
    turn = arc * (count / perimeter).astype(np.float32)[own]
    cell = np.minimum(turn.astype(np.int32), count[own] - 1)
    u = turn - cell - 0.5  # across the cell, -0.5..0.5
    width = (perimeter / count).astype(np.float32)[own] * ratio
    tone, place, length, filled = rng.random((4, n, count.max(initial=1)), np.float32)[:, own, cell]
    grain = _noise(rng, x / 2.6, y / 2.6)
    cytoplasm = slide.uniform([0.12, 0.3], [0.34, 0.55]).astype(np.float32)
    stain = cytoplasm * (0.9 + 0.2 * tone + 0.14 * grain)[:, None]
    stain[:, 1] += 0.12 * np.exp(-(((0.5 - np.abs(u)) * width / 0.7) ** 2))  # membranes between cells
    stain[:, 1] += 0.25 * np.exp(-(((wall - depth - 1) / 1.2) ** 2))  # brush border
    stain[:, 1] += 0.2 * np.exp(-((depth / 1.2) ** 2))  # basement membrane
    half = wall * (0.17 + 0.12 * length)
    inward = 1 - np.hypot((depth - 9 - half - (wall - 11 - 2 * half) * place) / half, u / 0.47)
    filled = filled < slide.uniform(0.25, 1.0) * (1 - 0.9 * crypts.grade)
    mucin = _cover(inward * np.minimum(half, 0.47 * width), mpp) * filled
    stain = _mix(stain, np.array([0.10, 0.07], np.float32) * (1 + 0.5 * grain[:, None]), mucin)
    # A lumen is empty, or holds mucin (thin, bluish) or debris (pink, clotted).
    held = np.array([[0, 0], [0.08, 0.03], [0.16, 0.06], [0.12, 0.35]], np.float32)[rng.integers(4, size=n)][own]
    wisp = (0.3 + _noise(rng, x / 8, y / 5) + 0.5 * grain).clip(0)
    lumen = held * wisp[:, None] + np.float32(0.015)
    return _mix(stain, lumen, _cover(depth - wall + 0.8 * grain, mpp))


def _cells(slide: Generator, rng: Generator, crypts: _Crypts, room: Array, mpp: float) -> Cells:
    """The nuclei of epithelium and stroma, and red blood cells."""
    extent, grade, perimeter = len(room) * mpp, crypts.grade, crypts.arc[:, -1]
    turn = crypts.arc / perimeter[:, None] + np.arange(len(perimeter))[:, None]
    parts = []
    # Epithelial nuclei are basal, slender and upright; with grade larger, rounder, darker and piled up.
    # Fibroblasts of the sheath lie along the outline.
    long, short = rng.uniform(3.4, 4.6) * (1 + 0.35 * grade), rng.uniform(2.0, 2.4) + 0.8 * grade
    nucleus = (long, short, 1.25 + 0.25 * grade, 0.3, 0.25)
    for spacing, lowest, pile, tilt, traits in (
        (rng.uniform(4.3, 5.2) / (1 + 0.4 * grade), long + 1, 1.2 + 6 * grade, 0.0, nucleus),
        (30.0, -4.5, 1.0, np.pi / 2, (5.0, 1.3, 1.25, 0.3, 0.0)),
    ):
        count = np.round(perimeter / spacing).astype(int)
        own = np.repeat(np.arange(len(count)), count)
        step = np.arange(len(own)) - (np.cumsum(count) - count)[own] + rng.uniform(-0.35, 0.35, len(own))
        k = np.searchsorted(turn.reshape(-1), own + step / count[own] % 1) % len(THETA)
        depth = lowest + np.abs(rng.normal(0, pile, len(own)))
        depth = np.minimum(depth, np.minimum(crypts.wall[own, k] - long, 0.7 * crypts.reach[own, k]))
        at = crypts.centres[own] + crypts.points[own, k] * (1 - depth / crypts.reach[own, k])
        angle = np.angle(crypts.normals[own, k]) + tilt + rng.normal(0, 0.12 + 0.2 * grade, len(own))
        parts.append((at, angle, traits))
    crowd = 1.6 * slide.uniform(0.5, 1.7) * (extent / 1000) ** 2
    for per_mm2, huddle, wander, *traits in STROMA_CELLS:
        x, y = rng.random((2, rng.poisson(crowd * per_mm2))) * extent
        drift = (0.6 + 0.5 * _noise(rng, x / 45, y / 45)).clip(0) ** huddle
        here = rng.random(len(x)) < drift * room[(y / mpp).astype(int), (x / mpp).astype(int)]
        parts.append(((x + 1j * y)[here], crypts.slope + rng.normal(0, wander, here.sum()), traits))
    cells = [np.column_stack((at.real, at.imag, angle, np.tile(t, (len(at), 1)))) for at, angle, t in parts]
    cells = np.concatenate(cells)
    cells[:, 3:7] *= rng.normal(1, 0.12, (len(cells), 3)).clip(0.65, 1.4)[:, [0, 1, 2, 2]]
    return cells[(np.abs(cells[:, :2] - extent / 2) < extent / 2 + 8).all(1)].astype(np.float32)


def _paint(rng: Generator, stain: Stain, cells: Cells, mpp: float) -> Ids:
    """Paint all cells into `stain` at once, each in a small window; where two meet, the deeper wins. Ids of nuclei."""
    size, m = len(stain), len(cells)
    half = int(np.ceil(cells[:, 3:5].max(initial=1) / mpp)) + 1
    centre = cells[:, :2] / np.float32(mpp) - np.float32(0.5)
    pixel = np.round(centre).astype(np.int32)[..., None] + np.arange(-half, half + 1, dtype=np.int32)  # (m, 2, window)
    dx, dy = ((pixel - centre[..., None]) * np.float32(mpp)).swapaxes(0, 1)
    dx, dy = dx[:, None, :], dy[:, :, None]
    angle, long, short = cells[:, 2:5].T[..., None, None]
    cos, sin = np.cos(angle), np.sin(angle)
    inward = (1 - np.hypot((cos * dx + sin * dy) / long, (cos * dy - sin * dx) / short)) * short  # um, about
    on = (pixel >= 0) & (pixel < size)
    which, y, x = np.nonzero((inward > -mpp / 2) & on[:, 0, None, :] & on[:, 1, :, None])
    # One integer holds depth above identity, so that a maximum over pixels finds both.
    key = ((inward[which, y, x] + mpp / 2) * 1024).astype(np.int64) * m + which
    best = np.full(size * size, -1, np.int64)
    np.maximum.at(best, pixel[which, 1, y] * size + pixel[which, 0, x], key)
    at = np.flatnonzero(best >= 0)
    which, inward = best[at] % m, (best[at] // m / 1024 - mpp / 2).astype(np.float32)
    clump = _noise(rng, *(np.float32(mpp / 1.6) * np.stack((at % size, at // size)).astype(np.float32)))
    tone = 1 - cells[which, 7] * (inward / 1.6).clip(0, 1) + 0.18 * clump  # vesicular: a dark rim, clumped chromatin
    flat = stain.reshape(-1, 2)  # a view
    flat[at] = _mix(flat[at], cells[which, 5:7] * tone[:, None], _cover(inward, mpp))
    ids = np.zeros(size * size, np.int32)
    ids[at] = np.where((inward > 0) & (cells[which, 5] > 0), which + 1, 0)
    return ids.reshape(size, size)


def _expose(slide: Generator, rng: Generator, stain: Stain) -> UInt8[np.ndarray, "h w 3"]:
    """Beer-Lambert with the slide's stains, then the microscope: its lamp, uneven light, blur and sensor noise."""
    vectors = STAINS + slide.normal(0, 0.04, (2, 3)) + [[0, 0, 0], [0, 0, slide.uniform(0, 0.2)]]
    vectors = vectors.clip(0.02)  # a stain only absorbs: no channel gets brighter than the lamp
    vectors *= slide.uniform([[0.8], [0.65]], [[1.8], [1.7]]) / np.linalg.norm(vectors, axis=1, keepdims=True)
    white = slide.uniform(0.93, 0.99) * slide.uniform(0.98, 1.0, 3)
    light = np.exp(np.moveaxis(stain.clip(0) @ -vectors.astype(np.float32), -1, 0))
    row = np.arange(len(stain), dtype=np.float32)
    slant = rng.uniform(-0.015, 0.015, 2).astype(np.float32)[:, None] * (2 * row / len(row) - 1)
    light *= white.astype(np.float32)[:, None, None] * (0.97 + slant[0] + slant[1][:, None])
    blur = np.exp(-0.5 * ((row - row[:, None]).clip(-4, 4) / np.float32(slide.uniform(0.45, 0.75))) ** 2)
    blur /= blur.sum(1, keepdims=True)  # the edges weigh only what the tile holds
    light = blur @ light @ blur.T
    light += np.float32(slide.uniform(0.006, 0.014)) * rng.standard_normal(light.shape, np.float32)
    return np.ascontiguousarray(np.moveaxis(light * 255 + 0.5, 0, -1).clip(0, 255).astype(np.uint8))


def _contiguous(ids: Ids) -> Ids:
    """The same instances numbered 1..n without holes."""
    present = np.bincount(ids.reshape(-1)) > 0
    present[0] = False
    return np.cumsum(present, dtype=np.int32)[ids] * (ids > 0)
