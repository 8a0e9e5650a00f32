"""NCT-CRC-HE-100K and CRC-VAL-HE-7K: colon tiles of nine tissues, 224 x 224 px; they have no masks.

Kather, Halama and Marx, "100,000 histological images of human colorectal cancer and healthy tissue", Zenodo 2018,
doi:10.5281/zenodo.1214456.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.datasets.files import by_stem, folder_in
from colocate.datasets.writer import check_free

MPP = 0.5
TISSUES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
TILES = {"NCT-CRC-HE-100K": 100_000, "NCT-CRC-HE-100K-NONORM": 100_000, "CRC-VAL-HE-7K": 7_180}


def list_tiles(src: Path, out: Path) -> list[str]:
    """Write the table of a release's tiles (path, mpp, source, class) for `colocate pretrain --data`; the notes on it.

    The release names no patient: `source` is left to the tissue's folder. Paths are relative to the table where
    it lies above the tiles, else absolute.

    Raises:
        UserError: a tissue's folder is missing or empty, `out` exists or does not end in .csv, or the disk is full.
    """
    if out.suffix.lower() != ".csv":
        raise UserError(f"{out} would hold a table, for the tiles stay where they are: give OUT a name ending in .csv")
    check_free(out)
    base, root = (Path(os.path.abspath(path)) for path in (out.parent, src))  # noqa: PTH100 (keeps the user's links)
    counts: dict[str, int] = {}
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("path", "mpp", "source", "class"))
    for tissue in TISSUES:
        tiles = by_stem(folder_in(root, tissue), (".tif", ".tiff", ".png", ".jpg", ".jpeg"))
        if not tiles:
            raise UserError(f"{src / tissue} holds no tiles: unpack the release again")
        counts[tissue] = len(tiles)
        for tile in tiles.values():
            path = tile.relative_to(base) if tile.is_relative_to(base) else tile
            table.writerow((path, MPP, "", tissue))
    write_atomically(out, lambda file: file.write(text.getvalue().encode()))
    return _notes(root, counts)


def _notes(root: Path, counts: dict[str, int]) -> list[str]:
    total, expected = sum(counts.values()), TILES.get(root.name)
    notes = [f"{total:,} tiles: {', '.join(f'{tissue} {count:,}' for tissue, count in counts.items())}"]
    if expected is not None and total != expected:
        notes.append(f"not all of the release: {root.name} has {expected:,} tiles, here are {total:,}")
    elif total not in TILES.values():
        notes.append(f"not all of a release? NCT-CRC-HE-100K has 100,000 tiles, CRC-VAL-HE-7K 7,180, here {total:,}")
    notes.append("the tiles of CRC-VAL-HE-7K are of other patients than those of NCT-CRC-HE-100K")
    return notes
