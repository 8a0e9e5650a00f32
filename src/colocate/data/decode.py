"""Decode the bytes of an image file to RGB pixels; what cannot be read raises TileError with one sentence."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from colocate.base.errors import TileError
from colocate.slides.pictures import LARGEST_PX, Plain, too_large
from colocate.slides.tiff import MAGIC, Tiff

JPEG, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


def decode(data: bytes, name: str) -> UInt8[Tensor, "3 h w"]:
    """Decode an image file to RGB pixels, as slides are read; `name` stands in errors.

    Grey is repeated over the channels, transparency lies on white (a slide's background), more than 8 bits are scaled
    to 8, palettes and CMYK become RGB. EXIF orientation is ignored: tissue has no upright, and masks that belong
    to a tile carry none. Of several pages or levels of a TIFF the largest counts.

    Raises TileError if the bytes are no image (JPEG, PNG, TIFF, BMP, WebP), damaged, in floating point, or hold more
    than 100 million pixels.

    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("L", (4, 3), 7).save(file, "PNG")
    >>> decode(file.getvalue(), "grey.png")[:, 0, 0], decode(file.getvalue(), "grey.png").shape
    (tensor([7, 7, 7], dtype=torch.uint8), torch.Size([3, 3, 4]))
    """
    return pixels(header(data, name))


def header(data: bytes, name: str) -> Plain | Tiff:
    """Open an image: its format and size are known, pixels still packed. Raises TileError as `decode` does."""
    if not data:
        raise TileError(f"{name} is empty: copy it again or remove it")
    if data.startswith(JPEG) and data.endswith(b"\0\0") and not data.rstrip(b"\0").endswith(JPEG_END):
        raise TileError(f"{name} is cut short: it ends in zeros, not as a JPEG does: copy it again or remove it")
    image = (Tiff if data.startswith(MAGIC) else Plain)(Path(name), data)
    if image.size[0] * image.size[1] > LARGEST_PX:
        raise too_large(name)
    return image


def pixels(image: Plain | Tiff) -> UInt8[Tensor, "3 h w"]:
    """Unpack an image that `header` returned. Raises TileError as `decode` does."""
    colours = image.read(0, 0, 0, *image.size)
    return torch.from_numpy(colours.transpose(2, 0, 1).copy())
