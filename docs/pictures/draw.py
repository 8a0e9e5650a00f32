"""The pictures of docs/explanation/plm.md, from the functions that train: `python docs/pictures/draw.py`."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from colocate.core.geometry import Crop, cell_edges
from colocate.core.matching import SharedArea, overlap
from colocate.core.settings import ViewConfig
from colocate.core.views import identity_params, render
from colocate.data.phantom import phantom_tile
from colocate.pages.matches import cell_box

HERE = Path(__file__).parent
TILE, GRID, CELL = 256, 4, 5  # pixels; cells a side; the cell that is followed
ORANGE, BLUE, INK, PAPER = "#c4510a", "#0b61a4", "#2b2b33", "#fbfaf8"
FIRST = Crop.of([[22, 28, 166, 172]])  # top, left, bottom, right
SECOND = Crop.of([[36, 228, 228, 36]])  # left and right swapped: mirrored


def main() -> None:
    """Write all pictures beside this file."""
    for name, text in pictures().items():
        (HERE / name).write_text(text)


def pictures() -> dict[str, str]:
    """Each SVG by its name."""
    match = overlap(FIRST, SECOND, GRID)
    shares = (match.fractions() * match.weight[:, :, None])[0, CELL]
    return {"overlap.svg": overlap_picture(shares.view(GRID, GRID).numpy()), "separable.svg": separable(match)}


def overlap_picture(shares: np.ndarray) -> str:
    """A tile with two crops; both views; the share of one cell in each cell of the other view."""
    tile = torch.from_numpy(phantom_tile(1, 2, TILE, 1.0).image).permute(2, 0, 1)[None]
    config = ViewConfig(size=192, mean=(0, 0, 0), std=(1, 1, 1))
    views = [render(tile, identity_params(crop), config).images[0] * 255 for crop in (FIRST, SECOND)]
    parts = [picture(tile[0], 20, 44, TILE), picture(views[0], 316, 44, 220), picture(views[1], 576, 44, 220)]
    parts += [label(20, 30, "a tile, and two random crops of it"), label(316, 30, "view 1", ORANGE)]
    parts += [label(576, 30, "view 2 (mirrored)", BLUE)]
    for number, share in enumerate(shares.flat):
        if share > 0:
            parts.append(box(*on_tile(SECOND, number), BLUE, fill=0.15 + 0.6 * share))
    for crop, colour in ((SECOND, BLUE), (FIRST, ORANGE)):
        parts += [grid(*on_tile_whole(crop), colour, crop)]
    parts.append(box(*on_tile(FIRST, CELL), ORANGE, fill=0.35, stroke=3))
    side = 220 / GRID
    parts += [lines(left, 44, 220, colour) for left, colour in ((316, ORANGE), (576, BLUE))]
    row, column = divmod(CELL, GRID)
    parts.append(box(316 + column * side, 44 + row * side, side, side, ORANGE, fill=0.35, stroke=3))
    for number, share in enumerate(shares.flat):
        if share > 0:
            y, x = divmod(number, GRID)
            parts.append(box(576 + x * side, 44 + y * side, side, side, BLUE, fill=0.15 + 0.6 * share))
            parts.append(tag(576 + (x + 0.5) * side, 44 + (y + 0.5) * side, f"{share:.0%}"))
    parts.append(label(316, 288, "the filled cell of view 1 …", ORANGE))
    parts.append(label(576, 288, "… lies partly in these four", BLUE))
    return svg(816, 316, parts)


def separable(match: SharedArea) -> str:
    """The shares of one cell as a column of numbers times a row of numbers."""
    row, column = divmod(CELL, GRID)
    rows, cols = match.rows[0, row].numpy(), match.cols[0, column].numpy()
    side = 52
    parts = [label(20, 30, "its height in each", BLUE), label(20, 50, "row of view 2", BLUE)]
    for y, share in enumerate(rows):
        parts += number_box(40, 70 + y * side, side, share)
    parts += [label(150, 183, "×", size=26), label(200, 118, "its width in each", BLUE)]
    parts.append(label(200, 138, "column of view 2", BLUE))
    for x, share in enumerate(cols):
        parts += number_box(200 + x * side, 148, side, share)
    parts += [label(450, 183, "=", size=26), label(510, 50, "its share in each cell of view 2", BLUE)]
    for y, high in enumerate(rows):
        for x, wide in enumerate(cols):
            parts += number_box(510 + x * side, 70 + y * side, side, high * wide)
    return svg(816, 300, parts)


def number_box(x: float, y: float, side: float, share: float) -> list[str]:
    """A square filled by its number."""
    return [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{side}" height="{side}" fill="{BLUE}" fill-opacity="{0.75 * share:.2f}" '
        f'stroke="{INK}" stroke-width="0.8"/>',
        tag(x + side / 2, y + side / 2, f"{share:.0%}" if share else "0"),
    ]


def on_tile(crop: Crop, cell: int) -> tuple[float, float, float, float]:
    """x, y, width and height of a cell in the picture of the tile."""
    top, left, bottom, right = cell_box(crop, (GRID, GRID), cell)
    return 20 + left, 44 + top, right - left, bottom - top


def on_tile_whole(crop: Crop) -> tuple[float, float, float, float]:
    """The same of a whole crop."""
    (top, bottom), (left, right) = crop.rows[0].sort().values.tolist(), crop.cols[0].sort().values.tolist()
    return 20 + left, 44 + top, right - left, bottom - top


def grid(x: float, y: float, width: float, height: float, colour: str, crop: Crop) -> str:
    """A crop's outline and the edges of its cells."""
    rows, cols = (cell_edges(ends, GRID)[0].tolist() for ends in (crop.rows, crop.cols))
    inner = "".join(f"M{x:.1f} {44 + edge:.1f}h{width:.1f}" for edge in rows[1:-1])
    inner += "".join(f"M{20 + edge:.1f} {y:.1f}v{height:.1f}" for edge in cols[1:-1])
    return f'<path d="{inner}" stroke="{colour}" stroke-width="1" fill="none"/>' + box(x, y, width, height, colour)


