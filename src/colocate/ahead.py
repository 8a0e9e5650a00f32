"""Batches of views made while the device is busy with the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .data import Tiles
from .views import Batch


def views_ahead(
    batches: Iterator[tuple[int, Tiles]], views: Callable[[int, Tiles, Tensor], Batch], device: torch.device
) -> Iterator[tuple[int, Tiles, Batch]]:
    """Each numbered batch of tiles with its `views`, made from the number, the tiles and their images on the device.

    On a GPU the copy and the views of a batch go through a stream of their own, asked for as soon as the step on the
    batch before has been: the GPU does them beside it, and the host waits for loader processes while the GPU works.
    The numbers are the same, for views depend on nothing that the step changes.
    """
    if device.type != "cuda":
        for turn, tiles in batches:
            yield turn, tiles, views(turn, tiles, tiles.images.to(device))
        return
    beside = torch.cuda.Stream(device)

    def prepared() -> tuple[int, Tiles, Batch, Any] | None:
        upcoming = next(batches, None)
        if upcoming is None:
            return None
        with torch.cuda.stream(beside):
            batch = views(*upcoming, upcoming[1].images.to(device, non_blocking=True))
        return *upcoming, batch, beside.record_event()

    waiting = prepared()
    while waiting is not None:
        turn, tiles, batch, ready = waiting
        main = torch.cuda.current_stream(device)
        main.wait_event(ready)
        for view in (batch.first, batch.second, *batch.locals, *([batch.reference] if batch.reference else [])):
            view.images.record_stream(main)  # its memory is not given away before the step is done with it
        yield turn, tiles, batch
        waiting = prepared()
