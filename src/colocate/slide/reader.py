"""What every reader of a slide's file offers, and how it says that the file is damaged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import openslide
from jaxtyping import UInt8
from PIL import Image

from ..errors import TileError

CACHE_BYTES = 64 << 20  # of decoded tiles, for all slides of a process together
Answer = TypeVar("Answer")


class Reader(ABC):
    """An open file of one or more levels of the same picture, finest first."""

    path: Path
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each level, in its own pixels."""
    mpp: tuple[float, float] | None
    """Micrometres per pixel of the finest level, along x and y; None where the file does not say."""
    properties: dict[str, str]
    origin: tuple[int, int] = (0, 0)
    """Where the scanned area begins, in pixels of the finest level."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    @abstractmethod
    def read(self, level: int, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of a level, from column x and row y on; the region lies within the level. Not to be written to.

        Raises:
            TileError: the file is damaged.
        """


def told(path: Path, act: Callable[[], Answer]) -> Answer:
    """What an action gives; on damaged files tifffile, its codecs and Pillow raise almost anything."""
    try:
        return act()
    except (TileError, openslide.OpenSlideError):
        raise
    except Image.UnidentifiedImageError:
        raise TileError(f"{path} is no slide: OpenSlide, tifffile and Pillow know no such file") from None
    except Exception as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> TileError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return TileError(f"{path} is cut short or damaged ({reason}): copy it again")
