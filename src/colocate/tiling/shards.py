"""Tiles into tar shards in WebDataset's layout: the same bytes for the same tiles, whole or not there."""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, final

TILES = 10_000  # in a shard


class Place(NamedTuple):
    """Where a tile's JPEG lies."""

    shard: str
    """Relative to the folder of all."""
    offset: int
    bytes: int


@final
class Shards:
    """The shards of one slide, FOLDER/shards/NAME-0000.tar and on; under hidden names until `finish`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.paths: list[Path] = []
        self.tar: tarfile.TarFile | None = None
        self.tiles = 0
        self.drop()

    def add(self, key: str, jpeg: bytes, facts: dict[str, Any]) -> Place:
        """Write KEY.jpg and KEY.json. Raises OSError where the disk does not take them."""
        if self.tiles % TILES == 0:
            self._next()
        self.tiles += 1
        assert self.tar is not None
        begins = self.tar.offset + tarfile.BLOCKSIZE
        for ending, data in ((".jpg", jpeg), (".json", json.dumps(facts).encode())):
            member = tarfile.TarInfo(key + ending)
            member.size = len(data)
            self.tar.addfile(member, io.BytesIO(data))
        return Place(self.paths[-1].relative_to(self.folder).as_posix(), begins, len(jpeg))

    def finish(self) -> None:
        """Close the shards and give them their names."""
        self._close()
        for path in self.paths:
            _hidden(path).replace(path)

    def drop(self) -> None:
        """Remove what there is of the slide's shards, from now or from before."""
        self._close()
        place = self.folder / "shards" / self.name
        for path in [*place.parent.glob("*.tar"), *place.parent.glob(".*.tar.part")]:
            stem, dash, number = path.name.removeprefix(".").removesuffix(".part").removesuffix(".tar").rpartition("-")
            if dash and stem == place.name and number.isdecimal():
                path.unlink()

    def _next(self) -> None:
        self._close()
        path = self.folder / "shards" / f"{self.name}-{len(self.paths):04d}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.paths.append(path)
        self.tar = tarfile.open(_hidden(path), "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 (closed by _close)

    def _close(self) -> None:
        if self.tar is not None:
            tar, self.tar = self.tar, None
            try:
                tar.close()
            except OSError:
                with suppress(OSError):
                    tar.fileobj.close()  # pyright: ignore[reportOptionalMemberAccess]
                raise


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
