"""Index of a data set's tiles: names and places, in one memory-mapped Arrow file."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

from colocate.base.errors import TileError, UserError
from colocate.base.files import absolute, write_atomically
from colocate.base.tables import pc
from colocate.data.decode import decode
from colocate.data.rows import SCHEMA, SLIDES, Rows
from colocate.data.sources import find
from colocate.slides.pictures import too_large
from colocate.slides.settings import check_mpp
from colocate.slides.slide import Slide

VERSION = 2  # 1 has no checksums, neither of tiles nor of itself
TRAILER = struct.Struct("<8sI")  # after the Arrow file: these words, and its CRC-32
WORDS = b"colocate"
LARGEST_BYTES = 1 << 30
ROWS_AT_ONCE = 1 << 20


@final
@dataclass(frozen=True, eq=False, repr=False)
class Index:
    """The tiles of a data set, numbered from 0; made by `Index.build` or `Index.open`.

    Pickled as its path alone, and it keeps neither tile nor shard open, so that it is cheap to send to workers.
    """

    path: Path
    table: pa.Table  # of SCHEMA or SLIDES, memory-mapped

    @classmethod
    def build(
        cls,
        data: str | Path,
        out: Path,
        *,
        root: Path | None = None,
        mpp: float | None = None,
        hold_out: Sequence[str] = (),
        origin: tuple[str, str | None] | None = None,
    ) -> Index:
        """Find the tiles of `data` (folder, list, table, tar shards, manifest or index), write their index to `out`.

        root: where the paths of a list, table, manifest or index start from (by default the list's own folder, or
        where the index says); mpp: micrometres per pixel of the tiles that state none; hold_out: tiles that are left
        out, as COLUMN=VALUE[,VALUE...] of a table or manifest. `out` appears whole or not at all.
        Raises UserError if the data hold no tiles or cannot be read, mpp is not in (0, 100), `hold_out` does not fit
        the data, or `out` cannot be written.
        origin: what the index says of where its data lie, if that is not where they were found.
        """
        if mpp is not None:
            check_mpp(mpp, "--mpp")
        data = Path(data).expanduser()
        root = None if root is None else Path(root).expanduser()
        origin = origin or (str(absolute(data)), None if root is None else str(absolute(root)))
        if data.suffix == ".arrow" and not hold_out:
            known = cls.open(data)
            rows = Rows(known.kind, root or known.root, known.table)
        else:
            rows = find(data, root, hold_out)
        table = rows.table.unify_dictionaries()
        if mpp is not None:
            filled = table["mpp"].fill_null(pa.scalar(mpp, pa.float32()))
            table = table.set_column(table.column_names.index("mpp"), "mpp", filled)
        facts = {
            "version": VERSION,
            "kind": rows.kind,
            "root": str(absolute(rows.root)),
            "origin": origin,
            "fingerprint": _fingerprint(table),
        }
        table = table.replace_schema_metadata({"colocate": json.dumps(facts)})

        cls(out, table)._check_first_tiles()

        def write(file: Any) -> None:
            with pa.ipc.new_file(file, table.schema) as writer:
                for start in range(0, len(table), ROWS_AT_ONCE):
                    writer.write_table(table.slice(start, ROWS_AT_ONCE).combine_chunks())
            file.flush()
            with pa.memory_map(file.name) as written:
                file.write(TRAILER.pack(WORDS, zlib.crc32(written.read_buffer())))

        write_atomically(out, write)
        return cls.open(out)

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Open an index that `build` wrote, all of it read once to see that it is whole: 1.5 GB a second.

        Raises UserError if it is missing, cut short, damaged or something else.
        """
        try:
            with pa.memory_map(str(path)) as file:
                stored = file.read_buffer()
            words, crc32 = TRAILER.unpack(stored[-TRAILER.size :]) if stored.size > TRAILER.size else (b"", 0)
            summed = words == WORDS
            if summed and crc32 != zlib.crc32(stored[: -TRAILER.size]):
                raise OSError("its checksum is another")
            table = pa.ipc.open_file(stored[: -TRAILER.size] if summed else stored).read_all()
            if not summed:
                table.validate(full=True)
        except FileNotFoundError:
            raise UserError(f"The index {path} does not exist: build it from the tiles") from None
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"The index {path} is cut short or damaged: build it again from the tiles") from error
        if not summed and table.schema.equals(SCHEMA.remove(SCHEMA.get_field_index("crc32"))):
            table = table.append_column(SCHEMA.field("crc32"), pa.nulls(len(table), pa.uint32()))
        index = cls(Path(path).absolute(), table)
        version = VERSION if summed else 1
        if not any(map(table.schema.equals, (SCHEMA, SLIDES))) or index._facts.get("version") != version:
            raise UserError(f"{path} is not an index of this version of colocate: build it again from the tiles")
        return index

    def __len__(self) -> int:
        return len(self.table)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.open, (self.path,)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return json.loads((self.table.schema.metadata or {}).get(b"colocate", b"{}"))

    @property
    def root(self) -> Path:
        """The folder that the tiles' paths start from."""
        return Path(self._facts["root"])

    @property
    def kind(self) -> str:
        """Where the tiles come from: "folder", "list", "table", "tar" or "slides"."""
        return self._facts["kind"]

    @property
    def origin(self) -> tuple[str, str | None] | None:
        """Absolute paths of the data and, where one was given, the root that it was built from; None of an old one."""
        return tuple(self._facts["origin"]) if "origin" in self._facts else None

    @property
    def fingerprint(self) -> str:
        """Hash of count, names and sources: does not depend on where the data lie."""
        return self._facts["fingerprint"]

    @cached_property
    def mpp(self) -> Float32[np.ndarray, "n"]:
        """Micrometres per pixel of each tile, nan where unknown."""
        return self.table["mpp"].to_numpy()

    @property
    def sources(self) -> list[str]:
        """The distinct sources (folders, cases or slides)."""
        return self._sources.dictionary.to_pylist()

    @property
    def source_numbers(self) -> Int32[np.ndarray, "n"]:
        """For each tile the number of its source in `sources`."""
        return self._sources.indices.to_numpy()

    @cached_property
    def _sources(self) -> pa.DictionaryArray:
        return self.table["source"].combine_chunks()

    def name(self, number: int) -> str:
        """Return a tile's full path: `path/of/tile`, `path/of/shard.tar:member` or `path/of/slide@x,y`."""
        if self.kind == "slides":
            return f"{self._slide(number)}@{self._cell('x', number)},{self._cell('y', number)}"
        file, member = self._place(number)
        return f"{file}:{member}" if member else file

    def read(self, number: int) -> UInt8[Tensor, "3 h w"]:
        """Read a tile's RGB pixels. Raises TileError, naming the file, if it is missing, unreadable or no image."""
        if self.kind == "slides":
            x, y, px, mpp = (self._cell(column, number) for column in ("x", "y", "px", "mpp"))
            slide = Slide.open(self._slide(number), self._cell("slide_mpp", number))  # whose file stays open
            return torch.from_numpy(slide.read(x, y, px, px, mpp).transpose(2, 0, 1).copy())
        return decode(self.packed(number), self.name(number))

    def packed(self, number: int) -> bytes:
        """Read a tile's file without decoding it.

        Raises TileError if it is missing, unreadable or a slide; ValueError for a place in a slide, which has no file.
        """
        if self.kind == "slides":
            raise ValueError(f"{self.name(number)} has no file of its own: read it")
        file, member = self._place(number)
        try:
            with open(file, "rb", opener=_at_once) as stored:
                size = self._cell("size", number) if member else os.fstat(stored.fileno()).st_size
                if size > LARGEST_BYTES:
                    raise too_large(self.name(number))
                stored.seek(self._cell("offset", number) if member else 0)
                data = stored.read(size)
        except FileNotFoundError:
            raise TileError(f"{file} does not exist: check the data's list or root, or build the index again") from None
        except OSError as error:
            reason = error.strerror or error
            raise TileError(f"{file} cannot be read ({reason}): check it and its permissions") from error
        if len(data) < size:
            remedy = "copy it again and build the index again"
            raise TileError(f"{self.name(number)} ends early, the file has shrunk: {remedy}")
        if self._cell("crc32", number) not in (None, zlib.crc32(data)):
            remedy = f"copy {file} again, or delete it and run `colocate tile` again"
            raise TileError(f"{self.name(number)} is damaged (its checksum is another): {remedy}")
        return data

    def _check_first_tiles(self) -> None:
        """Raises UserError where the first tile of a shard is another: then all of them would be."""
        if self.kind == "tar" and not self.table["crc32"].null_count:
            for number in np.unique(self.table["shard"].combine_chunks().indices, return_index=True)[1].tolist():
                self.packed(number)

    def _slide(self, number: int) -> str:
        return os.path.join(self._facts["root"], self._cell("path", number))  # noqa: PTH118 (as below)

    def _place(self, number: int) -> tuple[str, str]:
        """The file that holds the tile, and the member's name in it if the file is a shard."""
        path, shard = self._cell("path", number), self._cell("shard", number)
        file = os.path.join(self._facts["root"], shard or path)  # noqa: PTH118 (read a million times)
        return file, path if shard else ""

    def _cell(self, column: str, number: int) -> Any:
        return self.table[column][number].as_py()


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for one who writes into a pipe, which is then as empty as it looks."""
    return os.open(path, flags | os.O_NONBLOCK)


def _fingerprint(table: pa.Table) -> str:
    """Hash the texts of all rows, each ended by a zero, and the places in slides."""
    digest = blake2b(str(len(table)).encode(), digest_size=16)
    numbers = ("x", "y", "px", "mpp", "slide_mpp") if table.schema.equals(SLIDES) else ()
    for name in (*(text for text in ("path", "shard", "source") if text in table.column_names), *numbers):
        for batch in table.select([name]).to_batches(max_chunksize=ROWS_AT_ONCE):
            values = batch.column(0)
            if name in numbers:
                digest.update(values.to_numpy().tobytes())
            else:
                ended = pc.binary_join_element_wise(values.cast(pa.string()).fill_null(""), "", "\0")
                digest.update(memoryview(ended.buffers()[2]))
    return digest.hexdigest()
