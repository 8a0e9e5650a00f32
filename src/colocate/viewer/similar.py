"""How similar the features of one place of a slide are to those of all others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import h5py
import matplotlib
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from colocate.base.errors import UserError
from colocate.prediction.outputs import ROWS
from colocate.viewer.cache import kept
from colocate.viewer.pyramid import RGBA, Region

COLOURS: UInt8[np.ndarray, "256 3"] = matplotlib.colormaps["viridis"](np.arange(256), bytes=True)[:, :3]
LOW = 0.02  # quantile of the similarities that is darkest
OPACITY = 215
BEST = 8  # places that are named


@final
@dataclass(frozen=True, eq=False)
class Lattice:
    """Where the n features of a slide lie: on squares of `pitch` level0 pixels."""

    rows: Int32[np.ndarray, "h w"]
    """The number of the feature of each square, -1 where there is none."""
    pitch: float
    of: str
    """tiles or cells."""
    backbone: str

    def at(self, x: float, y: float) -> int | None:
        """The number of the feature at level0 (x, y)."""
        row, col = math.floor(y / self.pitch), math.floor(x / self.pitch)
        inside = 0 <= row < self.rows.shape[0] and 0 <= col < self.rows.shape[1]
        return int(self.rows[row, col]) if inside and self.rows[row, col] >= 0 else None

    def square(self, number: int) -> list[float]:
        """Left, top, right and bottom of a feature's square in level0 pixels."""
        row, col = (int(place[0]) for place in np.nonzero(self.rows == number))
        return [col * self.pitch, row * self.pitch, (col + 1) * self.pitch, (row + 1) * self.pitch]


@kept(4, files=lambda path: (path,))
def lattice(path: Path) -> Lattice:
    """Read where the features in a file of `colocate features` lie. Raises UserError if it cannot be read."""
    try:
        with h5py.File(path, locking=False) as file:
            features: Any = file["features"]
            coords: Any = file["coords"]
            pitch = float(coords.attrs["patch_size"] * coords.attrs["mpp"] / coords.attrs["level0_mpp"])
            x, y = np.rint(coords[:] / pitch).astype(int).T
            of, backbone = str(features.attrs["of"]), str(features.attrs["backbone"])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): run `colocate features` again") from error
    rows = np.full((int(y.max()) + 1, int(x.max()) + 1), -1, np.int32)
    rows[y, x] = np.arange(len(x))
    return Lattice(rows, pitch, of, backbone)


@final
@dataclass(frozen=True, eq=False)
class Similarity:
    """Cosine similarities of all n features to one of them."""

    cosines: Float32[np.ndarray, " n"]
    low: float
    """That is drawn darkest; 1 is drawn lightest."""
    best: list[int]
    """The features that are most similar, best first, without the one itself."""


@kept(8, files=lambda path, _: (path,))
def similarity(path: Path, number: int) -> Similarity:
    """Compare one of the features in a file with all; only a block of them is in memory.

    Raises LookupError: there is no such feature.
    """
    with h5py.File(path, locking=False) as file:
        features: Any = file["features"]
        one = _unit(features[number : number + 1])[0]
        blocks = [_unit(features[start : start + ROWS]) @ one for start in range(0, len(features), ROWS)]
    cosines = np.concatenate(blocks)
    best = [other for other in np.argsort(-cosines, kind="stable")[: BEST + 1].tolist() if other != number]
    return Similarity(cosines, float(np.quantile(cosines, LOW)), best[:BEST])


def _unit(vectors: Float32[np.ndarray, "n c"]) -> Float32[np.ndarray, "n c"]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def draw_similarity(where: Lattice, found: Similarity, place: Region) -> RGBA:
    """Draw a part of the slide: each feature's square in the colour of its similarity, nothing where there is none."""
    rows, cols = (
        np.floor((start + (np.arange(count) + 0.5) * place.scale) / where.pitch).astype(int)
        for start, count in ((place.y, place.height), (place.x, place.width))
    )
    high, wide = where.rows.shape
    numbers = where.rows[rows.clip(0, high - 1)][:, cols.clip(0, wide - 1)]
    numbers = np.where((rows < high)[:, None] & (cols < wide), numbers, -1)
    bright = (found.cosines - found.low) / max(1 - found.low, 1e-6)
    colours = COLOURS[(bright * 255).round().clip(0, 255).astype(np.uint8)]
    return np.dstack([colours[numbers], np.where(numbers < 0, 0, OPACITY).astype(np.uint8)])
