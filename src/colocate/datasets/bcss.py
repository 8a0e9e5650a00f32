"""BCSS: 151 regions of H&E breast cancer slides of TCGA, thousands of pixels wide, with the tissue of each pixel.

Amgad et al., "Structured crowdsourcing enables convolutional segmentation of histology images", Bioinformatics 2019.
Pixels of class 0 lie outside of the annotated region and do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from colocate.base.errors import UserError
from colocate.datasets.files import boxes, by_stem, check_upright, folder_in, opened, pairs, patient, read_mask
from colocate.datasets.writer import Converted, Draft, Facts
from colocate.slides.pictures import ORIENTATION

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


def drafts(src: Path, *, piece: int = 1024, mpp: float | None = None) -> Converted:
    """Read the regions of BCSS as released: images/NAME.png (or rgbs_colorNormalized/) and masks/NAME.png.

    A region is cut into pieces of about equal size and at most `piece` px, named NAME_LEFT_TOP; those wholly outside of
    the annotated region are left out. The split "institutes" is the data set's own: whole institutes are test. `mpp`
    counts where names do not say theirs.

    Raises UserError: a folder, image or mask is missing; of the pieces: sizes differ, or a mask holds another class.
    """
    mpp = MPP if mpp is None else mpp
    if piece < 32:
        raise UserError(f"--piece {piece} is too small to show tissue: give 32 or more")
    folder, masks = folder_in(src, "images", "rgbs_colorNormalized", "rgbs"), folder_in(src, "masks")
    regions = list(pairs(by_stem(folder, (".png",)), by_stem(masks, (".png",)), masks))
    notes = [f"Regions were cut into pieces of at most {piece} x {piece} px; those without annotation were left out."]
    if "normalized" in folder.name.lower():
        notes.append("The images are the colour-normalised ones.")
    if unnamed := sum(not NAMED_MPP.search(name) for name, _, _ in regions):
        notes.append(f"{unnamed:,} names do not say their resolution, taken as {mpp:g} micrometres per pixel.")
    return replace(FACTS, notes=tuple(notes)), (
        draft for name, image, mask in regions for draft in _pieces(name, image, mask, piece, mpp)
    )


def _pieces(name: str, image: Path, mask: Path, piece: int, mpp: float) -> Iterator[Draft]:
    """The pieces of a region, without those wholly outside. `mpp`: where its name does not say it."""
    source, named = patient(name), NAMED_MPP.search(name)
    codes = _codes(mask)
    height, width = codes.shape
    with opened(image) as png:
        check_upright(png.getexif().get(ORIENTATION, 1), image)
        if png.size != (width, height):
            sizes = f"is {png.width} x {png.height} px and its mask {mask} {width} x {height}"
            raise UserError(f"{image} {sizes}: one of them is not as released, get it again")
        png.load()
        for left, top, right, bottom in boxes(height, width, piece):
            found = codes[top:bottom, left:right]
            if not found.any():
                continue
            colours = np.array(png.crop((left, top, right, bottom)).convert("RGB"))
            yield Draft(
                f"{name.rstrip('_')}_{left}_{top}",
                torch.from_numpy(colours).permute(2, 0, 1).contiguous(),
                torch.from_numpy(found.astype(np.int32)),
                source,
                float(named[1]) if named else mpp,
                {"institutes": "test" if source.split("-")[1] in TEST_SITES else "train"},
            )


def _codes(mask: Path) -> UInt8[np.ndarray, "h w"]:
    """The class of each pixel. Raises UserError as `read_mask` does, or if the file holds anything else."""
    codes = read_mask(mask)
    for code in (int(codes.min()), int(codes.max())):
        if not 0 <= code < len(CLASSES):
            said = f"holds the class code {code}, but BCSS has class codes 0 to {len(CLASSES) - 1}"
            raise UserError(f"{mask} {said}: get it again")
    return codes.numpy().astype(np.uint8)
