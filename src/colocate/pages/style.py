"""Colours that colour-blind readers can tell apart, type sizes, and plain charts and pictures."""

from __future__ import annotations

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from PIL import Image

from colocate.base.files import light_png

matplotlib.rcParams["text.parse_math"] = False  # a label may hold a dollar sign

INK = "#1d2433"
SOFT = "#667085"  # secondary text, axes
RULE = "#d9dde5"
# Okabe and Ito's palette. On pink and purple tissue its light half shows best, and every cell bears a number as well.
BLUE, ORANGE, GREEN, VERMILION = "#0072b2", "#e69f00", "#009e73", "#d55e00"
COLOURS = {
    "blue": BLUE,
    "vermilion": VERMILION,
    "green": GREEN,
    "orange": ORANGE,
    "purple": "#cc79a7",
    "sky": "#56b4e9",
    "ink": INK,
    "grey": "#999999",
}
"""Of lines and dots, by the names that templates/style.css has too; without yellow: paper is white."""
NAMES = tuple(COLOURS)
CELLS = ("#f0e442", "#56b4e9", "#ff9f1c", "#ffffff", "#12c48b")
TEXT, SMALL = 9.5, 8.5
DPI = (120, 110, 100, 90, 80, 65)  # of a PNG, until it is small enough


def heading(part: Figure | SubFigure, words: str, explanation: str = "") -> None:
    """Write a title, and an explanation in the lines below it, above a figure or a part of one."""
    look = {"ha": "left", "va": "top", "fontsize": TEXT, "color": INK}
    room = "\n" * (explanation.count("\n") + 1) if explanation else ""  # a title is of one weight
    top = 1 - 0.1 * part.dpi / part.bbox.height  # a tenth of an inch, of low parts too
    part.suptitle(words + room, x=0.01, y=top, fontweight="bold", **look)
    part.text(0.01, top, f"\n{explanation}", **look)


def png(figure: Figure) -> bytes:
    """Draw a figure as a PNG of 256 colours below 300 kB, with fewer dots if it must be."""
    return light_png(_drawn(FigureCanvasAgg(figure), dpi) for dpi in DPI)


def _drawn(canvas: FigureCanvasAgg, dpi: int) -> Image.Image:
    canvas.figure.set_dpi(dpi)
    canvas.draw()
    page = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    # Dithered: without it tissue in 256 colours breaks up into patches.
    return page.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)


def picture(axes: Axes, image: UInt8[np.ndarray, "h w 3"], *, smooth: bool = True) -> None:
    """Fill axes with an image, without ticks; pixels are squares unless `smooth`."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation="bicubic" if smooth else "nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=RULE, linewidth=0.6)


def plot(axes: Axes, title: str, xlabel: str) -> None:
    """Make a plain chart: a title at the left, light horizontal rules, no box."""
    axes.set_title(title, loc="left", fontsize=TEXT, color=INK, pad=7)
    axes.set_xlabel(xlabel, fontsize=SMALL, color=SOFT)
    axes.tick_params(labelsize=SMALL, colors=SOFT, length=2.5, width=0.6)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom",))
        spine.set(color=SOFT, linewidth=0.6)


def halo(width: float = 2.5, colour: str = INK) -> list[AbstractPathEffect]:
    """A dark edge behind lines and letters, so that light ones show on light tissue too."""
    return [withStroke(linewidth=width, foreground=colour)]
