"""Tar shards in WebDataset's layout, indexed so that any tile is one seek and one read away."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from colocate.data.rows import SCHEMA, texts
from colocate.errors import UserError
from colocate.slide import check_mpp

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
    for member, tar in _members(root / shard):
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


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
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
