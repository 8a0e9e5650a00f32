"""Two hashes of every image, computed once: one of its pixels, one of how it looks; and images that look the same.

The second is a perceptual hash (the signs of 64 low frequencies, `imagehash.phash`), which survives another size,
compression or file format. Images at most `NEAR` bits apart are candidates, and `alike` decides: the correlation of
both, shrunk to 32 x 32 grey pixels. docs/explanation/leakage.md has the measurements behind the thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, final

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, UInt8, UInt64
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.base.processes import cores
from colocate.data.loader import read_ahead

VERSION = 2
NEAR = 8
ALIKE = 0.6
SIDE = 32  # pixels from which the perceptual hash is computed
AT_ONCE = 16  # images a worker hashes before it reports
FEW = 1000  # up to so many are hashed in this process
CHUNK = 4096


@final
class Hashes(NamedTuple):
    """Of n images, each under s symmetries: as it is (s = 1), or all eight."""

    exact: list[bytes]
    """Equal for equal pixels; empty where an image could not be read."""
    near: UInt64[np.ndarray, "n s"]
    unreadable: dict[int, str]
    """Number and reason."""


def hashes(read: Callable[[int], Tensor], count: int, cache: Path, key: str, symmetries: bool) -> Hashes:
    """The hashes of images 0, 1, ..., from the file `cache` if it was written under the same key, else into it.

    read: gives an image's RGB pixels, or raises UserError; it is called in other processes where images are many.
    Images that could not be read when the cache was written are tried again.
    """
    turns, stamp = 8 if symmetries else 1, f"{VERSION} {key}".encode()
    exact, near = _cached(cache, stamp, count, turns) or ([b""] * count, np.zeros((count, turns), np.uint64))
    unreadable: dict[int, str] = {}
    todo = [number for number, digest in enumerate(exact) if not digest]
    processes = 0 if len(todo) <= FEW else min(16, cores())
    parts = [todo[start : start + AT_ONCE] for start in range(0, len(todo), AT_ONCE)]
    hashed = read_ahead(partial(_hashed, read, turns), range(len(parts)), parts.__getitem__, processes)
    shown = track(hashed, "Hashing images", len(parts), console=Console(stderr=True), disable=not processes)
    for numbers, part in zip(parts, shown, strict=True):
        for number, one in zip(numbers, part, strict=True):
            if isinstance(one, str):
                unreadable[number] = one
            else:
                exact[number], near[number] = one
    if len(unreadable) < len(todo):
        with suppress(UserError):  # in a folder that may only be read, they are computed each time
            columns = {
                "exact": pa.array(exact, pa.binary()),
                "near": pa.FixedSizeListArray.from_arrays(pa.array(near.ravel(), pa.uint64()), turns),
            }
            table = pa.table(columns).replace_schema_metadata({"key": stamp})
            write_atomically(cache, lambda file: pq.write_table(table, file))
    return Hashes(exact, near, unreadable)


def near_pairs(
    few: UInt64[np.ndarray, "n s"], many: UInt64[np.ndarray, "m"], most: int = NEAR
) -> list[tuple[int, int]]:
    """Every image of the first, under any of its symmetries, with those of the second at most `most` bits away.

    >>> near_pairs(np.array([[0, 3], [255, 255]], np.uint64), np.array([7, 1 << 63], np.uint64), most=1)
    [(0, 0), (0, 1)]
    """
    turns = few.shape[1]
    signs = _signs(few.reshape(-1))
    pairs: set[tuple[int, int]] = set()
    for start in range(0, len(many), CHUNK):
        # Of two hashes as vectors of 1 and -1 the product is 64 - 2 x the bits that differ, and exact in float32.
        row, column = np.nonzero(signs @ _signs(many[start : start + CHUNK]).T >= 64 - 2 * most)
        pairs |= set(zip((row // turns).tolist(), (column + start).tolist(), strict=True))
    return sorted(pairs)


def alike(image: UInt8[Tensor, "3 h w"], other: UInt8[Tensor, "3 H W"]) -> float:
    """Correlation of two images shrunk to one size and grey, under the symmetry that suits best; 0 of a flat one."""
    small = _vector(_small(other))
    return max(float(_vector(turned) @ small) for turned in _symmetries(_small(image)))


def _hashed(read: Callable[[int], Tensor], turns: int, numbers: Sequence[int]) -> list[tuple[bytes, list[int]] | str]:
    """The hashes of images by their numbers, or the reason why one could not be read."""
    return [_hash(read, turns, number) for number in numbers]


def _hash(read: Callable[[int], Tensor], turns: int, number: int) -> tuple[bytes, list[int]] | str:
    try:
        pixels = read(number)
    except UserError as error:
        return str(error)
    digest = blake2b(str(tuple(pixels.shape)).encode(), digest_size=16)
    digest.update(pixels.numpy().tobytes())
    turned = _symmetries(_small(pixels))[:turns]
    return digest.digest(), [int.from_bytes(np.packbits(imagehash.phash(one).hash).tobytes()) for one in turned]


def _small(pixels: UInt8[Tensor, "3 h w"]) -> Image.Image:
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _symmetries(thumb: Image.Image) -> list[Image.Image]:
    """The image as it is, flipped and turned: eight."""
    return [thumb, *(thumb.transpose(turn) for turn in Image.Transpose)]


def _vector(thumb: Image.Image) -> Float32[np.ndarray, "n"]:
    values = np.asarray(thumb, np.float32).ravel()
    values = values - values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)


def _signs(near: UInt64[np.ndarray, "n"]) -> Float32[np.ndarray, "n 64"]:
    return np.unpackbits(np.ascontiguousarray(near)[:, None].view(np.uint8), axis=1).astype(np.float32) * 2 - 1


def _cached(cache: Path, stamp: bytes, count: int, turns: int) -> tuple[list[bytes], UInt64[np.ndarray, "n s"]] | None:
    try:
        table = pq.read_table(cache)
        if (table.schema.metadata or {}).get(b"key") != stamp or len(table) != count:
            return None
        near = table["near"].combine_chunks().flatten().to_numpy().reshape(count, turns)
        return table["exact"].to_pylist(), near.copy()
    except (OSError, ValueError, KeyError, pa.ArrowException):  # none yet, or a damaged or foreign one
        return None
