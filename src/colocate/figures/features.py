"""Dense features as colour: the first three principal components of a backbone's cells over the tissue they show."""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, UInt8
from matplotlib.axes import Axes
from torch import Tensor

from .style import picture


@final
class Components(NamedTuple):
    """The three directions in which unit vectors differ most, as red, green and blue."""

    mean: Float64[Tensor, " c"]
    axes: Float64[Tensor, "c 3"]
    low: Float64[Tensor, "3"]
    """Scores at the 2nd percentile, which are dark; a few odd vectors do not wash out the rest."""
    high: Float64[Tensor, "3"]
    """At the 98th: bright."""
    share: float
    """Of the variance."""

    def colours(self, vectors: Float[Tensor, "n c"]) -> Float32[Tensor, "n 3"]:
        """In [0, 1]."""
        scores = (F.normalize(vectors.double(), dim=1) - self.mean) @ self.axes
        return ((scores - self.low) / (self.high - self.low).clamp_min(1e-12)).clamp(0, 1).float()


def principal_components(vectors: Float[Tensor, "n c"]) -> Components:
    """The components of n vectors, whose lengths do not count."""
    unit = F.normalize(vectors.double(), dim=1)
    mean = unit.mean(0)
    centred = unit - mean
    spread, axes = torch.linalg.eigh(centred.mT @ centred)  # ascending; c x c, however many vectors there are
    axes = axes[:, -3:].flip(1)
    scores = centred @ axes
    # A component has no sign of its own: the longer tail is made the bright end.
    sign = torch.where(scores.pow(3).sum(0) < 0, -1.0, 1.0)
    low, high = torch.quantile(scores * sign, torch.tensor([0.02, 0.98], dtype=scores.dtype), dim=0)
    share = (spread[-3:].sum() / spread.sum().clamp_min(1e-300)).item()
    return Components(mean, axes * sign, low, high, share)


def principal_colours(cells: Float[Tensor, "n g f c"]) -> tuple[Float[Tensor, "n g f 3"], float]:
    """Red, green and blue in [0, 1] of all n tiles' cells, and the share of variance that they hold.

    Fitted jointly, so that a colour means the same in every tile.
    """
    components = principal_components(cells.flatten(0, 2))
    return components.colours(cells.flatten(0, 2)).view(*cells.shape[:3], 3), components.share


def draw_features(axes: list[Axes], colours: Float[Tensor, "n g f 3"]) -> None:
    """One tile's cells in each axes, every cell a flat square."""
    for axis, grid in zip(axes, _pixels(colours), strict=True):
        picture(axis, grid, smooth=False)


def _pixels(colours: Float[Tensor, "n g f 3"]) -> UInt8[np.ndarray, "n g f 3"]:
    return (colours * 255).round().to(torch.uint8).numpy()
