"""Find the tiles of `--data`: a folder, list, table, tar shards or manifest."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from colocate.base.errors import UserError
from colocate.base.files import files_below
from colocate.base.tables import TABLES, as_text, column, pc, read_table
from colocate.data.rows import (
    SCHEMA,
    SLIDES,
    HeldOut,
    Rows,
    check_parted,
    file_rows,
    held_out,
    left_in,
    note_repeats,
    numbered,
    table_rows,
    texts,
)
from colocate.slides.listing import MANIFEST, NEEDED, SETTINGS
from colocate.slides.manifest import SLIDES as LISTED
from colocate.slides.readers import ENDINGS
from colocate.slides.settings import check_mpp

IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
SHARD = ".tar"
WRITTEN = (MANIFEST, SETTINGS, "items.csv")  # in folders of `colocate tile` and `colocate prepare`
MOST_PADDING = 1 << 20  # of a tar, after its end mark
LISTS = (".txt", ".lst")
KINDS = (
    f"a folder of tiles, a list ({' '.join(LISTS)}), a table ({' '.join(TABLES)}), uncompressed {SHARD} shards, "
    "a manifest of `colocate tile` or an .arrow index"
)


def find(data: Path, root: Path | None, hold_out: Sequence[str] = ()) -> Rows:
    """Find the tiles of a folder, list, table, manifest or of tar shards, in the same order on every machine.

    `root` is the folder that a list's or table's paths start from (by default its own folder); `hold_out` names tiles
    to be left out, as `held_out` reads it.
    Raises UserError if there is nothing to find, or if a list, table or shard cannot be read.
    """
    check_is_there(data)
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
        check_is_there(home, f"give --root the folder that the paths in {data} start from")
        if name.endswith(LISTS):
            return _list(data, home)
        if is_manifest(data):
            return manifest_rows(data, root, held_out(hold_out))
        return Rows("table", home, table_rows(data, held_out(hold_out)))
    if name.endswith(SHARD):
        return shard_rows(data.parent, [data.name], data)
    raise UserError(f"{data} is not a kind of data that can be read: give {KINDS}")


def check_is_there(path: Path, remedy: str = f"give {KINDS}") -> None:
    """Raises UserError where a file or folder cannot be looked at."""
    try:
        path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}): {remedy}") from None


def _manifest_in(folder: Path) -> Path:
    """Return the manifest in a folder that `colocate tile` wrote, else the folder itself.

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
    files = sorted(files_below(data, (*IMAGES, SHARD, *WRITTEN, *ENDINGS)))
    for folder in sorted({(data / file).parent for file in files if file.endswith(WRITTEN)}):
        if (manifest := _manifest_in(folder)) != folder:  # whose overlays are no tiles
            raise UserError(f"{data} holds {manifest}: give that")
    tiles = [file for file in files if file.lower().endswith(IMAGES)]
    shards = [file for file in files if file.lower().endswith(SHARD)]
    if tiles and shards:
        message = f"both {len(tiles)} image files and {len(shards)} tar shards: point --data at a folder with one kind"
        raise UserError(f"{data} holds {message}")
    slides = [file for file in files if not file.lower().endswith((*IMAGES, SHARD, *WRITTEN))]
    if slides and (tiles or shards):
        remedy = "give the folder of the tiles alone, or slides alone to `colocate tile`"
        raise UserError(f"{data} holds slides among its pictures ({slides[0]}), which would be left out: {remedy}")
    if shards:
        return shard_rows(data, shards, data)
    if tiles:
        return Rows("folder", data, file_rows(tiles))
    kinds = f"files ending in {', '.join(IMAGES)}, or uncompressed {SHARD} shards"
    raise UserError(f"{data} and its subfolders hold no tiles: {kinds}")


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
    note_repeats(paths, data)
    return Rows("list", root, file_rows(paths))


def _without_label(line: str) -> str:
    """Remove a class label from the end of a list's line; the path may hold spaces.

    >>> _without_label("ADI/ADI-TCGA.tif 0"), _without_label("case 7/my tile 12.png"), _without_label("scan 3")
    ('ADI/ADI-TCGA.tif', 'case 7/my tile 12.png', 'scan 3')
    """
    path, _, label = line.replace("\t", " ").rpartition(" ")
    labelled = label.lstrip("+-").isdecimal() and path.rstrip().lower().endswith(IMAGES)
    return line[: len(path)].rstrip() if labelled else line


