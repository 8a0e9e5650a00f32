"""Tiles from disk to a batch: which there are (Index), how they look (inspect), each step's batch (tile_loader)."""

from colocate.data.decode import decode
from colocate.data.index import Index
from colocate.data.inspect import Summary, inspect, show
from colocate.data.loader import Tiles, batch_indices, tile_loader

__all__ = ["Index", "Summary", "Tiles", "batch_indices", "decode", "inspect", "show", "tile_loader"]
