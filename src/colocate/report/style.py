"""Colours that colour-blind readers can tell apart, type sizes, and a page placed in inches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from PIL import Image

from colocate.base.files import light_png

INK = "#1d2433"
SOFT = "#667085"  # secondary text, axes
RULE = "#d9dde5"
# Okabe and Ito's palette. On pink and purple tissue its light half shows best, and every cell bears a number as well.
BLUE, ORANGE, GREEN, VERMILION = "#0072b2", "#e69f00", "#009e73", "#d55e00"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, "#cc79a7", "#56b4e9", INK, "#999999")  # without yellow: paper is white
CELLS = ("#f0e442", "#56b4e9", "#ff9f1c", "#ffffff", "#12c48b")
TITLE, TEXT, SMALL = 17, 9.5, 8.5


class Page:
    """A white page whose parts are placed in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose frame fills this rectangle."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, words: str, size: float = TEXT, **style: object) -> None:
        """Words whose first line's top stands at `top`."""
        style = {"color": INK, "va": "top", "ha": "left", "linespacing": 1.45} | style
        self.figure.text(left / self.width, 1 - top / self.height, words, fontsize=size, **style)  # type: ignore[arg-type]

    def heading(self, left: float, top: float, words: str, explanation: str) -> None:
        """A section's title with what it shows in a line or two below."""
        self.text(left, top, words, 11.5, fontweight="bold")
        self.text(left, top + 0.25, explanation, TEXT, color=SOFT)

    def png(self) -> bytes:
        """The page as `png` packs it."""
        return png(self.figure)


def png(figure: Figure) -> bytes:
    """Draw a figure as a PNG of 256 colours below 300 kB, with fewer dots if it must be."""
    return light_png(_drawn(FigureCanvasAgg(figure), dpi) for dpi in (120, 110, 100, 90, 80, 65))


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


def columns(left: float, width: float, count: int, gap: float) -> Iterator[tuple[float, float]]:
    """Left edge and width of `count` equal columns."""
    each = (width - gap * (count - 1)) / count
    return ((left + i * (each + gap), each) for i in range(count))
