"""Tiles into tar shards in WebDataset's layout: the same bytes for the same tiles, whole or not there."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, final

import pyarrow as pa
from pyarrow import parquet

from colocate.base.files import write_atomically
from colocate.slides.listing import MANIFEST, NAMES, SCHEMA, Listed

ROWS_AT_ONCE = 1 << 20
SLIDES = "slides.csv"


def part_path(out: Path, name: str) -> Path:
    """The part of a slide, which is there when the slide is done."""
    return out / "parts" / f"{name}.parquet"


def write_part(out: Path, slide: Listed, columns: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write a slide's rows (`columns` of SCHEMA but for slide, source and path) and what `slides.csv` says of it."""
    count = len(columns["x"])
    known = {"slide": slide.name, "source": slide.source, "path": str(slide.path)}
    same = {name: [text] * count for name, text in (known | slide.columns).items()}
    schema = pa.schema([*SCHEMA, *((name, NAMES) for name in slide.columns if name not in SCHEMA.names)])
    arrays = [pa.array((same | columns)[field.name], field.type) for field in schema]
    table = pa.table(
        arrays, schema=schema.with_metadata({"colocate": json.dumps({"identity": _identity(slide), "facts": facts})})
    )
    write_atomically(part_path(out, slide.name), lambda file: parquet.write_table(table, file))


def is_done(out: Path, slide: Listed) -> bool:
    """Whether a slide has its part, and the file and what the user says of it are the same as then."""
    path = part_path(out, slide.name)
    return path.is_file() and _told(path)["identity"] == _identity(slide)


def strays(out: Path, slides: Sequence[Listed]) -> tuple[str, ...]:
    """Names of slides that have a part but are none of these, in order: of another list, or failing by now."""
    folder, names = out / "parts", {slide.name for slide in slides}
    parts = (path.relative_to(folder).as_posix().removesuffix(".parquet") for path in folder.rglob("*.parquet"))
    return tuple(sorted(name for name in parts if name not in names))


def _told(part: Path) -> dict[str, Any]:
    return json.loads((parquet.read_schema(part).metadata or {})[b"colocate"])


def _identity(slide: Listed) -> str:
    return blake2b(repr((slide, slide.identity())).encode(), digest_size=16).hexdigest()


def write_manifest(out: Path, slides: Sequence[Listed]) -> list[dict[str, Any]]:
    """Write OUT/manifest.parquet and OUT/slides.csv from the parts of these slides.

    Returns what slides.csv says, a dictionary a slide.

    Rows come slide by slide in the given order, so the bytes do not depend on who made which part when.
    """
    fields: dict[str, pa.Field] = {field.name: field for field in SCHEMA}
    for slide in slides:
        fields |= {name: pa.field(name, NAMES) for name in slide.columns if name not in fields}
    schema = pa.schema(list(fields.values()))

    def write(file: Any) -> None:
        with parquet.ParquetWriter(file, schema) as writer:
            waiting: list[pa.Table] = []
            for slide in slides:
                table = _filled(parquet.read_table(part_path(out, slide.name)), schema)
                waiting.append(table)
                if sum(map(len, waiting)) >= ROWS_AT_ONCE:
                    writer.write_table(pa.concat_tables(waiting).unify_dictionaries())
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting).unify_dictionaries())

    write_atomically(out / MANIFEST, write)
    rows = [
        {"slide": slide.name, "path": slide.path, "source": slide.source} | _told(part_path(out, slide.name))["facts"]
        for slide in slides
    ]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(out / SLIDES, lambda file: file.write(text.getvalue().encode()))
    return rows


def _filled(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with all columns of the schema, null where it has none."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


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
        self.file: io.BufferedWriter | None = None
        self.tiles = 0
        self.drop()

    def add(self, key: str, jpeg: bytes, facts: dict[str, Any]) -> Place:
        """Write KEY.jpg and KEY.json. Raises OSError where the disk does not take them."""
        if self.tiles % TILES == 0:
            self._next()
        self.tiles += 1
        assert self.file is not None
        head = _head(key + ".jpg", len(jpeg))
        place = Place(self.paths[-1].relative_to(self.folder).as_posix(), self.file.tell() + len(head), len(jpeg))
        note = json.dumps(facts).encode()
        self.file.write(b"".join((head, _padded(jpeg), _head(key + ".json", len(note)), _padded(note))))
        return place

    def finish(self) -> None:
        """Close the shards and give them their names."""
        self._end()
        for path in self.paths:
            _hidden(path).replace(path)

    def drop(self) -> None:
        """Remove what there is of the slide's shards, from now or from before; also from a full disk."""
        if self.file is not None:
            file, self.file = self.file, None
            with suppress(OSError):
                file.close()
        place = self.folder / "shards" / self.name
        for path in [*place.parent.glob("*.tar"), *place.parent.glob(".*.tar.part")]:
            stem, dash, number = path.name.removeprefix(".").removesuffix(".part").removesuffix(".tar").rpartition("-")
            if dash and stem == place.name and number.isdecimal():
                path.unlink()

    def _next(self) -> None:
        self._end()
        path = self.folder / "shards" / f"{self.name}-{len(self.paths):04d}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.paths.append(path)
        self.file = _hidden(path).open("wb")

    def _end(self) -> None:
        if self.file is not None:
            file, self.file = self.file, None
            with file:
                file.write(tarfile.NUL * (2 * tarfile.BLOCKSIZE))  # which ends a tar file


def _head(name: str, size: int) -> bytes:
    """The blocks before a member's bytes: two thirds faster than through `TarFile.addfile`."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def _padded(data: bytes) -> bytes:
    return data + tarfile.NUL * (-len(data) % tarfile.BLOCKSIZE)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
