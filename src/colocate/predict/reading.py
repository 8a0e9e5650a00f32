"""Regions of a slide in batches, read ahead of the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from ..data import read_ahead
from ..errors import TileError, UserError
from ..slide import Slide


def read_regions(
    slide: Slide, places: Shaped[np.ndarray, "n 2"], side: int, mpp: float, batch: int, workers: int
) -> Iterator[UInt8[Tensor, "b 3 side side"]]:
    """The regions of `side` px of `mpp` whose top left corners are at `places` (level0 x, y), batch after batch.

    No more than what is read ahead is in memory.

    Raises:
        TileError: the slide is damaged.
    """
    steps = range(-(-len(places) // batch))
    regions = _Regions(slide, places, side, mpp)
    return read_ahead(regions, steps, lambda step: slice(step * batch, (step + 1) * batch), workers)


@final
@dataclass(frozen=True)
class _Regions(Dataset[Any]):
    slide: Slide
    places: Shaped[np.ndarray, "n 2"]
    side: int
    mpp: float

    def __getitem__(self, some: slice) -> UInt8[Tensor, "b 3 s s"] | UserError:
        try:
            regions = [self.slide.read(x, y, self.side, self.side, self.mpp) for x, y in self.places[some].tolist()]
        except TileError as error:
            return error
        return torch.from_numpy(np.stack(regions)).permute(0, 3, 1, 2)
