"""A folder of images and one of masks of the same names: any data set that comes so, or was brought into this shape.

SRC/items.csv may say more of the images: columns path (its name, with or without ending), source (case), mpp, split.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from pathlib import Path

import torch
from jaxtyping import Int32
from torch import Tensor

from colocate.base.errors import UserError
from colocate.datasets.files import Known, by_stem, caution, folder_in, pairs, read_mask, read_table, split
from colocate.datasets.writer import Draft, Facts

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
) -> tuple[Facts, Iterator[Draft]]:
    """The images of `src`/`images`, each with the mask of the same name in `src`/`masks`.

    Masks hold the number of the object at each pixel or, for semantics, that of the class (0 is the first of `classes`;
    of two classes the second may be 255). The split is that of items.csv ("given"), else `test_share` (0.2) of the
    images are test, chosen by the hash of their case ("cases") or, where none is known, of their name ("images").

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
    image_files, folder = by_stem(folder_in(src, images)), folder_in(src, masks)
    found = list(pairs(image_files, by_stem(folder), folder))
    table = src / "items.csv"
    rows = read_table(table, image_files) if table.exists() else {}
    known = {name: rows.get(name, Known()) for name, _, _ in found}
    scheme, parts = split(known, test_share, table)
    name = src.absolute().name
    facts = Facts(
        name=name,
        kind="semantics" if semantics else "instances",
        classes=classes or ("object",),
        licence="Not stated.",
        ignored=ignored,
        notes=caution(known, name),
    )
    return facts, (
        Draft(
            name,
            image,
            _mask(path, facts),
            row.source,
            mpp if mpp is not None and isnan(row.mpp) else row.mpp,
            {scheme: part},
        )
        for (name, image, path), row, part in zip(found, known.values(), parts, strict=True)
    )


def _mask(path: Path, facts: Facts) -> Int32[Tensor, "h w"]:
    mask = read_mask(path)
    white = set(mask.unique().tolist()) <= {0, WHITE} and bool((mask == WHITE).any())
    if white and facts.kind == "instances":
        remedy = "number the objects from 1, or prepare the folder with --semantics"
        raise UserError(f"{path} is black and white, which cannot tell objects that touch apart: {remedy}")
    if white and len(facts.classes) == 2 and facts.ignored != WHITE:
        return (mask == WHITE).to(torch.int32)
    return mask
