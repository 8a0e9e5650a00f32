"""Do the features know glands? Held-out tiles segmented by their cells' nearest neighbours."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.axes import Axes

from ..probes.nearest import ProbeScore, dice
from .style import BLUE, INK, RULE, SMALL, SOFT, picture, plot

WASH = np.array([0, 158, 115])  # of cells called gland
GOLDEN = 0.618034  # spreads dots evenly, without a random generator


def draw_scores(axes: Axes, scores: dict[str, ProbeScore]) -> None:
    """A row a network, from the top: each test image's Dice as a dot, that of all cells pooled as a bar."""
    plot(axes, "Dice on held-out tiles", "")
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    for row, score in enumerate(scores.values()):
        colour = SOFT if row == 0 else BLUE
        each = dice(score.predicted.flatten(1), score.truth.flatten(1)).numpy()
        height = row + 0.42 * ((np.arange(len(each)) * GOLDEN) % 1 - 0.5)
        axes.plot(each, height, "o", ms=3.2, mew=0, color=colour, alpha=0.4, clip_on=False)
        axes.plot([score.dice] * 2, [row - 0.32, row + 0.32], color=colour, lw=2.6, solid_capstyle="butt")
        axes.text(score.dice, row - 0.36, f"{score.dice:.2f}", fontsize=SMALL, color=colour, fontweight="bold",
                  ha="center", va="bottom")  # fmt: skip
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xlim(0, 1)


def draw_segmented(
    axes: Axes,
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "y x"],
    predicted: Bool[np.ndarray, "g f"],
) -> None:
    """A tile: cells called gland in green, the rest faded, the true glands outlined."""
    rows = np.arange(image.shape[0]) * predicted.shape[0] // image.shape[0]
    cols = np.arange(image.shape[1]) * predicted.shape[1] // image.shape[1]
    called = predicted[rows][:, cols, None]
    washed = np.where(called, 0.55 * image + 0.45 * WASH, 0.55 * image + 0.45 * 255)
    picture(axes, washed.round().astype(np.uint8))
    if mask.any() and not mask.all():
        y, x = ((np.arange(own) + 0.5) * shown / own for own, shown in zip(mask.shape, image.shape[:2], strict=True))
        axes.contour(x, y, mask.astype(float), levels=[0.5], colors=[INK], linewidths=1.1)
