"""Tiles from disk to a batch: which there are (Index), how they look (inspect), each step's batch (tile_loader)."""

from colocate.data.decode import decode
from colocate.data.index import Index
from colocate.data.inspect import Summary, inspect, show
from colocate.data.labelled import Labelled
from colocate.data.loader import Tiles, batch_indices, read_ahead, spaced, tile_loader
from colocate.data.orders import Balance, one_order, tile_order

__all__ = [
    "Balance",
    "Index",
    "Labelled",
    "Summary",
    "Tiles",
    "batch_indices",
    "decode",
    "inspect",
    "one_order",
    "read_ahead",
    "show",
    "spaced",
    "tile_loader",
    "tile_order",
]
