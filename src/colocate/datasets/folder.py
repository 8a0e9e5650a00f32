"""Read a folder of images and a folder of masks of the same names.

SRC/items.csv may say more of the images: columns path (its name, with or without ending), source (case), mpp, split.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int32
from skimage.measure import label
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.files import absolute, files_below
from colocate.datasets.files import (
    IMAGES,
    WHITE,
    by_stem,
    check_drawn,
    check_palettes,
    entries,
    find_folder,
    is_white,
    pairs,
    read_mask,
    read_objects,
)
from colocate.datasets.own import Own, own_drafts, read_items
from colocate.datasets.prepare import Parts
from colocate.datasets.writer import Converted, Facts

PARTS = "The connected parts of the masks count as objects: those that touch are one."


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
    parts: Parts | None = None,
) -> Converted:
    """Read the images of `src`/`images`, each with the mask of the same name in `src`/`masks`.

    Masks hold the number of the object at each pixel or, for semantics, that of the class (0 is the first of `classes`;
    of two classes the second may be 255). `parts` says what the connected parts of one number are: "objects" of their
    own, or "together" one; unsaid they are one, but not where no mask holds more than one number.

    What lies in folders of these two is left out, and said.

    Raises UserError: a folder, mask or image is missing, items.csv does not fit the images, a mask does not hold
    numbers, or does not tell objects apart, masks differ in the colour of a number, or the classes are not named.
    """
    if semantics and len(classes) < 2:
        raise UserError("The classes in the masks have no names: give --classes and a name for each, class 0 first")
    if not semantics and len(classes) > 1:
        raise UserError("Masks that number objects do not hold their classes: give one of --classes, or --semantics")
    if ignored is not None and not semantics:
        raise UserError("--ignored is a class, and this data set has objects: leave it out, or add --semantics")
    if ignored is not None and not 0 <= ignored <= WHITE:
        raise UserError(f"--ignored {ignored} does not fit in 8 bits: save the masks with classes of 0 to 255")
    if parts is not None and semantics:
        raise UserError("--parts is about objects, and with --semantics there are none: leave one of them out")
    image_folder, folder, table = _folder(src, images), _folder(src, masks), src / "items.csv"
    image_files, mask_files = by_stem(image_folder), by_stem(folder)
    inside = ", ".join(one.name for one in entries(image_folder) if one.is_dir() and any(files_below(one, IMAGES)))
    if inside and not image_files:
        remedy = "give --images and --masks one of these, or put the images of all side by side"
        raise UserError(f"{image_folder} holds no image but in its folders ({inside}): {remedy}")
    left_out = (f"Images in folders below {images}, left out: {inside}.",) if inside else ()
    known = read_items(table, image_files, mpp)
    facts = Facts(
        name=absolute(src).name,
        kind="semantics" if semantics else "instances",
        classes=classes or ("object",),
        licence="Not stated.",
        ignored=ignored,
        notes=(*((PARTS,) if parts == "objects" else ()), *left_out),
        numbered=parts is None and not semantics,
    )
    found = {name: Own(image, mask, known[name]) for name, image, mask in pairs(image_files, mask_files, folder)}
    check_palettes(mask_files.values(), WHITE if semantics else 0)
    return own_drafts(facts, found, partial(_mask, facts, parts), test_share, table)


def _folder(src: Path, name: str) -> Path:
    """A folder of `src`, or of one below it: slides/images. Raises UserError if it is not there."""
    folder: Path | None = src
    for part in Path(name).parts:
        folder = folder and find_folder(folder, part, itself=False)
    if folder is None:
        raise UserError(f"{src} has no folder {name}: say with --images and --masks what the two folders are called")
    return folder


def _mask(facts: Facts, parts: Parts | None, own: Own) -> tuple[Int32[Tensor, "h w"], None]:
    path = own.labels
    if parts == "objects":
        mask = read_mask(path)
        check_drawn(mask, path)
        numbered: Any = label(mask.numpy())
        return torch.from_numpy(numbered).to(torch.int32), None
    if facts.kind == "instances":
        return read_objects(path), None
    mask = read_mask(path)
    if len(facts.classes) == 2 and facts.ignored != WHITE and is_white(mask):
        mask = (mask == WHITE).to(torch.int32)
    return mask, None