def lines(left: float, top: float, side: float, colour: str) -> str:
    """The grid of a view."""
    steps = [side * step / GRID for step in range(1, GRID)]
    inner = "".join(f"M{left} {top + step:.1f}h{side}M{left + step:.1f} {top}v{side}" for step in steps)
    return f'<path d="{inner}" stroke="{colour}" stroke-width="1" fill="none"/>' + box(left, top, side, side, colour)


def box(x: float, y: float, width: float, height: float, colour: str, fill: float = 0, stroke: float = 2) -> str:
    """A rectangle, filled to some degree."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" stroke="{colour}" '
        f'stroke-width="{stroke}" fill="{colour}" fill-opacity="{fill:.2f}"/>'
    )


def label(x: float, y: float, text: str, colour: str = INK, size: int = 15) -> str:
    """Words."""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}">{text}</text>'


def tag(x: float, y: float, text: str) -> str:
    """A number in the middle of a cell, on any ground."""
    return (
        f'<text x="{x:.1f}" y="{y + 5:.1f}" font-size="14" text-anchor="middle" fill="{INK}" stroke="{PAPER}" '
        f'stroke-width="3" paint-order="stroke">{text}</text>'
    )


def picture(image: torch.Tensor, x: float, y: float, side: float) -> str:
    """Pixels (3, h, w) of 0 to 255 as a JPEG within the SVG."""
    data = io.BytesIO()
    pixels = image.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(data, "JPEG", quality=82)
    text = base64.b64encode(data.getvalue()).decode()
    return f'<image x="{x}" y="{y}" width="{side}" height="{side}" href="data:image/jpeg;base64,{text}"/>'


def svg(width: int, height: int, parts: list[str]) -> str:
    """The whole picture, on paper of its own: it is seen on light and dark pages."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    return (
        "\n".join([head, f'<rect width="{width}" height="{height}" rx="6" fill="{PAPER}"/>', *parts, "</svg>"]) + "\n"
    )


if __name__ == "__main__":
    main()
