"""Read a folder of images and a folder of masks of the same names.

SRC/items.csv may say more of the images: columns path (its name, with or without ending), source (case), mpp, split.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int32
from torch import Tensor

from colocate.base.errors import UserError
from colocate.datasets.files import by_stem, folder_in, pairs, read_mask
from colocate.datasets.own import Own, own_drafts, read_items
from colocate.datasets.writer import Converted, Facts

WHITE = 255


def drafts(
    src: Path,
    *,
    semantics: bool = False,
    classes: tuple[str, ...] = (),
    ignored: int | None = None,
    mpp: float | None = None,
    test_share: float | None = None,
    images: str = "images",
    masks: str = "masks",
) -> Converted:
    """Read the images of `src`/`images`, each with the mask of the same name in `src`/`masks`.

    Masks hold the number of the object at each pixel or, for semantics, that of the class (0 is the first of `classes`;
    of two classes the second may be 255).

    Raises:
        UserError: a folder, mask or image is missing, items.csv does not fit the images, a mask is in colours, or black
            and white although its objects are wanted, or the classes are not named.
    """
    if semantics and len(classes) < 2:
        raise UserError("The classes in the masks have no names: give --classes and a name for each, class 0 first")
    if not semantics and len(classes) > 1:
        raise UserError("Masks that number objects do not hold their classes: give one of --classes, or --semantics")
    if ignored is not None and not semantics:
        raise UserError("--ignored is a class, and this data set has objects: leave it out, or add --semantics")
    if ignored is not None and not 0 <= ignored <= WHITE:
        raise UserError(f"--ignored {ignored} does not fit in 8 bits: save the masks with classes of 0 to 255")
    image_files, folder, table = by_stem(folder_in(src, images)), folder_in(src, masks), src / "items.csv"
    known = read_items(table, image_files, mpp)
    facts = Facts(
        name=src.absolute().name,
        kind="semantics" if semantics else "instances",
        classes=classes or ("object",),
        licence="Not stated.",
        ignored=ignored,
    )
    found = {
        name: Own(image, known[name], partial(_mask, mask, facts))
        for name, image, mask in pairs(image_files, by_stem(folder), folder)
    }
    return own_drafts(facts, found, test_share, table)


def _mask(path: Path, facts: Facts) -> tuple[Int32[Tensor, "h w"], None]:
    mask = read_mask(path)
    white = set(mask.unique().tolist()) <= {0, WHITE} and bool((mask == WHITE).any())
    if white and facts.kind == "instances":
        remedy = "number the objects from 1, or prepare the folder with --semantics"
        raise UserError(f"{path} is black and white, which cannot tell objects that touch apart: {remedy}")
    if white and len(facts.classes) == 2 and facts.ignored != WHITE:
        mask = (mask == WHITE).to(torch.int32)
    return mask, None