def shard_rows(root: Path, shards: list[str], data: Path) -> Rows:
    """Make rows of `SCHEMA` for the images in shards, in their order.

    A member `KEY.json` may give "mpp" and "source" of the tile `KEY.png`, whatever dots KEY has, or else of all tiles
    that WebDataset groups with it (`KEY.0.png`, ...); otherwise the shard is the source.
    Raises UserError for a shard that is compressed, cut short, no tar file or has an image twice, or if there are none.
    """
    table = pa.concat_tables([_members(root, shard) for shard in shards])
    if not len(table):
        raise UserError(f"{data} holds no tiles: members of a shard ending in {', '.join(IMAGES)}")
    return Rows("tar", root, table)


def _members(root: Path, shard: str) -> pa.Table:
    tiles: list[tuple[str, int, int]] = []
    known: set[str] = set()
    notes: dict[str, tuple[str, bytes]] = {}
    for member, tar in _tar_members(root / shard):
        if any(part.startswith(".") and part.strip(".") for part in member.name.split("/")):  # hidden
            continue
        stem, _, ending = member.name.rpartition(".")
        if member.name.lower().endswith(IMAGES):
            if not member.isreg() or member.issparse():
                remedy = "pack the shard again with tar --dereference --hard-dereference, without --sparse"
                raise UserError(f"{root / shard}:{member.name} is a link or full of holes: {remedy}")
            if (name := member.name.removeprefix("./")) in known:
                raise UserError(f"{root / shard} holds {name} twice: unpack it, and pack what is there then")
            known.add(name)
            tiles.append((member.name, member.offset_data, member.size))
        elif ending.lower() == "json" and member.isreg():
            file = tar.extractfile(member)
            notes[stem] = f"{root / shard}:{member.name}", file.read() if file else b""
    meant = [next((key for key in (name.rpartition(".")[0], _key(name)) if key in notes), "") for name, _, _ in tiles]
    read = {"": (None, None)} | {key: _note(*notes[key]) for key in {*meant} - {""}}
    said = [read[key] for key in meant]
    columns = [
        texts([name for name, _, _ in tiles]),
        pa.DictionaryArray.from_arrays(pa.array([0] * len(tiles), pa.int32()), texts([shard])),
        pa.array([offset for _, offset, _ in tiles], pa.int64()),
        pa.array([size for _, _, size in tiles], pa.int64()),
        texts([source or shard for source, _ in said]).dictionary_encode(),
        pa.array([mpp for _, mpp in said], pa.float32()),
        pa.nulls(len(tiles), pa.uint32()),
    ]
    return pa.table(columns, schema=SCHEMA)


def _key(member: str) -> str:
    """Cut a member's name at the first dot of its last part, as WebDataset groups members into samples.

    >>> _key("v1.0/case.7.png")
    'v1.0/case'
    """
    folder, slash, file = member.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _note(name: str, text: bytes) -> tuple[str | None, float | None]:
    """Read the source and the micrometres per pixel that a sample's JSON gives its tiles."""
    try:
        said = json.loads(text)
        source, mpp = (said.get("source"), said.get("mpp")) if isinstance(said, dict) else (None, None)
        mpp = None if mpp is None else float(mpp)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{name} cannot be read ({error}): mend it or pack the shard without it") from None
    if mpp is not None:
        check_mpp(mpp, name)
    return None if source is None else str(source), mpp


