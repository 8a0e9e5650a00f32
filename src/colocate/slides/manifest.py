"""Write tiles into tar shards (WebDataset's layout) and a manifest: the same bytes for the same tiles, or nothing."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, final
from zlib import crc32

import pyarrow as pa
from pyarrow import parquet

from colocate.base.errors import UserError
from colocate.base.files import whole, write_atomically
from colocate.base.tables import read_table, write_csv
from colocate.slides.listing import MANIFEST, NAMES, SCHEMA, Listed

SLIDES_AT_ONCE = 256  # in memory
SLIDES = "slides.csv"


def part_path(out: Path, name: str) -> Path:
    """The path of a slide's part of the manifest, which exists once the slide is done."""
    return out / "parts" / f"{name}.parquet"


def write_part(
    out: Path, slide: Listed, rows: Sequence[dict[str, Any]], facts: dict[str, Any], shards: dict[str, int]
) -> None:
    """Write a slide's rows (columns of SCHEMA; null where missing), its row of slides.csv and its shards' bytes."""
    same = {"slide": slide.name, "source": slide.source, "path": str(slide.path)} | slide.columns
    notes = {"identity": _identities(slide)[0], "facts": facts, "shards": shards}
    table = pa.Table.from_pylist([same | row for row in rows], _schema(slide, notes))
    write_atomically(
        part_path(out, slide.name), lambda file: parquet.write_table(table, file, write_page_checksum=True)
    )


def _schema(slide: Listed, notes: dict[str, Any]) -> pa.Schema:
    """The manifest's schema: SCHEMA, and the table's own columns, which are the same for all slides of a list."""
    columns = [*SCHEMA, *((name, NAMES) for name in slide.columns)]
    return pa.schema(columns, {"colocate": json.dumps(notes)})


def notes_of(out: Path, slide: Listed) -> dict[str, Any] | None:
    """What is known of a slide that is done (`facts`: its row of slides.csv, `shards`: their bytes); None if it is not.

    Done is a slide that has its part, made from the same file and the same settings of the slide, and shards of the
    lengths that the part says.
    """
    try:
        notes = json.loads((parquet.read_schema(part_path(out, slide.name)).metadata or {})[b"colocate"])
        whole = all((out / shard).stat().st_size == size for shard, size in notes["shards"].items())
        return notes if whole and notes["identity"] in _identities(slide) else None
    except (pa.ArrowException, OSError, KeyError, ValueError):  # not there, or damaged
        return None


def _identities(slide: Listed) -> list[str]:
    """Of a slide wherever its folder lies now; and of its place too, as 0.2 wrote it."""
    there = replace(slide, unsaid_mpp=None)  # which the identity has, if it decides anything, as it has the mask
    listed, status = (replace(there, path=Path(slide.path.name), mask=None), there), slide.identity()
    return [blake2b(repr((one, status)).encode(), digest_size=16).hexdigest() for one in listed]


def write_manifest(out: Path, slides: Sequence[Listed], notes: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Write OUT/manifest.parquet and OUT/slides.csv from the parts of these slides; `notes`: of each, by its name.

    Rows come slide by slide in the given order, so the bytes do not depend on who made which part when.

    Returns:
        What slides.csv says, a dictionary a slide.
    Raises:
        UserError: a part is damaged, or the disk is full.
    """
    shards = {shard: size for slide in slides for shard, size in notes[slide.name]["shards"].items()}

    def write(file: Any) -> None:
        schema = _schema(slides[0], {"shards": shards})
        with parquet.ParquetWriter(file, schema, write_page_checksum=True) as writer:
            for start in range(0, len(slides), SLIDES_AT_ONCE):
                tables = [_part(out, slide) for slide in slides[start : start + SLIDES_AT_ONCE]]
                writer.write_table(pa.concat_tables(tables).unify_dictionaries())

    write_atomically(out / MANIFEST, write)
    rows = []
    for slide in slides:
        known = {"slide": slide.name, "path": slide.path, "source": slide.source, "bytes": slide.path.stat().st_size}
        rows.append(known | notes[slide.name]["facts"])
    write_csv(out / SLIDES, list(rows[0]), [tuple(row.values()) for row in rows])
    return rows


def _part(out: Path, slide: Listed) -> pa.Table:
    path = part_path(out, slide.name)
    try:
        table = read_table(path)
    except UserError as error:
        raise UserError(f"{path} is damaged: delete it, and the same command cuts its slide again") from error
    now = pa.array([str(slide.path)] * len(table), pa.string()).dictionary_encode()  # it may have moved since
    return table.set_column(table.column_names.index("path"), SCHEMA.field("path"), now)


TILES = 10_000  # in a shard


@final
class Shards:
    """The shards of one slide, FOLDER/shards/NAME-0000.tar and on.

    A context manager: on an error nothing stays, neither of these shards nor of those that were there before.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.place = folder / "shards" / name
        self.tiles = 0
        self._open = ExitStack()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *error: Any) -> None:
        kept = 0
        try:
            self._open.__exit__(*error)
            kept = -(-self.tiles // TILES) if error[0] is None else 0
        finally:
            self._remove(kept)

    @property
    def bytes(self) -> dict[str, int]:
        """Of each shard, by its path from the folder; once all are written."""
        paths = [self._path(number) for number in range(-(-self.tiles // TILES))]
        return {self._name(path): path.stat().st_size for path in paths}

    def add(self, key: str, jpeg: bytes, facts: dict[str, Any]) -> dict[str, Any]:
        """Write KEY.jpg and KEY.json; return the JPEG's place and checksum as columns of the manifest."""
        path = self._path(self.tiles // TILES)
        if self.tiles % TILES == 0:
            self._open.close()
            self.file = self._open.enter_context(_shard(path))
        self.tiles += 1
        head = _head(key + ".jpg", len(jpeg))
        offset = self.file.tell() + len(head)
        note = json.dumps(facts).encode()
        self.file.write(b"".join((head, _padded(jpeg), _head(key + ".json", len(note)), _padded(note))))
        return {"shard": self._name(path), "offset": offset, "bytes": len(jpeg), "crc32": crc32(jpeg)}

    def _path(self, number: int) -> Path:
        return self.place.with_name(f"{self.place.name}-{number:04d}.tar")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _remove(self, first: int) -> None:
        """Remove the shards from a number on: the last one first, so that none is left behind a gap."""
        last = first
        while self._path(last).exists():
            last += 1
        for number in reversed(range(first, last)):
            self._path(number).unlink()


@contextmanager
def _shard(path: Path) -> Iterator[io.BufferedWriter]:
    with whole(path) as file:
        yield file
        file.write(tarfile.NUL * (2 * tarfile.BLOCKSIZE))  # which ends a tar file


def _head(name: str, size: int) -> bytes:
    """A tar member's header blocks; two thirds faster than `TarFile.addfile`."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def _padded(data: bytes) -> bytes:
    return data + tarfile.NUL * (-len(data) % tarfile.BLOCKSIZE)
