"""Data as released in, packs out: GlaS to be judged by, and tiles to pretrain on that hold nothing it is judged by.

Tiles are crops of the GlaS images that are training images in every split, EBHI-Seg's training cases, and all of
LC25000's colon. The source of each is its case, as prepared data sets write it, so that `colocate evaluate` can check.
"""

from __future__ import annotations

import functools
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from benchmarks.glas.archives import Member, write_archives, write_list
from colocate import __version__
from colocate.data import Index, Labelled, spaced
from colocate.errors import UserError
from colocate.evaluate.leakage import check, refuse
from colocate.prepare import prepare
from colocate.prepare.files import IMAGES, entries
from colocate.prepare.writer import check_free, folder_or_nothing

MIB = 1 << 20
LC25000 = "lc25000"  # as source of its tiles, whose cases are not known


@final
class Tile(NamedTuple):
    """A tile that is not read yet."""

    key: str
    """Its name in the shard, without ending and dots."""
    ending: str
    source: str
    mpp: float
    """Micrometres per pixel, nan where unknown."""
    read: Callable[[], bytes]

    def members(self) -> list[Member]:
        """The files of a WebDataset sample: the image, and what is known of it."""
        note: dict[str, Any] = {"source": self.source}
        if not math.isnan(self.mpp):
            note["mpp"] = self.mpp
        return [(self.key + self.ending, self.read()), (self.key + ".json", json.dumps(note).encode())]


def pack(
    *,
    glas: Path,
    ebhi: Path,
    lc25000: Path,
    out: Path,
    most_mib: float = 60,
    tile_px: int = 224,
    most: int | None = None,
    partial: bool = False,
) -> None:
    """Pack GlaS and tiles for pretraining into archives.

    Args:
        glas: GlaS as released (BMP files and Grade.csv; PNG or WebP copies of these are taken too).
        ebhi: EBHI-Seg as released.
        lc25000: A folder of LC25000's colon tiles, in subfolders or not.
        out: The new folder of archives.
        most_mib: Largest size of an archive, in MiB.
        tile_px: Side of the tiles that GlaS images are cut into.
        most: At most so many tiles of each of the three, evenly spread (for trying things out).
        partial: Take GlaS and EBHI-Seg as they are although some of their files are missing.
    """
    check_free(out)
    with folder_or_nothing(out) as folder, tempfile.TemporaryDirectory(dir=folder) as work:
        data, biopsies = (
            _prepared(kind, src, Path(work) / kind, partial) for kind, src in (("glas", glas), ("ebhi-seg", ebhi))
        )
        kinds = {"glas": glas_tiles(data, tile_px), "ebhi-seg": ebhi_tiles(biopsies), LC25000: lc25000_tiles(lc25000)}
        every = {kind: list(tiles) for kind, tiles in kinds.items()}
        some = {kind: tiles if most is None else spaced(tiles, most) for kind, tiles in every.items()}
        samples = (tile.members() for tiles in some.values() for tile in tiles)
        shards = write_archives(folder / "tiles", "tiles", samples, round(most_mib * MIB))
        index = Index.build(folder / "tiles", Path(work) / "tiles.arrow")
        leakage = {}
        for scheme in data.schemes:
            findings = check(data, scheme, index, "tiles")
            refuse(findings, forced=False)
            leakage[scheme] = findings.checked
        archives = write_archives(folder / "labelled", "glas", _files(data.folder), round(most_mib * MIB))
        names = [*(f"tiles/{name}" for name in shards), *(f"labelled/{name}" for name in archives)]
        facts = {
            "colocate": __version__,
            "tile_px": tile_px,
            "tiles": {kind: len(tiles) for kind, tiles in some.items()},
            "cases": {kind: len({tile.source for tile in tiles} - {LC25000}) for kind, tiles in some.items()},
            "cut": [data.items[number].name for number in data.always_train],
            "labelled": {"name": data.name, "images": len(data), "fingerprint": data.fingerprint},
            "checked": leakage,
        }
        write_list(folder, names, facts)
    print("tiles:", ", ".join(f"{len(tiles):,} of {kind}" for kind, tiles in some.items()))
    print("checked: no test image of any split, and no test case but those that a split has on both sides itself")
    for name in names:
        print(f"{(out / name).stat().st_size / MIB:6.1f} MiB  {out / name}")


def glas_tiles(data: Labelled, side_px: int) -> Iterator[Tile]:
    """Crops of the images that are never tested on: rows and columns of them that cover the whole image."""

    @functools.lru_cache(maxsize=1)
    def whole(number: int) -> UInt8[np.ndarray, "h w 3"]:
        return data.image(number).permute(1, 2, 0).numpy()

    def crop(number: int, top: int, left: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(whole(number)[top : top + side_px, left : left + side_px]).save(file, "WEBP", lossless=True)
        return file.getvalue()

    for number in data.always_train:
        item = data.items[number]
        for row, top in enumerate(starts(item.height, side_px)):
            for column, left in enumerate(starts(item.width, side_px)):
                key = f"glas/{item.name}-row{row}-column{column}"
                yield Tile(key, ".webp", item.source, item.mpp, functools.partial(crop, number, top, left))


def starts(length: int, side: int) -> list[int]:
    """Where pieces of a length begin that cover all of it and overlap as little as they can; one, if it is shorter.

    >>> starts(522, 224), starts(224, 224), starts(9, 224)
    ([0, 149, 298], [0], [0])
    """
    last = max(0, length - side)
    count = 1 + -(-last // side)
    return [round(piece * last / max(1, count - 1)) for piece in range(count)]


def ebhi_tiles(data: Labelled) -> Iterator[Tile]:
    """The images of the training cases, as they are."""
    for number in data.train("cases"):
        item = data.items[number]
        path = data.folder / item.path
        yield Tile(f"ebhi-seg/{_plain(item.name)}", path.suffix, item.source, item.mpp, path.read_bytes)


def lc25000_tiles(folder: Path) -> Iterator[Tile]:
    """All images in a folder and its subfolders, as they are; whose they are is not known."""
    entries(folder)  # says if it is no folder
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGES and path.is_file()]
    if not paths:
        raise UserError(f"{folder} holds no images: give the folder of LC25000's colon tiles")
    for path in paths:
        inside = path.relative_to(folder)
        key = "/".join([LC25000, *inside.parent.parts, _plain(path.stem)])
        yield Tile(key, path.suffix.lower(), LC25000, math.nan, path.read_bytes)


def _prepared(kind: Any, src: Path, out: Path, partial: bool) -> Labelled:
    """What `colocate prepare` makes of a release; it says little here."""
    with redirect_stdout(io.StringIO()):
        prepare(kind, src, out, partial=partial)
    return Labelled.open(out)


def _files(folder: Path) -> Iterator[list[Member]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield [(path.relative_to(folder).as_posix(), path.read_bytes())]


def _plain(name: str) -> str:
    """Without dots, which would end a sample's key."""
    return name.replace(".", "_")