def _tar_members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Iterate over the members of a shard but folders; it must be whole up to its end mark, and end there."""
    whole, rest = 0, b""
    try:
        with path.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None and member.offset_data + member.size <= length:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                    whole += 1
                    if not member.isdir():
                        yield member, tar
                file.seek(tar.offset)
                rest = file.read(MOST_PADDING) if member is None else b""
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check it and its permissions") from error
    except UserError:
        raise
    except Exception:  # on a damaged header tarfile raises almost anything
        pass
    ended = rest.startswith(tarfile.NUL * tarfile.BLOCKSIZE)
    if ended and rest.strip(tarfile.NUL):
        remedy = "give them by themselves, or pack them again"
        raise UserError(f"{path} goes on after its end mark, as joined shards do: {remedy}")
    if not ended and not whole:
        message = "unpack it if it is compressed, else copy it again"
        raise UserError(f"{path} is no plain tar file, or is cut within its first member: {message}")
    if not ended:
        message = f"only its first {whole} members are whole: copy it again, or unpack those and use the folder"
        raise UserError(f"{path} is cut short or damaged, {message}")


def is_manifest(data: Path) -> bool:
    """Whether a table is one that `colocate tile` wrote. Raises UserError if it lacks a single column of one."""
    try:
        missing = NEEDED - set(parquet.read_schema(data).names)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return False
    if len(missing) == 1:  # as a table of tiles its paths would be slides
        raise UserError(f"{data} has no column `{missing.pop()}`: give the manifest as `colocate tile` wrote it")
    return not missing


def manifest_rows(data: Path, root: Path | None, held_out: HeldOut) -> Rows:
    """Read a manifest's tiles that are not held out: members of its shards or, where it has none, places in slides.

    `root` is where the shards lie (by default beside the manifest), or the folder of all slides if they were moved.
    Raises UserError if the manifest cannot be read, is empty, or `held_out` does not fit it.
    """
    wanted = [*sorted(NEEDED), *({"crc32"} & set(parquet.read_schema(data).names))]
    table = read_table(data, None if held_out else wanted)  # ten million rows: no more columns than needed
    if not len(table):
        raise UserError(f"{data} lists no tiles: see slides.csv and overlays/ beside it for what was found")
    in_shards = not table["shard"].null_count
    needed = NEEDED - ({"slide_mpp", "path", "size"} if in_shards else {"shard", "offset", "bytes"})
    if empty := sorted(name for name in needed if table[name].null_count):
        raise UserError(f"{data} has tiles without `{empty[0]}`: give it as `colocate tile` wrote it")
    paths = [] if in_shards else numbered(table["path"])[1]
    if held_out:
        kept = left_in(table, held_out, data)
        check_parted(table.select(["shard", "offset"] if in_shards else ["path", "x", "y"]), kept, data)
        table = table.filter(pa.array(kept))

    def values(name: str, kind: pa.DataType) -> pa.ChunkedArray:
        return column(table, name, kind, data)

    def mpp(name: str) -> pa.ChunkedArray:
        found = values(name, pa.float32())
        for extreme in pc.min_max(found).as_py().values():
            check_mpp(extreme, f"{data}, column `{name}`")
        return found

    def words(name: str, above: str = "") -> pa.DictionaryArray:
        numbers, known = numbered(table[name])
        known = [os.path.relpath(word, above) for word in known] if above else known
        return pa.DictionaryArray.from_arrays(pa.array(numbers), texts(known))

    if in_shards:
        columns = {
            "path": _names(table),
            "shard": words("shard"),
            "offset": values("offset", pa.int64()),
            "size": values("bytes", pa.int64()),
            "source": words("source"),
            "mpp": mpp("mpp"),
            "crc32": values("crc32", pa.uint32()) if "crc32" in wanted else pa.nulls(len(table), pa.uint32()),
        }
        _check_shards(root or data.parent, columns["shard"].dictionary.to_pylist(), table, data)
        return Rows("tar", root or data.parent, pa.table(columns, schema=SCHEMA))
    if root is None:
        _check_slides(data)
    # Paths start from the folder above all slides, held out or not.
    above = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
    columns = {
        "path": words("path", above),
        "source": words("source"),
        "mpp": mpp("mpp"),
        "x": values("x", pa.int32()),
        "y": values("y", pa.int32()),
        "px": values("size", pa.int32()),
        "slide_mpp": mpp("slide_mpp"),
    }
    if pc.min(columns["px"]).as_py() < 1:
        raise UserError(f"{data} has tiles of no size: give it as `colocate tile` wrote it")
    return Rows("slides", root or Path(above), pa.table(columns, schema=SLIDES))


def _check_shards(root: Path, shards: Sequence[str], table: pa.Table, data: Path) -> None:
    """See that shards are there, of the lengths that their manifest says; older ones say nothing, nor checksums."""
    notes = (table.schema.metadata or {}).get(b"colocate", b"{}")
    try:
        lengths = dict(json.loads(notes).get("shards", {}))
        if lengths and table["crc32"].null_count:
            raise ValueError
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        raise UserError(f"{data} is damaged: delete it, and `colocate tile` writes it again") from None
    again = "copy it again, or delete it and run `colocate tile` again, which cuts its slide anew"
    for shard in shards:
        path = root / shard
        try:
            length = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path} cannot be opened ({error.strerror}), and {data} names it: {again}") from None
        if length != lengths.get(shard, length):
            raise UserError(f"{path} has {length:,} bytes, not {lengths[shard]:,} as when it was written: {again}")


def _check_slides(data: Path) -> None:
    """See that slides are as long as when their tiles were placed, which slides.csv beside the manifest says."""
    listed = data.with_name(LISTED)
    for row in as_text(read_table(listed)) if listed.is_file() else ():
        path = Path(row.get("path", ""))
        if path.is_file() and row.get("bytes") not in (None, str(path.stat().st_size)):
            raise UserError(f"{path} has changed since {data} was made of it: run `colocate tile` again")


def _names(table: pa.Table) -> pa.ChunkedArray:
    """Name the tiles as in their shards: SLIDE/000512_001024.jpg."""
    slide, x, y = (table[name].cast(pa.string()) for name in ("slide", "x", "y"))
    x, y = (pc.utf8_lpad(number, 6, "0") for number in (x, y))
    return pc.binary_join_element_wise(slide, "/", x, "_", y, ".jpg", "")
