"""Decode the bytes of an image file to RGB pixels; what cannot be read raises TileError with one sentence."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from colocate.base.errors import TileError

LARGEST_PX = 100_000_000
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")

# What matters in Pillow's warnings (bombs, broken files) is raised below. One filter for good, because catch_warnings
# is not safe in threads and makes every other warning of the program appear again.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes, name: str) -> UInt8[Tensor, "3 h w"]:
    """Decode an image file to RGB pixels; `name` stands in errors.

    Grey is repeated over the channels, transparency lies on white (a slide's background), 16-bit grey is scaled to
    8 bits, palettes and CMYK become RGB. EXIF orientation is ignored: tissue has no upright, and masks that belong
    to a tile carry none. Of several pages or levels the first counts.

    Raises TileError if the bytes are no image (JPEG, PNG, TIFF, BMP, WebP), damaged, in floating point, or hold more
    than 100 million pixels.

    >>> file = io.BytesIO()
    >>> Image.new("L", (4, 3), 7).save(file, "PNG")
    >>> decode(file.getvalue(), "grey.png")[:, 0, 0], decode(file.getvalue(), "grey.png").shape
    (tensor([7, 7, 7], dtype=torch.uint8), torch.Size([3, 3, 4]))
    """
    return pixels(header(data, name), name)


def header(data: bytes, name: str) -> Image.Image:
    """Open an image: format, size and mode are known, pixels still packed. Raises TileError as `decode` does."""
    if not data:
        raise TileError(f"{name} is empty: copy it again or remove it")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise slide(name) from None
    except UnidentifiedImageError:
        kinds = "JPEG, PNG, TIFF, BMP or WebP"
        raise TileError(f"{name} is no {kinds} image, or is cut off in its first bytes: replace or remove it") from None
    except Exception as error:  # on hostile bytes Pillow's readers raise almost anything
        raise _damaged(name, error) from error
    if image.width * image.height > LARGEST_PX:
        raise slide(name)
    return image


def pixels(image: Image.Image, name: str) -> UInt8[Tensor, "3 h w"]:
    """Unpack an image that `header` returned. Raises TileError as `decode` does."""
    if image.mode == "F":
        raise TileError(f"{name} holds floating-point pixels, whose white is unknown: save it with 8 or 16 bits")
    try:
        image.load()
        if image.mode.startswith("I"):
            return _from_16_bits(np.asarray(image), name)
        colours = torch.from_numpy(np.array(_rgb(image)))
    except TileError:
        raise
    except Exception as error:
        raise _damaged(name, error) from error
    return colours.permute(2, 0, 1).contiguous()


def slide(name: str) -> TileError:
    """Return the error for a file that is too large to be a tile."""
    return TileError(f"{name} has over {LARGEST_PX // 10**6} million pixels and looks like a slide: cut it into tiles")


def _rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _from_16_bits(grey: np.ndarray, name: str) -> UInt8[Tensor, "3 h w"]:
    if grey.min() < 0 or grey.max() > 65535:
        raise TileError(f"{name} holds grey values beyond 16 bits: save it with 8 or 16 bits")
    rounded = (grey.astype(np.int32) + 128) // 257
    return torch.from_numpy(rounded.astype(np.uint8)).repeat(3, 1, 1)


def _damaged(name: str, error: Exception) -> TileError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return TileError(f"{name} is cut short or damaged ({reason}): copy it again or remove it")
