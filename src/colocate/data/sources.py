"""Whatever the user calls `--data` (folder, list, table, tar shards, manifest), turned into rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from colocate.data.hold_out import held_out
from colocate.data.manifest import is_manifest, manifest_rows
from colocate.data.rows import Rows, file_rows
from colocate.data.shards import COMPRESSED, SHARD, compressed, shard_rows
from colocate.data.tables import TABLES, table_rows
from colocate.errors import UserError
from colocate.tile_format import MANIFEST, SETTINGS

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
