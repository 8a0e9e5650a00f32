"""Decoded tiles, kept in a file that processes share: after its first epoch a run decodes nothing."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import struct
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from colocate.data.decode import LARGEST_PX
from colocate.data.index import Index
from colocate.data.memory import free_memory
from colocate.distributed import gather
from colocate.errors import TileError, UserError

VERSION = 2
HEAD = struct.Struct("<Q")  # the table's first bytes: where the next pixels go
RECORD = struct.Struct("<IIIQ")  # CRC-32 of a tile's pixels, height, width, where they end; zeros: not kept
SHARE = 0.5  # of what is free, where no bound is given
COMPARED = 16  # tiles


@final
class TileCache:
    """Reads an index's tiles from a cache where it has them, else from their files, and keeps them while there is room.

    Two files: one of pixels (uint8, 3 x h x w) that only grows, and a table of a record a tile. Loader processes that
    are forked, a run's processes on one machine, and runs that name the same folder share them: they write under a
    lock, pixels before their record, and a checksum tells a record whose pixels are not there. Nothing is thrown out:
    every epoch reads all tiles, so the last used ones are no better than others. The files are read, not mapped: the
    system kills a process that looks at a mapped page which its disk cannot give.
    """

    def __init__(self, index: Index, table: int, pixels: int, most_bytes: int) -> None:
        self.index, self.most_bytes = index, most_bytes
        self.table, self.pixels = table, pixels  # open files, closed with the object
        self._grows = True
        weakref.finalize(self, _close, table, pixels)

    @classmethod
    def open(cls, index: Index, where: str, gb: float | None = None, device: torch.device | None = None) -> TileCache:
        """A cache in "memory", gone with the run, or in a folder, which the next run on the same tiles finds.

        At most `gb` x 10^9 bytes; by default half of the memory or the disk that is free. device: by which the
        processes of a run tell one another where their cache in memory is.

        Raises:
            UserError: less memory is free; the folder cannot be written, or keeps what the tiles have been before.
        """
        return _in_memory(index, gb, device) if where == "memory" else _in_folder(index, where, gb)

    def read(self, number: int) -> UInt8[Tensor, "3 h w"]:
        """Tile `number`; the same pixels whether they were kept or not. Raises TileError as `Index.read` does."""
        try:
            record = self._record(number)
            tile = self._kept(record)
        except OSError:  # its disk fails
            self._grows, record, tile = False, b"", None
        if tile is None:
            tile = self.index.read(number)
            if self._grows:
                self._keep(number, tile, record)
        return tile

    def changed(self) -> str | None:
        """The name of a tile that is kept and is not what its file holds now, among a few that are looked at."""
        for number in range(0, len(self.index), -(-len(self.index) // COMPARED)):
            try:
                kept = self._kept(self._record(number))
                if kept is not None and not torch.equal(kept, self.index.read(number)):
                    return self.index.name(number)
            except (TileError, OSError):
                continue
        return None

    def summary(self) -> str:
        """How much is kept, in a sentence."""
        table = os.pread(self.table, HEAD.size + len(self.index) * RECORD.size, 0)
        table = table.ljust(HEAD.size + len(self.index) * RECORD.size, b"\0")
        count = np.frombuffer(table, np.uint8, offset=HEAD.size).reshape(-1, RECORD.size).any(1).sum()
        used, most = (f"{size / 1e9:.3g}" for size in (*HEAD.unpack(table[: HEAD.size]), self.most_bytes))
        return f"the cache holds {count:,} of {len(self.index):,} tiles, {used} of at most {most} GB"

    def _record(self, number: int) -> bytes:
        return os.pread(self.table, RECORD.size, HEAD.size + number * RECORD.size).ljust(RECORD.size, b"\0")

    def _kept(self, record: bytes) -> UInt8[Tensor, "3 h w"] | None:
        crc, height, width, end = RECORD.unpack(record)
        if not 0 < 3 * height * width <= min(end, 3 * LARGEST_PX):
            return None
        tile = torch.empty(3, height, width, dtype=torch.uint8)
        if os.preadv(self.pixels, [_bytes(tile)], end - tile.nbytes) < tile.nbytes:
            return None
        return tile if zlib.crc32(_bytes(tile)) == crc else None

    def _keep(self, number: int, tile: UInt8[Tensor, "3 h w"], instead_of: bytes) -> None:
        try:
            with self._locked():
                if self._record(number) != instead_of:  # another process was faster
                    return
                start = int.from_bytes(os.pread(self.table, HEAD.size, 0), "little")
                end = start + tile.nbytes
                self._grows = end <= self.most_bytes
                if self._grows and os.pwrite(self.pixels, _bytes(tile), start) == tile.nbytes:
                    os.pwrite(self.table, HEAD.pack(end), 0)
                    record = RECORD.pack(zlib.crc32(_bytes(tile)), *tile.shape[1:], end)
                    os.pwrite(self.table, record, HEAD.size + number * RECORD.size)
        except OSError:  # the disk is full: what is kept serves, and the run goes on
            self._grows = False

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self.table, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.table, fcntl.LOCK_UN)


def _in_folder(index: Index, where: str, gb: float | None) -> TileCache:
    # Not by the fingerprint alone, which is the same wherever the data lie: files of other folders have equal names.
    key = blake2b(f"{index.fingerprint} {index.kind} {index.root}".encode(), digest_size=16).hexdigest()
    try:
        folder = Path(where).expanduser() / f"tiles-{VERSION}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        table, pixels = (os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644) for name in ("table", "pixels"))
        free = shutil.disk_usage(folder).free + os.fstat(pixels).st_size
    except OSError as error:
        raise UserError(f"--cache {where}: {error.strerror}: give a folder that can be written, or memory") from error
    cache = TileCache(index, table, pixels, round(gb * 1e9 if gb else SHARE * free))
    if name := cache.changed():
        raise UserError(f"{name} has changed since it was kept in {folder}: delete that folder")
    return cache


def _in_memory(index: Index, gb: float | None, device: torch.device | None) -> TileCache:
    free = free_memory()
    most = round(gb * 1e9 if gb else SHARE * free)
    mine = TileCache(index, _memory_file(), _memory_file(), most)
    # All processes leave together: one that raised alone would have the others wait for it.
    row = [_machine(), os.getpid(), mine.table, mine.pixels, most > free]
    everyone = gather(torch.tensor([row], device=device)).tolist()
    if any(too_much for *_, too_much in everyone):
        raise UserError(f"--cache-gb {gb}: only {free / 1e9:.3g} GB of memory are free: give less, or a folder")
    process, *files = next(other[1:4] for other in everyone if other[0] == _machine())
    own = process == os.getpid()
    try:
        table, pixels = (file if own else os.open(f"/proc/{process}/fd/{file}", os.O_RDWR) for file in files)
    except OSError:  # not ours to look into
        table = pixels = -1
    if gather(torch.tensor([int(table < 0)], device=device)).any():  # then each has its own
        mine.most_bytes //= sum(other[0] == _machine() for other in everyone)
        return mine
    return mine if own else TileCache(index, table, pixels, most)


def _machine() -> int:
    """A number for this machine, or this container on it: the processes that see one another under /proc."""
    try:
        name = f"{Path('/proc/sys/kernel/random/boot_id').read_text()} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        name = platform.node()
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little")


def _memory_file() -> int:
    """A file without a name: in memory where the system has such, else on disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("colocate-tiles")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _close(*files: int) -> None:
    for file in files:
        os.close(file)


def _bytes(tile: UInt8[Tensor, "3 h w"]) -> memoryview:
    return memoryview(tile.numpy().reshape(-1))  # pyright: ignore[reportArgumentType]  # arrays are buffers
