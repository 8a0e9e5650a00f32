"""A page of small pictures: what the tiles look like, at a glance."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from colocate.errors import UserError
from colocate.png import light_png

THUMB_PX = 96
GAP_PX = 6
LINE_PX = 11
COLUMNS = 8
COLOURS = (256, 128, 64, 32)  # the most whose PNG is light
PAGE = (235, 235, 235)  # on which an empty, white tile still shows


def thumb(tile: Image.Image) -> Image.Image:
    """The tile shrunk (never enlarged) to fit a cell of the sheet."""
    small = tile.copy()
    small.thumbnail((THUMB_PX, THUMB_PX), Image.Resampling.BOX)
    return small


def contact_sheet(
    thumbs: list[tuple[Image.Image, str, str]], out: Path, side_px: int = THUMB_PX, columns: int = COLUMNS
) -> None:
    """Write thumbs, each with its two lines of caption, as a PNG below 300 kB (with fewer colours, if it must be).

    Raises UserError if `out` cannot be written.
    """
    columns = min(columns, len(thumbs))
    wide, high = side_px + GAP_PX, side_px + 2 * LINE_PX + GAP_PX
    rows = -(-len(thumbs) // columns)
    sheet = Image.new("RGB", (GAP_PX + columns * wide, GAP_PX + rows * high), PAGE)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=9)
    for cell, (image, *lines) in enumerate(thumbs):
        left, top = GAP_PX + cell % columns * wide, GAP_PX + cell // columns * high
        sheet.paste(image, (left, top + side_px - image.height))
        for line, text in enumerate(lines):
            draw.text(
                (left, top + side_px + line * LINE_PX), _fitted(draw, text, font, side_px), fill="black", font=font
            )
    try:
        out.write_bytes(light_png(sheet.quantize(most, dither=Image.Dither.NONE) for most in COLOURS))
    except OSError as error:
        raise UserError(
            f"The contact sheet {out} cannot be written ({error.strerror}): choose another place"
        ) from error


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, px: int) -> str:
    """The text, or as much of its end as fits under a thumb: file names differ there."""
    shown = text
    while draw.textlength(shown, font) > px:
        text = text[1:]
        shown = "…" + text
    return shown
