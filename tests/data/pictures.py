"""Small images, and the files and shards they make."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from colocate.data.index import Index

TILES = {  # in the order in which they must come
    "Top.JPEG": (40, 30),
    "a/0.png": (16, 16),
    "a/1.jpg": (33, 20),
    "a/10.jpg": (20, 33),
    "a/2.tiff": (8, 9),
    "b c/deep/x.bmp": (5, 70),
    "b c/y 7.webp": (24, 24),
}


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Smooth colours that differ from seed to seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def packed(image: Image.Image, ending: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending), **options)
    return file.getvalue()


def png(rows: Iterable[bytes], size: tuple[int, int], bits: int, kind: int, **chunks: bytes) -> bytes:
    """A PNG of rows of bytes as they are: of bit depths and kinds of colour that Pillow does not write."""
    header = struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0)
    content = {"IHDR": header, **chunks, "IDAT": zlib.compress(b"".join(b"\0" + row for row in rows)), "IEND": b""}
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in content.items():
        named = name.encode() + data
        file += struct.pack(">I", len(data)) + named + struct.pack(">I", zlib.crc32(named))
    return file


def pack(folder: Path, names: list[str], shard: Path, extra: dict[str, bytes] | None = None) -> Path:
    """A tar shard of the named files, with a directory entry, other members, and `extra` ones."""
    with tarfile.open(shard, "w") as tar:
        tar.add(folder, "d", recursive=False)
        for name in names:
            tar.add(folder / name, name)
        for name, data in {"readme.txt": b"no tile", "k.cls": b"3", ".hidden.png": b"no", **(extra or {})}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return shard


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's rights, to whom nothing is forbidden."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def names(index: Index) -> list[str]:
    return [index.name(number) for number in range(len(index))]


def sources(index: Index) -> list[str]:
    return [index.sources[number] for number in index.source_numbers]


def shards(tiles: Path, to: Path) -> Path:
    folder = to / "shards"
    (folder / "deep").mkdir(parents=True)
    pack(tiles, list(TILES)[:4], folder / "a.tar")
    pack(tiles, list(TILES)[4:], folder / "deep" / "b.TAR")
    return folder
