"""Write tiles into tar shards (WebDataset's layout) and a manifest: the same bytes for the same tiles, or nothing."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import pyarrow as pa
from pyarrow import parquet

from colocate.base.files import write_atomically
from colocate.base.tables import write_csv
from colocate.slides.listing import MANIFEST, NAMES, SCHEMA, Listed

SLIDES_AT_ONCE = 256  # in memory
SLIDES = "slides.csv"


def part_path(out: Path, name: str) -> Path:
    """The path of a slide's part of the manifest, which exists once the slide is done."""
    return out / "parts" / f"{name}.parquet"


def write_part(out: Path, slide: Listed, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write a slide's rows (columns of SCHEMA; null where missing) and its row of slides.csv (`facts`)."""
    same = {"slide": slide.name, "source": slide.source, "path": str(slide.path)} | slide.columns
    notes = {"colocate": json.dumps({"identity": _identity(slide), "facts": facts})}
    table = pa.Table.from_pylist([same | row for row in rows], _schema(slide).with_metadata(notes))
    write_atomically(part_path(out, slide.name), lambda file: parquet.write_table(table, file))


def _schema(slide: Listed) -> pa.Schema:
    """The manifest's schema: SCHEMA, and the table's own columns, which are the same for all slides of a list."""
    return pa.schema([*SCHEMA, *((name, NAMES) for name in slide.columns)])


def is_done(out: Path, slide: Listed) -> bool:
    """Whether a slide has its part, made from the same file and the same settings of the slide."""
    path = part_path(out, slide.name)
    return path.is_file() and _told(path)["identity"] == _identity(slide)


def _told(part: Path) -> dict[str, Any]:
    return json.loads((parquet.read_schema(part).metadata or {})[b"colocate"])


def _identity(slide: Listed) -> str:
    return blake2b(repr((slide, slide.identity())).encode(), digest_size=16).hexdigest()


def write_manifest(out: Path, slides: Sequence[Listed]) -> list[dict[str, Any]]:
    """Write OUT/manifest.parquet and OUT/slides.csv from the parts of these slides.

    Rows come slide by slide in the given order, so the bytes do not depend on who made which part when.

    Returns:
        What slides.csv says, a dictionary a slide.
    """

    def write(file: Any) -> None:
        with parquet.ParquetWriter(file, _schema(slides[0])) as writer:
            for start in range(0, len(slides), SLIDES_AT_ONCE):
                some = slides[start : start + SLIDES_AT_ONCE]
                tables = [parquet.read_table(part_path(out, slide.name)) for slide in some]
                writer.write_table(pa.concat_tables(tables).unify_dictionaries())

    write_atomically(out / MANIFEST, write)
    rows = [
        {"slide": slide.name, "path": slide.path, "source": slide.source} | _told(part_path(out, slide.name))["facts"]
        for slide in slides
    ]
    write_csv(out / SLIDES, list(rows[0]), [tuple(row.values()) for row in rows])
    return rows


TILES = 10_000  # in a shard


@final
class Shards:
    """The shards of one slide, FOLDER/shards/NAME-0000.tar and on; under hidden names until all is well.

    A context manager: on an error nothing stays, neither of these shards nor of those that were there before.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.place = folder / "shards" / name
        self.paths: list[Path] = []
        self.file: io.BufferedWriter | None = None
        self.tiles = 0

    def __enter__(self) -> Shards:
        self.place.parent.mkdir(parents=True, exist_ok=True)
        self._remove()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            try:
                self._end()
                for path in self.paths:
                    _hidden(path).replace(path)
            except OSError:
                self._remove()
                raise
            return
        if self.file is not None:
            with suppress(OSError):  # of a full disk
                self.file.close()
        self._remove()

    def add(self, key: str, jpeg: bytes, facts: dict[str, Any]) -> dict[str, Any]:
        """Write KEY.jpg and KEY.json; return the JPEG's place as columns of the manifest. Raises OSError."""
        if self.tiles % TILES == 0:
            self._end()
            self.paths.append(self.place.with_name(f"{self.place.name}-{len(self.paths):04d}.tar"))
            self.file = _hidden(self.paths[-1]).open("wb")
        self.tiles += 1
        assert self.file is not None
        head = _head(key + ".jpg", len(jpeg))
        offset = self.file.tell() + len(head)
        note = json.dumps(facts).encode()
        self.file.write(b"".join((head, _padded(jpeg), _head(key + ".json", len(note)), _padded(note))))
        return {"shard": self.paths[-1].relative_to(self.folder).as_posix(), "offset": offset, "bytes": len(jpeg)}

    def _end(self) -> None:
        if self.file is not None:
            with self.file as file:
                file.write(tarfile.NUL * (2 * tarfile.BLOCKSIZE))  # which ends a tar file
            self.file = None

    def _remove(self) -> None:
        name = re.compile(rf"\.?{re.escape(self.place.name)}-\d{{4,}}\.tar(\.part)?")
        for path in self.place.parent.iterdir():
            if name.fullmatch(path.name):
                path.unlink()


def _head(name: str, size: int) -> bytes:
    """A tar member's header blocks; two thirds faster than `TarFile.addfile`."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def _padded(data: bytes) -> bytes:
    return data + tarfile.NUL * (-len(data) % tarfile.BLOCKSIZE)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
