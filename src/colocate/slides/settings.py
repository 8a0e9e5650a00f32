"""How slides are cut, as settings; what a resolution may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from colocate.base.errors import UserError


def check_mpp(mpp: float, where: str) -> None:
    """Raises UserError unless `mpp` (micrometres per pixel) lies above 0 and below 100.

    >>> check_mpp(-1, "tiles.csv")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    colocate...UserError: tiles.csv: -1 micrometres per pixel is no resolution: give a number above 0 and below 100
    """
    if not 0 < mpp < 100:
        message = f"{mpp:g} micrometres per pixel is no resolution: give a number above 0 and below 100"
        raise UserError(f"{where}: {message}")


def same_mpp(mpps: Sequence[float]) -> bool:
    """Whether resolutions are all known and count as one: they differ by 5 % at most.

    >>> same_mpp([0.5, 0.503]), same_mpp([0.5, 1.0]), same_mpp([0.5, math.nan])
    (True, False, False)
    """
    return not any(map(math.isnan, mpps)) and max(mpps) <= 1.05 * min(mpps)


@dataclass(frozen=True)
class TilingConfig:
    """Tiles on a grid from the slide's top left, where there is tissue."""

    mpp: float = 0.5
    """Micrometres per pixel of the tiles; a level of the slide within 1 % of it is used as it is."""
    size: int = 256
    """Side of a tile, in px."""
    overlap: int = 0
    """Overlap of neighbouring tiles, in px."""
    min_tissue: float = 0.5
    """Least share of tissue in a tile."""
    min_sharpness: float = 2.0
    """Least sharpness of a tile: the standard deviation of its Laplacian, in grey levels. Most empty
    glass and strong blur lie below 2; 0 keeps all, without reading them if only a manifest is written."""
    quality: int = 90
    """JPEG quality; chroma is kept at full resolution."""

    def __post_init__(self) -> None:
        check_mpp(self.mpp, "--mpp")
        if not 16 <= self.size <= 4096:
            raise UserError(f"size is 16 to 4096 px, not {self.size}")
        if not 0 <= self.overlap < self.size:
            raise UserError(f"overlap is 0 or more and less than the size of {self.size} px, not {self.overlap}")
        if not 0 <= self.min_tissue <= 1 or not self.min_sharpness >= 0 or not 1 <= self.quality <= 100:
            raise UserError("min_tissue is a share in [0, 1], min_sharpness at least 0, quality 1 to 100")
