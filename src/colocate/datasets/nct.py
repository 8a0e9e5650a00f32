"""NCT-CRC-HE-100K and CRC-VAL-HE-7K: colon tiles of nine tissues, 224 x 224 px; they have no masks.

Kather, Halama and Marx, "100,000 histological images of human colorectal cancer and healthy tissue", Zenodo 2018,
doi:10.5281/zenodo.1214456.
"""

from __future__ import annotations

from pathlib import Path

from colocate.base.errors import UserError
from colocate.base.files import absolute
from colocate.base.tables import write_csv
from colocate.datasets.files import by_stem, folder_in
from colocate.datasets.writer import check_free

MPP = 0.5
TISSUES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
RELEASES = (100_000, 7_180)  # tiles of NCT-CRC-HE-100K (normalised or not), of CRC-VAL-HE-7K


def list_tiles(src: Path, out: Path) -> list[str]:
    """Write the table of a release's tiles (path, mpp, source, class) for `colocate pretrain --data`; the notes on it.

    The release names no patient: `source` is left to the tissue's folder. Paths are relative to the table where
    it lies above the tiles, else absolute.

    Raises UserError: a tissue's folder is missing or empty, `out` exists or does not end in .csv, or the disk is full.
    """
    if out.suffix.lower() != ".csv":
        raise UserError(f"{out} would hold a table, for the tiles stay where they are: give OUT a name ending in .csv")
    check_free(out)
    base, root = absolute(out.parent), absolute(src)
    counts: dict[str, int] = {}
    rows: list[tuple[Path, float, str, str]] = []
    for tissue in TISSUES:
        tiles = by_stem(folder_in(root, tissue), (".tif", ".tiff", ".png", ".jpg", ".jpeg"))
        if not tiles:
            raise UserError(f"{src / tissue} holds no tiles: unpack the release again")
        counts[tissue] = len(tiles)
        rows += [
            (tile.relative_to(base) if tile.is_relative_to(base) else tile, MPP, "", tissue) for tile in tiles.values()
        ]
    write_csv(out, ("path", "mpp", "source", "class"), rows)
    notes = [f"{len(rows):,} tiles: {', '.join(f'{tissue} {count:,}' for tissue, count in counts.items())}"]
    if len(rows) not in RELEASES:
        notes.append(
            f"not all of a release? NCT-CRC-HE-100K has 100,000 tiles, CRC-VAL-HE-7K 7,180, here {len(rows):,}"
        )
    notes.append("the tiles of CRC-VAL-HE-7K are of other patients than those of NCT-CRC-HE-100K")
    return notes
