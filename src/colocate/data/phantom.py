"""Phantom tissue: procedural H&E of colon mucosa with gland and nucleus instances, for the demo and the tests.

A tile is a pure function of (seed, index, size, mpp). Eight tiles share a slide: its stains, its grade, how many cells
its stroma holds, its focus. Geometry is in micrometres.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32, UInt8
from numpy.random import Generator
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

TILES_PER_SLIDE = 8
# Haematoxylin and eosin: optical density per channel at unit concentration (Ruifrok & Johnston 2001).
STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
GAP_UM = 9.0  # of stroma between two glands
SPACING_UM = 5.6  # of the lattice that nuclei stand on
Field = Float[np.ndarray, "h w"]


@dataclass(frozen=True)
class PhantomTile:
    """An RGB tile; instances are numbered 1..n, 0 is none. A gland is its epithelium and its lumen."""

    image: UInt8[np.ndarray, "h w 3"]
    glands: Int32[np.ndarray, "h w"]
    nuclei: Int32[np.ndarray, "h w"]


class _Crypts(NamedTuple):
    """At each pixel, of the crypt that it lies in or next to."""

    number: Int32[np.ndarray, "h w"]
    """1, 2, ... within a crypt, 0 in the stroma."""
    depth: Field
    """Micrometres from the crypt's border, positive inside."""
    wall: Field
    """Thickness of its epithelium in micrometres: what is deeper is lumen."""
    angle: Field
    """The direction of the crypt's centre, radians."""


