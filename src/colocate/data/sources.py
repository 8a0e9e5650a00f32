"""Whatever the user calls `--data` (folder, list, table, tar shards, manifest), turned into rows."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import pyarrow as pa
import pyarrow.compute
from pyarrow import parquet

from colocate.base.errors import UserError
from colocate.base.tables import TABLES, column, read_table
from colocate.data.rows import (
    SCHEMA,
    SLIDES,
    HeldOut,
    Rows,
    check_columns,
    file_rows,
    held_out,
    left_in,
    numbered,
    table_rows,
    texts,
)
from colocate.slides.listing import MANIFEST, NEEDED, SETTINGS
from colocate.slides.slide import check_mpp

SHARD = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd


def shard_rows(root: Path, shards: list[str], endings: tuple[str, ...]) -> pa.Table:
    """Rows of `SCHEMA` for the members with one of the `endings`, shard by shard, in the order in which they lie.

    A member `KEY.json` may give "mpp" and "source" of the tile `KEY.png`; otherwise the shard is the source.
    Raises UserError for a shard that is compressed, cut short or no tar file.
    """
    return pa.concat_tables([_rows(root, shard, endings) for shard in shards])


def compressed(path: Path) -> UserError:
    """The error for a compressed shard."""
    return UserError(
        f"{path} is compressed, so that no single tile can be reached: unpack it to a folder or plain .tar"
    )


class _Note(NamedTuple):
    """What a sample's JSON says of its tiles."""

    source: str | None = None
    mpp: float | None = None


def _rows(root: Path, shard: str, endings: tuple[str, ...]) -> pa.Table:
    tiles: list[tuple[str, int, int]] = []
    notes: dict[str, _Note] = {}
    for member, tar in _tar_members(root / shard):
        key, ending = _key(member.name)
        if key.endswith("/") or not key:  # hidden
            continue
        if member.name.lower().endswith(endings):
            tiles.append((member.name, member.offset_data, member.size))
        elif ending == ".json":
            file = tar.extractfile(member)
            notes[key] = _note(file.read() if file else b"", f"{root / shard}:{member.name}")
    said = [notes.get(_key(name)[0], _Note()) for name, _, _ in tiles]
    columns = [
        texts([name for name, _, _ in tiles]),
        pa.DictionaryArray.from_arrays(pa.array([0] * len(tiles), pa.int32()), texts([shard])),
        pa.array([offset for _, offset, _ in tiles], pa.int64()),
        pa.array([size for _, _, size in tiles], pa.int64()),
        texts([note.source or shard for note in said]).dictionary_encode(),
        pa.array([note.mpp for note in said], pa.float32()),
    ]
    return pa.table(columns, schema=SCHEMA)


def _key(member: str) -> tuple[str, str]:
    """A member's name cut at the first dot of its last part, as WebDataset groups members into samples.

    >>> _key("v1.0/case.7.png"), _key(".hidden.png")
    (('v1.0/case', '.7.png'), ('', '.hidden.png'))
    """
    folder, slash, file = member.rpartition("/")
    stem, dot, ending = file.partition(".")
    return folder + slash + stem, dot + ending


def _note(text: bytes, name: str) -> _Note:
    try:
        said = json.loads(text)
        if not isinstance(said, dict):
            return _Note()
        source = said.get("source")
        mpp = said.get("mpp")
        note = _Note(None if source is None else str(source), None if mpp is None else float(mpp))
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} cannot be read ({error}): mend it or pack the shard without it") from None
    if note.mpp is not None:
        check_mpp(note.mpp, name)
    return note


def _tar_members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """All plain files in a shard that is whole up to its end mark."""
    whole, ended = 0, False
    try:
        with path.open("rb") as file:
            if file.read(8).startswith(MAGIC):
                raise compressed(path)
            length = file.seek(0, 2)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None and member.offset_data + member.size <= length:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                    whole += 1
                    if member.isreg() and not member.issparse():
                        yield member, tar
                file.seek(tar.offset)
                ended = member is None and file.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check it and its permissions") from error
    except UserError:
        raise
    except Exception:  # on a damaged header tarfile raises almost anything
        pass
    if not ended and not whole:
        raise UserError(f"{path} is no tar file, or is cut within its first member: copy it again")
    if not ended:
        message = f"only its first {whole} members are whole: copy it again, or unpack those and use the folder"
        raise UserError(f"{path} is cut short or damaged, {message}")


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
    shards = read_table(data, ["shard"])["shard"]
    if not len(shards):
        raise UserError(f"{data} lists no tiles: see slides.csv and overlays/ beside it for what was found")
    tiles = _Tiles(data, pa.array(left_in(read_table(data, list(held_out)), held_out, data)) if held_out else None)
    if not shards.null_count:
        return Rows("tar", root or data.parent, _members(tiles))
    above = os.path.commonpath([os.path.dirname(path) for path in numbered(read_table(data, ["path"])["path"])[1]])  # noqa: PTH120
    return Rows("slides", root or Path(above), _places(tiles, above))


@final
@dataclass(frozen=True)
class _Tiles:
    """The rows of a manifest that are left in, read column by column: ten million fit into little memory."""

    data: Path
    kept: pa.BooleanArray | None

    def columns(self, *names: str) -> pa.Table:
        table = read_table(self.data, list(names))
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


IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
LISTS = (".txt", ".lst")
KINDS = (
    f"a folder of tiles, a list ({' '.join(LISTS)}), a table ({' '.join(TABLES)}), {SHARD} shards, a manifest of "
    "`colocate tile` or an .arrow index"
)


def find(data: Path, root: Path | None, hold_out: Sequence[str] = ()) -> Rows:
    """The tiles of a folder, list, table, manifest or of tar shards, in an order that is the same on every machine.

    `root` is the folder that a list's or table's paths start from (by default its own folder); `hold_out` names tiles
    to be left out, as `held_out` reads it.
    Raises UserError if there is nothing to find, or if a list, table or shard cannot be read.
    """
    _check_is_there(data, f"give --data {KINDS}")
    if data.is_dir():
        data = _manifest_in(data)
    name = data.name.lower()
    if hold_out and not name.endswith(TABLES):
        raise UserError(
            f"--hold-out {hold_out[0]} goes by a column of a table or manifest, but {data} is neither: give one"
        )
    if root is not None and not name.endswith((*LISTS, *TABLES)):
        raise UserError(f"--root {root} goes with a list or a table of paths, but {data} is neither: leave it out")
    if data.is_dir():
        return _folder(data)
    if name.endswith((*LISTS, *TABLES)):
        home = data.parent if root is None else root
        _check_is_there(home, f"give --root the folder that the paths in {data} start from")
        if name.endswith(LISTS):
            return _list(data, home)
        if is_manifest(data):
            return manifest_rows(data, root, held_out(hold_out))
        return Rows("table", home, table_rows(data, held_out(hold_out)))
    if name.endswith(SHARD):
        return _shards(data.parent, [data.name], data)
    if name.endswith(COMPRESSED):
        raise compressed(data)
    raise UserError(f"{data} is not a kind of data that can be read: give {KINDS}")


def _check_is_there(path: Path, remedy: str) -> None:
    try:
        path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}): {remedy}") from None


def _manifest_in(folder: Path) -> Path:
    """The manifest in a folder that `colocate tile` wrote, else the folder itself.

    Raises UserError where pictures lie in the folder that are no tiles.
    """
    if is_manifest(folder / MANIFEST):
        return folder / MANIFEST
    if (folder / SETTINGS).is_file():
        raise UserError(f"{folder} has no {MANIFEST} yet: let `colocate tile` cut the slides that are left")
    if all((folder / name).is_file() for name in ("dataset.json", "items.csv")):
        tables = sorted(str(path) for path in folder.glob("train-*.csv"))
        remedy = f"give {' or '.join(tables)}" if tables else "it has no split with training images to give"
        raise UserError(f"{folder} holds masks too, as `colocate prepare` wrote it: {remedy}")
    return folder


def _folder(data: Path) -> Rows:
    files = sorted(_walk(data))
    tiles = [file for file in files if file.lower().endswith(IMAGES)]
    shards = [file for file in files if file.lower().endswith(SHARD)]
    if tiles and shards:
        message = f"both {len(tiles)} image files and {len(shards)} tar shards: point --data at a folder with one kind"
        raise UserError(f"{data} holds {message}")
    if shards:
        return _shards(data, shards, data)
    if tiles:
        return Rows("folder", data, file_rows(tiles))
    if files:
        raise compressed(data / files[0])
    raise UserError(f"{data} and its subfolders hold no tiles: files ending in {', '.join(IMAGES)}, or {SHARD} shards")


def _walk(top: Path) -> Iterator[str]:
    """Paths from `top` to all files whose ending matters, in any order; links are followed, but not in circles."""
    endings = (*IMAGES, SHARD, *COMPRESSED)
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        inside, above = waiting.pop()
        try:
            here = top / inside
            status = here.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                continue
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        waiting.append((f"{inside}{entry.name}/", above | {identity}))
                    elif entry.name.lower().endswith(endings):
                        yield inside + entry.name
        except OSError as error:
            raise UserError(f"{top / inside} cannot be listed ({error.strerror}): check its permissions") from None


def _list(data: Path, root: Path) -> Rows:
    try:
        text = data.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError
    except ValueError:  # of which a UnicodeDecodeError is one
        raise UserError(f"{data} is not UTF-8 text: save it as UTF-8 with one path on each line") from None
    except OSError as error:
        raise UserError(f"{data} cannot be read ({error.strerror}): check its permissions") from None
    paths = [_without_label(line) for line in map(str.strip, text.split("\n")) if line]
    if not paths:
        raise UserError(f"{data} lists no tiles: write one path on each line")
    return Rows("list", root, file_rows(paths))


def _without_label(line: str) -> str:
    """The path on a line of a list, which may end in a class label; a path may hold spaces.

    >>> _without_label("ADI/ADI-TCGA.tif 0"), _without_label("case 7/my tile 12.png"), _without_label("scan 3")
    ('ADI/ADI-TCGA.tif', 'case 7/my tile 12.png', 'scan 3')
    """
    path, _, label = line.replace("\t", " ").rpartition(" ")
    labelled = label.lstrip("+-").isdecimal() and path.rstrip().lower().endswith(IMAGES)
    return line[: len(path)].rstrip() if labelled else line


def _shards(root: Path, shards: list[str], data: Path) -> Rows:
    table = shard_rows(root, shards, IMAGES)
    if not len(table):
        raise UserError(f"{data} holds no tiles: members of a shard ending in {', '.join(IMAGES)}")
    return Rows("tar", root, table)
