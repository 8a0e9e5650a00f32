"""BCSS: 151 regions of H&E breast cancer slides of TCGA, thousands of pixels wide, with the tissue of each pixel.

Amgad et al., "Structured crowdsourcing enables convolutional segmentation of histology images", Bioinformatics 2019.
Pixels of class 0 lie outside of the annotated region and do not count.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from colocate.base.errors import UserError
from colocate.datasets.files import by_stem, entries, folder_in, pairs, patient, site
from colocate.datasets.writer import Draft, Facts

MPP = 0.25
NAMED_MPP = re.compile(r"_MPP-([0-9]+\.[0-9]+)")
TEST_SITES = frozenset({"OL", "LL", "E2", "EW", "GM", "S3"})
CLASSES = (
    "outside_roi",
    "tumor",
    "stroma",
    "lymphocytic_infiltrate",
    "necrosis_or_debris",
    "glandular_secretions",
    "blood",
    "exclude",
    "metaplasia_NOS",
    "fat",
    "plasma_cells",
    "other_immune_infiltrate",
    "mucoid_material",
    "normal_acinus_or_duct",
    "lymphatics",
    "undetermined",
    "nerve",
    "skin_adnexa",
    "blood_vessel",
    "angioinvasion",
    "dcis",
    "other",
)
FACTS = Facts(
    name="bcss",
    kind="semantics",
    classes=CLASSES,
    licence="CC0 1.0 (challenge page). Cite Amgad et al. 2019.",
    ignored=0,
    expected={"sources": 151},
)


class _Region(NamedTuple):
    name: str
    image: Path
    mask: Path
    boxes: list[tuple[int, int, int, int]]
    """Of the pieces to keep: left, top, right, bottom."""


def drafts(src: Path, *, piece: int = 1024, mpp: float | None = None) -> tuple[Facts, Iterator[Draft]]:
    """The regions of BCSS as released: images/NAME.png (or rgbs_colorNormalized/) and masks/NAME.png.

    A region is cut into pieces of about equal size and at most `piece` px, named NAME_LEFT_TOP; those wholly outside of
    the annotated region are left out and said. All masks are read once before the first piece is written, so that what
    is wrong with one is said at once. The split "institutes" is the data set's own: whole institutes are test. `mpp`
    counts where names do not say theirs.

    Raises:
        UserError: a folder, image or mask is missing, sizes differ, a mask holds another class, or meta/ other codes.
    """
    mpp = MPP if mpp is None else mpp
    if piece < 32:
        raise UserError(f"--piece {piece} is too small to show tissue: give 32 or more")
    folder, masks = folder_in(src, "images", "rgbs_colorNormalized", "rgbs"), folder_in(src, "masks")
    _check_codes(src)
    regions, outside = [], 0
    for name, image, mask in pairs(by_stem(folder, (".png",)), by_stem(masks, (".png",)), masks):
        patient(name)
        codes = _codes(mask)
        _check_size(image, mask, codes)
        boxes = _boxes(codes.shape[0], codes.shape[1], piece)
        kept = [box for box in boxes if codes[box[1] : box[3], box[0] : box[2]].any()]
        regions.append(_Region(name, image, mask, kept))
        outside += len(boxes) - len(kept)
    notes = [f"Regions were cut into pieces of at most {piece} x {piece} px."]
    if outside:
        notes.append(f"{outside:,} pieces lie wholly outside of their annotated regions and were left out.")
    if "normalized" in folder.name.lower():
        notes.append("The images are the colour-normalised ones.")
    if unnamed := sum(not NAMED_MPP.search(region.name) for region in regions):
        notes.append(f"{unnamed:,} names do not say their resolution, taken as {mpp:g} micrometres per pixel.")
    return replace(FACTS, notes=tuple(notes)), (draft for region in regions for draft in _pieces(region, mpp))


def _pieces(region: _Region, mpp: float) -> Iterator[Draft]:
    codes = _codes(region.mask)
    named = NAMED_MPP.search(region.name)
    with _opened(region.image) as image:
        image.load()
        for left, top, right, bottom in region.boxes:
            colours = np.array(image.crop((left, top, right, bottom)).convert("RGB"))
            yield Draft(
                f"{region.name.rstrip('_')}_{left}_{top}",
                torch.from_numpy(colours).permute(2, 0, 1).contiguous(),
                torch.from_numpy(codes[top:bottom, left:right].astype(np.int32)),
                patient(region.name),
                float(named[1]) if named else mpp,
                {"institutes": "test" if site(region.name) in TEST_SITES else "train"},
            )


def _boxes(height: int, width: int, piece: int) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom of the pieces of an image, row by row.

    >>> _boxes(3, 5, 4)
    [(0, 0, 2, 3), (2, 0, 5, 3)]
    """
    columns, rows = (
        [(size * number // count, size * (number + 1) // count) for number in range(count)]
        for size, count in ((width, -(-width // piece)), (height, -(-height // piece)))
    )
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def _codes(mask: Path) -> UInt8[np.ndarray, "h w"]:
    """The class of each pixel. Raises UserError if the file is damaged or holds anything else."""
    with _opened(mask) as image:
        codes = np.asarray(image)
    if codes.ndim != 2 or codes.dtype.kind not in "bui":
        raise UserError(f"{mask} is no grey image of class codes: get it again")
    if codes.min() < 0 or codes.max() >= len(CLASSES):
        raise UserError(
            f"{mask} holds the class code {codes.max()}, but BCSS has 0 to {len(CLASSES) - 1}: get it again"
        )
    return codes.astype(np.uint8)


def _check_size(image: Path, mask: Path, codes: UInt8[np.ndarray, "h w"]) -> None:
    with _opened(image) as opened:
        (wide, high), (height, width) = opened.size, codes.shape
    if (high, wide) != (height, width):
        sizes = f"is {wide} x {high} px and its mask {mask} {width} x {height}"
        raise UserError(f"{image} {sizes}: one of them is not as released, get it again")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A PNG. The largest region has 126 million pixels, more than `data.decode` takes for a tile.

    Raises:
        UserError: it is missing, no PNG, cut short or damaged, if that shows while it is open.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path} is missing, cut short or damaged ({reason}): get it again") from error


def _check_codes(src: Path) -> None:
    """See that the codes are those of the release, where its table of them is there."""
    for folder in (entry for entry in entries(src) if entry.is_dir() and entry.name == "meta"):
        table = folder / "gtruth_codes.tsv"
        if not table.exists():
            continue
        rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8-sig")), delimiter="\t"))
        found = [(row.get("GT_code"), row.get("label")) for row in rows]
        if found != [(str(code), label) for code, label in enumerate(CLASSES)]:
            raise UserError(
                f"{table} gives other codes than BCSS's 0 to {len(CLASSES) - 1}: get the release's own masks"
            )
