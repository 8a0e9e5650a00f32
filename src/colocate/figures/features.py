"""Dense features as colour: the first three principal components of a backbone's cells over the tissue they show."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from torch import Tensor

from .style import picture


def principal_colours(cells: Float[Tensor, "n g f c"]) -> tuple[Float[Tensor, "n g f 3"], float]:
    """Red, green and blue in [0, 1] from the three directions in which the unit cells of all n tiles differ most.

    Fitted jointly, so that a colour means the same in every tile; the share of variance that they hold comes second.
    Each component runs from its 2nd to its 98th percentile: a few odd cells do not wash out the rest.
    """
    unit = F.normalize(cells.double().flatten(0, 2), dim=1)
    centred = unit - unit.mean(0)
    spread, axes = torch.linalg.eigh(centred.mT @ centred)  # ascending; c x c, however many cells there are
    axes = axes[:, -3:].flip(1)
    scores = centred @ axes
    # A component has no sign of its own: the longer tail is made the bright end.
    scores = scores * torch.where(scores.pow(3).sum(0) < 0, -1.0, 1.0)
    low, high = torch.quantile(scores, torch.tensor([0.02, 0.98], dtype=scores.dtype), dim=0)
    scaled = (scores - low) / (high - low).clamp_min(1e-12)
    share = (spread[-3:].sum() / spread.sum().clamp_min(1e-300)).item()
    return scaled.clamp(0, 1).float().view(*cells.shape[:3], 3), share


def draw_features(axes: list[Axes], colours: Float[Tensor, "n g f 3"]) -> None:
    """One tile's cells in each axes, every cell a flat square."""
    for axis, grid in zip(axes, _pixels(colours), strict=True):
        picture(axis, grid, smooth=False)


def _pixels(colours: Float[Tensor, "n g f 3"]) -> UInt8[np.ndarray, "n g f 3"]:
    return (colours * 255).round().to(torch.uint8).numpy()
