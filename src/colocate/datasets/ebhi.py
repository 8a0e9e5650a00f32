"""EBHI-Seg: 2,228 tiles of colon biopsies, 224 x 224 px, 2,226 of them with a mask of their glands.

Shi et al., "EBHI-Seg: a novel enteroscope biopsy histopathological hematoxylin and eosin image dataset for image
segmentation tasks", Frontiers in Medicine 2023.

The release has no split. "cases" makes one: the case is the 7-digit number in a tile's name, and it is test if the
SHA-256 of its digits, as a number, leaves a remainder below 3 when divided by 10.
"""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch

from colocate.base.errors import UserError
from colocate.datasets.files import by_stem, folder_in, pairs, read_mask
from colocate.datasets.writer import Converted, Draft, Facts

FOLDERS = ("Adenocarcinoma", "High-grade IN", "Low-grade IN", "Normal", "Polyp", "Serrated adenoma")
CASE = re.compile(r"(?<![0-9])[0-9]{7}(?![0-9])")
FACTS = Facts(
    name="ebhi-seg",
    kind="semantics",
    classes=("other", "gland"),
    licence="Not stated with the files; cite Shi et al. 2023.",
    notes=("The split of EBHI-Seg by case is colocate's own: published figures use other splits.",),
    expected={"images": 2226},
)


def drafts(src: Path) -> Converted:
    """Read the tiles of EBHI-Seg as released: CLASS/image/NAME.png and CLASS/label/NAME.png.

    A tile is named CLASS_NAME, because some names come in two classes. Tiles without a mask (the release has two) are
    left out and said.

    Raises UserError: a folder is missing, a mask has no tile, or a name holds no case.
    """
    found: list[tuple[str, Path, Path]] = []
    left_out: list[str] = []
    for tissue in FOLDERS:
        folder = folder_in(src, tissue)
        images, masks = by_stem(folder_in(folder, "image")), by_stem(folder_in(folder, "label"))
        left_out += [stem for stem in images if stem not in masks]
        known = {stem: path for stem, path in images.items() if stem in masks}
        name = folder.name.replace(" ", "_")
        found += [(f"{name}_{stem}", image, mask) for stem, image, mask in pairs(known, masks, folder)]
    facts = FACTS
    if left_out:
        said = f"Left out, for they have no mask: {', '.join(left_out[:5])} ({len(left_out)} in all)."
        facts = replace(FACTS, notes=(*FACTS.notes, said))
    cases = [_case(image) for _, image, _ in found]
    return facts, (
        Draft(
            name,
            image,
            (read_mask(mask) != 0).to(torch.int32),
            f"ebhi-seg:{case}",
            splits={"cases": "test" if int(sha256(case.encode()).hexdigest(), 16) % 10 < 3 else "train"},
        )
        for (name, image, mask), case in zip(found, cases, strict=True)
    )


def _case(image: Path) -> str:
    numbers = CASE.findall(image.stem)
    if len(numbers) != 1:
        raise UserError(f"{image} has no 7-digit case number in its name: undo its renaming")
    return numbers[0]