def phantom_tile(seed: int, index: int, size: int = 224, mpp: float = 1.0) -> PhantomTile:
    """Tile `index` of the phantom cohort `seed`: size x size px at mpp micrometres per pixel."""
    slide = np.random.default_rng([seed, 0, index // TILES_PER_SLIDE])  # always drawn from in the same order
    rng = np.random.default_rng([seed, 1, index])
    # 0: normal; 1: crowded and irregular crypts with large, dark nuclei
    grade = slide.uniform(0.6, 1.0) if slide.random() < 0.45 else slide.uniform(0.0, 0.2)
    crypts = _crypts(rng, grade, size, mpp)
    stain = _tissue(slide, rng, crypts, grade, mpp)
    nuclei = _paint_nuclei(slide, rng, stain, crypts, grade, mpp)
    return PhantomTile(_expose(slide, rng, stain), _contiguous(crypts.number), _contiguous(nuclei))


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


def _crypts(rng: Generator, grade: float, size: int, mpp: float) -> _Crypts:
    """Star-shaped crypts on a jittered hexagonal lattice; a pixel belongs to the one that it lies deepest in."""
    extent = size * mpp
    pitch = rng.uniform(88, 118) + rng.uniform(-10, 20) * grade
    reach = int(0.8 * extent / pitch) + 3
    i, j = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    lattice = np.stack([i + j / 2, j * np.sqrt(0.75)]) + rng.normal(0, 0.09, (2, len(i))).clip(-0.18, 0.18)
    turn = np.exp(1j * rng.uniform(0, np.pi))
    centres = pitch * turn * (lattice[0] + 1j * lattice[1] - rng.random()) + (1 + 1j) * extent / 2
    centres = centres[rng.random(len(centres)) > 0.1]  # a missing crypt here and there leaves room for stroma
    radii = pitch * rng.uniform(0.42, 0.54, len(centres)) * (1 + 0.1 * grade)
    order = np.arange(2, 7)
    waves = rng.normal(0, 0.04 + 0.12 * grade, (len(centres), 5)) / order**0.5
    phases = rng.uniform(0, 2 * np.pi, (len(centres), 5))

    y, x = (np.mgrid[:size, :size] + 0.5) * mpp
    near = KDTree(np.stack([centres.real, centres.imag], 1)).query(np.stack([x, y], -1), k=3)[1]
    ray = (x + 1j * y)[..., None] - centres[near]
    outline = 1 + (waves[near] * np.cos(order * np.angle(ray)[..., None] + phases[near])).sum(-1)
    ratio = np.abs(ray) / (radii[near] * outline.clip(0.5))  # 1 at the outline
    first = np.argmin(ratio, -1)[..., None]
    own, angle = (np.take_along_axis(some, first, -1)[..., 0] for some in (near, np.angle(ray)))
    nearest, second = np.moveaxis(np.sort(ratio, -1), -1, 0)[:2]
    depth = radii[own] * np.minimum(1 - nearest, (second - nearest) / 2) - GAP_UM / 2
    wall = radii[own] * rng.uniform(0.4, 0.65, len(centres))[own]
    return _Crypts(np.where(depth > 0, own + 1, 0).astype(np.int32), depth, wall, angle)


def _noise(rng: Generator, size: int, *grain: float) -> Field:
    """Smooth noise of deviation 1; `grain`: in px, of rows and columns."""
    noise = gaussian_filter(rng.normal(size=(size, size)), grain, mode="wrap")
    return noise / (noise.std() + 1e-6)


def _tissue(slide: Generator, rng: Generator, crypts: _Crypts, grade: float, mpp: float) -> Float[np.ndarray, "h w 2"]:
    """Concentrations of haematoxylin and eosin before any nucleus: fibres with gaps, epithelium, lumen."""
    size = len(crypts.depth)
    grain, cloud = (_noise(rng, size, um / mpp, um / mpp) for um in (1.2, 9.0))
    lengths = np.array([1.5, 9.0]) / mpp
    strand = _noise(rng, size, *(lengths if rng.random() < 0.5 else lengths[::-1]))
    stroma = np.stack([0.16 + 0.04 * grain, 0.42 + 0.12 * strand + 0.06 * grain], -1).clip(0.05)
    stroma[(cloud + 0.6 * strand > rng.uniform(0.8, 1.8)) & (crypts.depth < -2)] = 0.015  # empty
    goblet = np.float64(_noise(rng, size, 3 / mpp, 3 / mpp) > slide.uniform(0.2, 1.0) + 2 * grade)  # cells of mucin
    goblet *= (crypts.depth > 8) & (crypts.depth < crypts.wall - 2)
    cytoplasm = slide.uniform([0.12, 0.3], [0.34, 0.55]) * (1 + 0.1 * grain + 0.1 * cloud)[..., None]
    cytoplasm += (np.array([0.1, 0.07]) - cytoplasm) * goblet[..., None]
    cytoplasm[..., 1] += 0.25 * np.exp(-(((crypts.wall - crypts.depth - 1) / 1.2) ** 2))  # brush border
    lumen = np.array([[0, 0], [0.08, 0.03], [0.12, 0.35]])[rng.integers(3)] * (0.3 + cloud).clip(0)[..., None] + 0.015
    gland = np.where((crypts.depth < crypts.wall)[..., None], cytoplasm, lumen)
    return np.where((crypts.depth > 0)[..., None], gland, stroma)


def _paint_nuclei(
    slide: Generator, rng: Generator, stain: Float[np.ndarray, "h w 2"], crypts: _Crypts, grade: float, mpp: float
) -> Int32[np.ndarray, "h w"]:
    """Paint nuclei into `stain`, upright along the base of the epithelium and anyhow in the stroma. Returns ids."""
    size = len(stain)
    steps = np.arange(0, size * mpp, SPACING_UM)
    x, y = np.stack(np.meshgrid(steps, steps)).reshape(2, -1) + rng.uniform(-2, 2, (2, len(steps) ** 2))
    rows, columns = ((some / mpp).astype(int).clip(0, size - 1) for some in (y, x))
    depth = crypts.depth[rows, columns]
    stroma, cells = depth < 0, (depth > 1) & (depth < 9 + 8 * grade)
    crowd = slide.uniform(0.12, 0.4) * (1 + 0.5 * _noise(rng, size, 25 / mpp, 25 / mpp)[rows, columns])
    there = rng.random(len(x)) < np.where(stroma, crowd, 0.9 * cells)
    ids = np.zeros((size, size), np.int32)
    for number, at in enumerate(np.flatnonzero(there), start=1):
        if stroma[at]:
            long, short = ((2.9, 2.6), (3.8, 2.7), (5.8, 1.5))[rng.integers(3)]  # lymphocyte, plasma cell, fibroblast
            angle = rng.uniform(0, np.pi)
        else:
            long, short = 4.0 * (1 + 0.35 * grade), 2.2 + 0.8 * grade
            angle = crypts.angle[rows[at], columns[at]] + rng.normal(0, 0.12 + 0.2 * grade)
        radii = np.array([short, long]) * rng.normal(1, 0.12, 2).clip(0.65, 1.4) / mpp
        short, long = radii.clip(0.6)
        pixels = _ellipse(size, y[at] / mpp, x[at] / mpp, short, long, float(angle))
        ids[pixels] = number
        stain[pixels] = np.array([1.25 + 0.25 * grade, 0.3]) * rng.normal(1, 0.12)
    stain *= 1 + 0.12 * _noise(rng, size, 0.8 / mpp, 0.8 / mpp)[..., None]  # clumped chromatin
    return ids


def _ellipse(size: int, y: float, x: float, short: float, long: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels, of `size` x `size`, within an ellipse; at angle 0 `long` lies along x."""
    reach = max(short, long)
    rows, columns = (np.arange(max(0, int(at - reach)), min(size, int(at + reach) + 1)) for at in (y, x))
    down, right = rows[:, None] - y, columns - x
    across, along = down * np.cos(angle) - right * np.sin(angle), down * np.sin(angle) + right * np.cos(angle)
    inside = (across / short) ** 2 + (along / long) ** 2 < 1
    found = inside.nonzero()
    return rows[found[0]], columns[found[1]]


def _expose(slide: Generator, rng: Generator, stain: Float[np.ndarray, "h w 2"]) -> UInt8[np.ndarray, "h w 3"]:
    """Beer-Lambert with the slide's stains and lamp, then the microscope's blur and sensor noise."""
    vectors = (STAINS + slide.normal(0, 0.04, (2, 3))).clip(0.02)  # a stain only absorbs
    vectors *= slide.uniform([[0.8], [0.65]], [[1.8], [1.7]]) / np.linalg.norm(vectors, axis=1, keepdims=True)
    light = np.exp(-stain.clip(0) @ vectors) * slide.uniform(0.93, 0.99) * slide.uniform(0.98, 1.0, 3)
    light = gaussian_filter(light, (slide.uniform(0.45, 0.75),) * 2, axes=(0, 1))
    light += slide.uniform(0.006, 0.014) * rng.normal(size=light.shape)
    return (light * 255 + 0.5).clip(0, 255).astype(np.uint8)


def _contiguous(ids: Int32[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """The same instances numbered 1..n without holes."""
    present = np.bincount(ids.reshape(-1)) > 0
    present[0] = False
    return np.cumsum(present, dtype=np.int32)[ids] * (ids > 0)
