"""Decoded tiles, kept in a file that processes share: after its first epoch a run decodes nothing."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from colocate.data.index import Index
from colocate.errors import UserError

VERSION = 1
RECORD = np.dtype([("crc", "<u4"), ("height", "<u2"), ("width", "<u2"), ("end", "<u8")])  # end 0: not kept
HEAD = 8  # bytes of the table before its records: how many bytes of the other file are given away
SHARE = 0.5  # of what is free, where no bound is given


@final
class TileCache:
    """Reads an index's tiles from a cache where it has them, else from their files, and keeps them while there is room.

    Two files: one of pixels (uint8, 3 x h x w) that only grows, and a table of a record a tile. Loader processes that
    are forked, and other runs that name the same folder, share them: room is given away under a lock, pixels are
    written before their record, and a checksum tells a record whose pixels are not there. Nothing is thrown out:
    every epoch reads all tiles, so the last used ones are no better than others.
    """

    def __init__(self, index: Index, table: int, pixels: int, most_bytes: int) -> None:
        self.index, self.most_bytes = index, most_bytes
        self._table, self._pixels = table, pixels
        self._full = False

    @classmethod
    def open(cls, index: Index, where: str, gb: float | None = None) -> TileCache:
        """A cache in "memory", gone with the process, or in a folder, which the next run with the same tiles finds.

        At most `gb` x 10^9 bytes; by default half of the memory or the disk that is free.

        Raises:
            UserError: the folder cannot be written.
        """
        if where == "memory":
            table, pixels = (_memory_file() for _ in range(2))
            return cls(index, table, pixels, round(gb * 1e9 if gb else SHARE * _free_memory()))
        try:
            folder = Path(where).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            name = f"tiles-{VERSION}-{index.fingerprint}"
            files = (folder / f"{name}.{ending}" for ending in ("table", "pixels"))
            table, pixels = (os.open(file, os.O_RDWR | os.O_CREAT, 0o644) for file in files)
            free = shutil.disk_usage(folder).free + os.fstat(pixels).st_size
        except OSError as error:
            raise UserError(
                f"--cache {where}: {error.strerror}: give a folder that can be written, or memory"
            ) from error
        return cls(index, table, pixels, round(gb * 1e9 if gb else SHARE * free))

    def read(self, number: int) -> UInt8[Tensor, "3 h w"]:
        """Tile `number`; the same pixels whether they were kept or not. Raises TileError as `Index.read` does."""
        tile = self._kept(number)
        if tile is None:
            tile = self.index.read(number)
            self._keep(number, tile)
        return tile

    def _kept(self, number: int) -> UInt8[Tensor, "3 h w"] | None:
        packed = os.pread(self._table, RECORD.itemsize, HEAD + number * RECORD.itemsize)
        if len(packed) < RECORD.itemsize:
            return None
        record = np.frombuffer(packed, RECORD)[0]
        tile = torch.empty(3, int(record["height"]), int(record["width"]), dtype=torch.uint8)
        start = int(record["end"]) - tile.nbytes
        if not record["end"] or start < 0 or os.preadv(self._pixels, [_bytes(tile)], start) < tile.nbytes:
            return None
        return tile if zlib.crc32(_bytes(tile)) == record["crc"] else None

    def _keep(self, number: int, tile: UInt8[Tensor, "3 h w"]) -> None:
        if self._full or max(tile.shape) > 65_535:
            return
        tile = tile.contiguous()
        try:
            with self._locked():
                end = int.from_bytes(os.pread(self._table, HEAD, 0), "little") + tile.nbytes
                if end > self.most_bytes:
                    self._full = True
                    return
                os.pwrite(self._table, end.to_bytes(HEAD, "little"), 0)
            written = os.pwrite(self._pixels, _bytes(tile), end - tile.nbytes)
            record = np.array([(zlib.crc32(_bytes(tile)), *tile.shape[1:], end)], RECORD)
            if written == tile.nbytes:
                os.pwrite(self._table, record.tobytes(), HEAD + number * RECORD.itemsize)
        except OSError:  # the disk is full: what is kept serves, and the run goes on
            self._full = True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._table, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._table, fcntl.LOCK_UN)


def _bytes(tile: UInt8[Tensor, "3 h w"]) -> memoryview:
    return memoryview(tile.numpy().reshape(-1))  # pyright: ignore[reportArgumentType]  # arrays are buffers


def _memory_file() -> int:
    """A file without a name: in memory where the system has such, else on disk."""
    return (
        os.memfd_create("colocate-tiles") if hasattr(os, "memfd_create") else os.dup(tempfile.TemporaryFile().fileno())
    )


def _free_memory() -> int:
    """Bytes that the machine has free, or the control group (of a container or a job) that this process is in."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2].lstrip("/")
    except OSError:
        return free
    for folder in (group, *group.parents):
        try:
            free = min(free, int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text()))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return max(0, free)
