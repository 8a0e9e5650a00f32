"""What `colocate tile` left: tiles in shards, found without opening them, or places in slides to read them from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.compute
from pyarrow import parquet

from colocate.data.hold_out import HeldOut, check_columns, left_in
from colocate.data.rows import SCHEMA, SLIDES, Rows, numbered
from colocate.data.tables import column, read
from colocate.errors import UserError
from colocate.slide import check_mpp
from colocate.tile_format import NEEDED

pc: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them


def is_manifest(data: Path) -> bool:
    """Whether a table is one that `colocate tile` wrote."""
    try:
        return set(parquet.read_schema(data).names) >= NEEDED
    except (pa.ArrowException, OSError):
        return False


def manifest_rows(data: Path, root: Path | None, held_out: HeldOut) -> Rows:
    """A manifest's tiles that are not held out: members of its shards, or where it has none places in slides.

    `root` is where the shards lie (by default beside the manifest), or the folder of all slides if they were moved.
    Raises UserError if the manifest cannot be read, is empty, or `held_out` does not fit it.
    """
    check_columns(held_out, parquet.read_schema(data).names, data)
    shards = read(data, ["shard"])["shard"]
    if not len(shards):
        raise UserError(f"{data} lists no tiles: see slides.csv and overlays/ beside it for what was found")
    tiles = _Tiles(data, pa.array(left_in(read(data, list(held_out)), held_out, data)) if held_out else None)
    if not shards.null_count:
        return Rows("tar", root or data.parent, _members(tiles))
    above = os.path.commonpath([os.path.dirname(path) for path in numbered(read(data, ["path"])["path"])[1]])  # noqa: PTH120
    return Rows("slides", root or Path(above), _places(tiles, above))


@final
@dataclass(frozen=True)
class _Tiles:
    """The rows of a manifest that are left in, read column by column: ten million fit into little memory."""

    data: Path
    kept: pa.BooleanArray | None

    def columns(self, *names: str) -> pa.Table:
        table = read(self.data, list(names))
        if empty := [name for name in names if table[name].null_count]:
            raise UserError(f"{self.data} has tiles without `{empty[0]}`: give it as `colocate tile` wrote it")
        return table if self.kept is None else table.filter(self.kept)

    def numbers(self, name: str, kind: pa.DataType) -> pa.ChunkedArray:
        return column(self.columns(name), name, kind, self.data)

    def mpp(self, name: str) -> pa.ChunkedArray:
        values = self.numbers(name, pa.float32())
        for mpp in pc.min_max(values).as_py().values():
            check_mpp(mpp, f"{self.data}, column `{name}`")
        return values

    def words(self, name: str, above: str = "") -> pa.DictionaryArray:
        numbers, words = numbered(self.columns(name)[name])
        known = [os.path.relpath(word, above) for word in words] if above else words
        return pa.DictionaryArray.from_arrays(pa.array(numbers), pa.array(known, pa.string()))


def _members(tiles: _Tiles) -> pa.Table:
    places = tiles.columns("slide", "x", "y")
    columns = {
        "path": pa.chunked_array([_names(batch) for batch in places.to_batches()]),
        "shard": tiles.words("shard"),
        "offset": tiles.numbers("offset", pa.int64()),
        "size": tiles.numbers("bytes", pa.int64()),
        "source": tiles.words("source"),
        "mpp": tiles.mpp("mpp"),
    }
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _names(tiles: pa.RecordBatch) -> pa.Array:
    """The members' names in their shards, SLIDE/000512_001024.jpg."""
    slide, x, y = (column.cast(pa.string()) for column in tiles.columns)
    x, y = (pc.utf8_lpad(number, 6, "0") for number in (x, y))
    return pc.binary_join_element_wise(slide, "/", x, "_", y, ".jpg", "")


def _places(tiles: _Tiles, above: str) -> pa.Table:
    """Rows of `SLIDES`; paths start from the folder that is above all slides, held out or not."""
    columns = {
        "path": tiles.words("path", above),
        "source": tiles.words("source"),
        "mpp": tiles.mpp("mpp"),
        "x": tiles.numbers("x", pa.int32()),
        "y": tiles.numbers("y", pa.int32()),
        "px": tiles.numbers("size", pa.int32()),
        "slide_mpp": tiles.mpp("slide_mpp"),
    }
    if pc.min(columns["px"]).as_py() < 1:
        raise UserError(f"{tiles.data} has tiles of no size: give it as `colocate tile` wrote it")
    return pa.table([columns[name] for name in SLIDES.names], schema=SLIDES)
