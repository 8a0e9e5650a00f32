"""The manifest: one row a tile, of all slides, in Parquet; put together from one part a slide."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ..checkpoint import write_atomically
from .listing import Listed

NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("slide", NAMES),
        ("source", NAMES),  # the patient or case; the slide where the table says none
        ("path", NAMES),  # of the slide's file
        ("x", pa.int32()),  # level0 pixels of the tile's top left
        ("y", pa.int32()),
        ("mpp", pa.float32()),  # micrometres per pixel of the tile
        ("slide_mpp", pa.float32()),  # and of the slide's finest level
        ("size", pa.int32()),  # side in px
        ("tissue", pa.float32()),  # share of the tile
        ("sharpness", pa.float32()),  # null where the tile was not looked at
        ("shard", NAMES),  # relative to the manifest; null where there are no shards
        ("offset", pa.int64()),  # of the JPEG in its shard
        ("bytes", pa.int64()),
    ]
)
ROWS_AT_ONCE = 1 << 20
MANIFEST = "manifest.parquet"
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
    table = pa.table(arrays, schema=schema.with_metadata({"colocate": json.dumps(facts)}))
    write_atomically(part_path(out, slide.name), lambda file: parquet.write_table(table, file))


def part_facts(out: Path, name: str) -> dict[str, Any] | None:
    """What `write_part` was told of a slide; None where it is not done."""
    path = part_path(out, name)
    if not path.is_file():
        return None
    return json.loads((parquet.read_schema(path).metadata or {}).get(b"colocate", b"{}"))


def write_manifest(out: Path, slides: Sequence[Listed]) -> int:
    """Write OUT/manifest.parquet and OUT/slides.csv from the parts of these slides; returns the number of tiles.

    Rows come slide by slide in the given order, so the bytes do not depend on who made which part when.
    """
    fields: dict[str, pa.Field] = {field.name: field for field in SCHEMA}
    for slide in slides:
        fields |= {name: pa.field(name, NAMES) for name in slide.columns if name not in fields}
    schema = pa.schema(list(fields.values()))
    tiles = 0

    def write(file: Any) -> None:
        nonlocal tiles
        with parquet.ParquetWriter(file, schema) as writer:
            waiting: list[pa.Table] = []
            for slide in slides:
                table = _filled(parquet.read_table(part_path(out, slide.name)), schema)
                waiting.append(table)
                tiles += len(table)
                if sum(map(len, waiting)) >= ROWS_AT_ONCE:
                    writer.write_table(pa.concat_tables(waiting).unify_dictionaries())
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting).unify_dictionaries())

    write_atomically(out / MANIFEST, write)
    rows = [{"slide": slide.name, "path": slide.path, "source": slide.source} for slide in slides]
    rows = [row | (part_facts(out, str(row["slide"])) or {}) for row in rows]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[0]) if rows else ["slide"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(out / SLIDES, lambda file: file.write(text.getvalue().encode()))
    return tiles


def _filled(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with all columns of the schema, null where it has none."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
