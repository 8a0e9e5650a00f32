"""The index: which tiles there are and where, in one memory-mapped Arrow file that a million rows open in no time."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

from colocate.data.decode import decode, slide
from colocate.data.rows import SCHEMA, Rows
from colocate.data.sources import find
from colocate.errors import TileError, UserError
from colocate.slide import check_mpp

VERSION = 1
LARGEST_BYTES = 1 << 30
ROWS_AT_ONCE = 1 << 20


@final
@dataclass(frozen=True, eq=False, repr=False)
class Index:
    """The tiles of a data set, numbered from 0; made by `Index.build` or `Index.open`.

    Pickled as its path alone, and it keeps neither tile nor shard open, so that it is cheap to send to workers.
    """

    path: Path
    table: pa.Table  # of SCHEMA, memory-mapped

    @classmethod
    def build(cls, data: str | Path, out: Path, *, root: Path | None = None, mpp: float | None = None) -> Index:
        """Find the tiles of `data` (folder, list, table, tar shards, or an index) and write their index to `out`.

        root: where the paths of a list, table or index start from (by default the list's own folder, or where the
        index says); mpp: micrometres per pixel of the tiles that state none. `out` appears whole or not at all.
        Raises UserError if the data hold no tiles or cannot be read, mpp is not in (0, 100), or `out` not written.
        """
        if mpp is not None:
            check_mpp(mpp, "--mpp")
        data = Path(data).expanduser()
        root = None if root is None else Path(root).expanduser()
        rows = cls.open(data)._rows(root) if data.suffix == ".arrow" else find(data, root)
        table = rows.table.unify_dictionaries().combine_chunks()
        if mpp is not None:
            filled = table["mpp"].fill_null(pa.scalar(mpp, pa.float32()))
            table = table.set_column(table.column_names.index("mpp"), SCHEMA.field("mpp"), filled)
        facts = {
            "version": VERSION,
            "kind": rows.kind,
            "root": os.path.abspath(rows.root),  # noqa: PTH100 (resolve() would follow the user's links)
            "fingerprint": _fingerprint(table),
        }
        _write(table.replace_schema_metadata({"colocate": json.dumps(facts)}), out)
        return cls.open(out)

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Open an index that `build` wrote. Raises UserError if it is missing, cut short or something else."""
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
        except FileNotFoundError:
            raise UserError(f"The index {path} does not exist: build it from the tiles") from None
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"The index {path} is cut short or no Arrow file: build it again from the tiles") from error
        index = cls(Path(path).absolute(), table)
        if not table.schema.equals(SCHEMA) or index._facts.get("version") != VERSION:
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
        """Where the tiles come from: "folder", "list", "table" or "tar"."""
        return self._facts["kind"]

    @property
    def fingerprint(self) -> str:
        """Hash of count, names and sources; the same wherever the data lie."""
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
        """Full path of the tile; of a shard's member `path/of/shard.tar:member`."""
        file, member = self._place(number)
        return f"{file}:{member}" if member else file

    def read(self, number: int) -> UInt8[Tensor, "3 h w"]:
        """The tile's RGB pixels. Raises TileError, naming the file, if it is missing, unreadable or no image."""
        return decode(self.packed(number), self.name(number))

    def packed(self, number: int) -> bytes:
        """The tile's file as it is stored, not decoded. Raises TileError if it is missing, unreadable or a slide."""
        file, member = self._place(number)
        try:
            with Path(file).open("rb") as stored:
                size = self._cell("size", number) if member else os.fstat(stored.fileno()).st_size
                if size > LARGEST_BYTES:
                    raise slide(self.name(number))
                stored.seek(self._cell("offset", number) if member else 0)
                data = stored.read(size)
        except FileNotFoundError:
            raise TileError(f"{file} does not exist: check the data's list or root, or build the index again") from None
        except OSError as error:
            raise TileError(f"{file} cannot be read ({error.strerror}): check it and its permissions") from error
        if len(data) < size:
            raise TileError(
                f"{self.name(number)} ends early, the file has shrunk: copy it again and build the index again"
            )
        return data

    def _place(self, number: int) -> tuple[str, str]:
        """The file that holds the tile, and the member's name in it if the file is a shard."""
        path, shard = self._cell("path", number), self._cell("shard", number)
        file = os.path.join(self._facts["root"], shard or path)  # noqa: PTH118 (read a million times)
        return file, path if shard else ""

    def _cell(self, column: str, number: int) -> Any:
        return self.table[column][number].as_py()

    def _rows(self, root: Path | None) -> Rows:
        return Rows(self.kind, root or self.root, self.table)


def _fingerprint(table: pa.Table) -> str:
    digest = blake2b(str(len(table)).encode(), digest_size=16)
    for column in ("path", "shard", "source"):
        for chunk in table[column].chunks:
            for start in range(0, len(chunk), ROWS_AT_ONCE):
                values = chunk[start : start + ROWS_AT_ONCE].to_pylist()
                digest.update("".join(f"{value or ''}\0" for value in values).encode())
    return digest.hexdigest()


def _write(table: pa.Table, out: Path) -> None:
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                with pa.ipc.new_file(file, table.schema) as writer:
                    writer.write_table(table, max_chunksize=ROWS_AT_ONCE)
                file.flush()
                os.fsync(file.fileno())
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"The index {out} cannot be written ({reason}): free some space or choose another place"
        ) from error
