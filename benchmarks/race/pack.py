"""Data as released in, a folder for the race out: tiles to pretrain on, and labelled sets to be judged by.

    RACE/tiles/tiles-0.tar ...   crops of GlaS's training images, EBHI-Seg's training cases, LC25000's colon
    RACE/glas, RACE/ebhi         prepared as `colocate prepare` does, with splits of the training patients beside
    RACE/glas-half               GlaS at half its size, 1.24 micrometres per pixel, for fine-tuning

The source of each tile is its case, as prepared data sets write it, so that leakage can be checked.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from colocate.data.index import Index
from colocate.data.loader import spaced
from colocate.datasets.files import IMAGES, entries
from colocate.datasets.labelled import Labelled
from colocate.datasets.prepare import Kind, prepare
from colocate.datasets.writer import check_free, folder_or_nothing
from colocate.evaluation.leakage import check, refuse

LC25000 = "lc25000"  # as source of its tiles, whose cases are not known
SHARD_BYTES = 60 << 20
FOLDS = 4
"""Each training patient is judged in one of the splits valid0, valid1, ...; settings are chosen there."""


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


def pack(
    *,
    glas: Path,
    ebhi: Path,
    lc25000: Path,
    out: Path,
    tile_px: int = 224,
    most: int | None = None,
    partial: bool = False,
) -> None:
    """Make the race's folder.

    Args:
        glas: GlaS as released (BMP files and Grade.csv; PNG or WebP copies of these are taken too).
        ebhi: EBHI-Seg as released.
        lc25000: A folder of LC25000's colon tiles, in subfolders or not.
        out: The new folder.
        tile_px: Side of the tiles that GlaS images are cut into.
        most: At most so many tiles of each of the three, evenly spread (for trying things out).
        partial: Take GlaS and EBHI-Seg as they are although some of their files are missing.
    """
    check_free(out)
    with folder_or_nothing(out) as folder, tempfile.TemporaryDirectory(dir=folder) as work:
        sets = {}
        sources: dict[Kind, tuple[str, Path]] = {"glas": ("glas", glas), "ebhi-seg": ("ebhi", ebhi)}
        for kind, (name, src) in sources.items():
            with redirect_stdout(io.StringIO()):  # it is the race that speaks
                prepare(kind, src, folder / name, partial=partial)
            sets[name] = Labelled.open(folder / name)
        kinds = (glas_tiles(sets["glas"], tile_px), ebhi_tiles(sets["ebhi"]), lc25000_tiles(lc25000))
        every = [list(tiles) for tiles in kinds]
        some = [tiles if most is None else spaced(tiles, most) for tiles in every]
        write_shards(folder / "tiles", (tile for tiles in some for tile in tiles))
        index = Index.build(folder / "tiles", Path(work) / "tiles.arrow")
        for data in sets.values():
            for scheme in data.schemes:
                refuse(check(data, scheme, index, "tiles"), forced=False)
        for name, scheme in (("glas", "patients"), ("ebhi", "cases")):
            add_folds(folder / name, scheme)
        halve(folder / "glas", folder / "glas-half")
    print(f"{out}: {', '.join(f'{len(tiles):,} tiles of {name}' for name, tiles in zip(KINDS, some, strict=True))}")
    print("checked: no test image of any split, and no test case but those that a split has on both sides itself")


KINDS = ("glas", "ebhi-seg", LC25000)


def write_shards(folder: Path, tiles: Iterable[Tile]) -> None:
    """Write folder/tiles-0.tar, ... in WebDataset's layout; the same tiles give the same bytes."""
    folder.mkdir()
    tar: tarfile.TarFile | None = None
    for tile in tiles:
        if tar is None or tar.offset > SHARD_BYTES:
            if tar is not None:
                tar.close()
            tar = tarfile.open(  # noqa: SIM115
                folder / f"tiles-{len(list(folder.iterdir()))}.tar", "w", format=tarfile.USTAR_FORMAT
            )
        note: dict[str, Any] = {"source": tile.source} | ({} if math.isnan(tile.mpp) else {"mpp": tile.mpp})
        for name, content in ((tile.key + tile.ending, tile.read()), (tile.key + ".json", json.dumps(note).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    if tar is not None:
        tar.close()


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
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGES and path.is_file():
            inside = path.relative_to(folder)
            key = "/".join([LC25000, *inside.parent.parts, _plain(path.stem)])
            yield Tile(key, path.suffix.lower(), LC25000, math.nan, path.read_bytes)


def _plain(name: str) -> str:
    """Without dots, which would end a sample's key."""
    return name.replace(".", "_")


def add_folds(folder: Path, scheme: str) -> None:
    """Add splits valid0, ... to a prepared set: each judges a quarter of the training cases, and none tests.

    Cases go, the largest first, to the fold that has fewest images so far.
    """
    data = Labelled.open(folder)
    cases: dict[str, int] = {}
    for number in data.train(scheme):
        cases[data.items[number].source] = cases.get(data.items[number].source, 0) + 1
    sizes, fold = [0] * FOLDS, {}
    for case in sorted(cases, key=lambda case: (-cases[case], case)):
        fold[case] = sizes.index(min(sizes))
        sizes[fold[case]] += cases[case]
    with (folder / "items.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for turn in range(FOLDS):
            part = "test" if fold.get(row["source"]) == turn else "train"
            row[f"split:valid{turn}"] = part if row[f"split:{scheme}"] == "train" else ""
    _write_items(folder, rows)


def halve(folder: Path, out: Path) -> None:
    """A copy of a prepared set with images and masks at half their size."""
    data = Labelled.open(folder)
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("images", "masks"))
    with (out / "items.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        mask = data.mask(number)[1::2, 1::2]
        height, width = mask.shape
        image = _half(data.image(number))[:, :height, :width]
        row |= {"height": str(height), "width": str(width), "mpp": str(2 * data.items[number].mpp)}
        for name, pixels in (("path", image.permute(1, 2, 0).numpy()), ("mask", mask.numpy().astype(np.uint16))):
            path = out / row[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, "PNG")
            row[f"{name}_sha256"] = sha256(path.read_bytes()).hexdigest()
    _write_items(out, rows)


def _half(image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 g f"]:
    return F.avg_pool2d(image[None].float(), 2)[0].round().to(torch.uint8)


def _write_items(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "items.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
