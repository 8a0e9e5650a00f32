"""COCO's JSON: images, categories, and objects as polygons or run-length encoded masks.

An entry of `images` may say more than COCO's own fields: `source` or `case`, `mpp`, and `split`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco
from scipy.ndimage import find_objects

from colocate.base.errors import UserError
from colocate.base.files import read_json
from colocate.base.shapes import Patch
from colocate.datasets.outlines import Canvas, Remarks, outlined_drafts
from colocate.datasets.own import Known, Own, part_named, whole_text
from colocate.datasets.writer import Converted, Facts

CROWDS = "Crowds (iscrowd), left out"
BRUSHED = "Objects that CVAT marks as crowds because they are masks (iscrowd beside attributes), taken as objects"
COMPRESSED = re.compile("([P-o]*[0-O])+")  # of a string that is cut off pycocotools reads beyond the end
LONGEST_ID = 100  # digits
Entry = dict[str, Any]


def drafts(
    src: Path,
    *,
    images: str = ".",
    mpp: float | None = None,
    test_share: float | None = None,
    skip_broken: bool = False,
) -> Converted:
    """Read the images that the file `src` lists, which lie in `images` (a folder, seen from that of `src`).

    Crowds (but for CVAT's) are left out and said, as are (with `skip_broken`) objects without area or outside of their
    image.

    Raises UserError: the file is no COCO JSON; two categories with objects have one name; an image is missing,
    unreadable or of another size than it says; an object is of an unknown image or category, broken, or has the mask of
    another size.
    """
    document = read_json(src)
    classes = {id: str(_field(src, entry, "name")).strip() for id, entry in _by_id(src, document, "categories").items()}
    entries = _by_id(src, document, "images")
    objects: dict[Any, list[Entry]] = {id: [] for id in entries}
    remarks, used = Remarks(), set[Any]()
    for id, annotation in _by_id(src, document, "annotations").items():
        for key, listed in (("image_id", objects), ("category_id", classes)):
            annotation[key] = _field(src, annotation, key)
            if annotation[key] not in listed:
                said = f"{src}, annotation {id} has the {key} {annotation[key]}, which is not in the file"
                raise UserError(f"{said}: export it again")
        used.add(annotation["category_id"])
        crowd = annotation.get("iscrowd") not in (None, "", 0, "0")
        brushed = crowd and "attributes" in annotation  # COCO has no such key; CVAT writes every mask as a crowd
        if crowd:
            remarks.add(BRUSHED if brushed else CROWDS, f"{src.name}, annotation {id}")
        if brushed or not crowd:
            objects[annotation["image_id"]].append(annotation)
    if twice := [name for name, count in Counter(classes[id] for id in used).items() if count > 1]:
        remedy = "rename one, or give the objects of both one category_id"
        raise UserError(f"{src} has two categories of the name {twice[0]}: {remedy}")
    found: dict[str, Own] = {}
    of_image: dict[Path, tuple[Entry, list[Entry]]] = {}
    for id, entry in entries.items():
        file_name = Path(str(_field(src, entry, "file_name")).replace("\\", "/"))  # of a program on Windows
        path = src.parent / images / file_name
        if file_name.is_absolute() or ".." in file_name.parts:
            remedy = "name it from its folder on, and give that with --images"
            raise UserError(f"{src}, image {id} has the file_name {file_name}, which leads out of its folder: {remedy}")
        try:
            there = path.is_file()
        except (OSError, ValueError):  # its name is longer than the system allows, or no name
            there = False
        if not there:
            raise UserError(f"{path}, image {id} of {src}, is missing: get it, or give its folder with --images")
        name = file_name.with_suffix("").as_posix().replace("/", "_")
        if name in found:
            raise UserError(f"{src} has two images of the name {name}: rename one, there and on disk")
        found[name] = Own(path, src, _known(src, entry, mpp))
        of_image[path] = entry, objects[id]
    return outlined_drafts(
        Facts(src.stem, "instances", (), _licence(src, document)),
        found,
        partial(_draw, of_image, classes),
        remarks,
        test_share=test_share,
        where=src,
        skip=skip_broken,
        order=[name for id, name in classes.items() if id in used],
    )


def _by_id(src: Path, document: Any, key: str) -> dict[Any, Entry]:
    """The entries of one of COCO's lists. Raises UserError if there is no such list, or two have one id."""
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{src} has no list {key} as COCO's JSON has: give the file of an export")
    found: dict[Any, Entry] = {}
    for entry in entries:
        id = _field(src, entry, "id")
        if id in found:
            raise UserError(f"{src} has {key} {id} twice: export it again, with each id once")
        found[id] = entry
    return found


def _field(src: Path, entry: Entry, key: str) -> Any:
    """What an entry must say; an id that is a number in words as that number."""
    value = entry.get(key)
    if not isinstance(value, int | float | str):
        raise UserError(f"{src} has an entry without {key}, which COCO's JSON has ({str(entry)[:60]}): export it again")
    if not isinstance(value, str):
        return value
    if key.endswith("id") and value.isdecimal() and len(value) < LONGEST_ID:
        return int(value)
    return whole_text(value, f"{src}, {key} of the entry {entry.get('id')}")


def _known(src: Path, entry: Entry, mpp: float | None) -> Known:
    said = entry.get("mpp", math.nan if mpp is None else mpp)
    try:
        mpp = float(said)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{src}, image {entry['id']}: mpp {said!r} is no number: mend or remove it") from None
    where = f"{src}, image {entry['id']}"
    part = part_named(whole_text(_said(entry, "split"), where), where)
    source = whole_text(_said(entry, "source", "case"), f"{src}, source of the image {entry['id']}")
    return Known(source, mpp, part)


def _said(entry: Entry, *keys: str) -> str:
    """The first of these that an entry says, in words; empty if none. A patient may be number 0."""
    words = (str(value).strip() for key in keys if (value := entry.get(key)) is not None)
    return next(filter(None, words), "")


def _draw(of_image: dict[Path, tuple[Entry, list[Entry]]], classes: dict[Any, str], own: Own, canvas: Canvas) -> None:
    """Draw the objects of an image; `of_image`: of each its entry and its annotations."""
    entry, annotations = of_image[own.image]
    src, size = own.labels, (entry.get("width"), entry.get("height"))
    real, said = f"{canvas.width} x {canvas.height} px", f"{size[0]} x {size[1]} px"
    if said != real and size not in ((canvas.width, canvas.height), (None, None)):
        raise UserError(f"{own.image} is {real}, but {src} says {said}: get the image that was annotated")
    for annotation in annotations:
        name = f"annotation {annotation['id']}"
        shape, class_ = annotation.get("segmentation"), classes[annotation["category_id"]]
        if isinstance(shape, dict):
            canvas.patch(name, _patch(shape, canvas.height, canvas.width, f"{src}, {name}"), class_)
        elif shape is None or isinstance(shape, list):
            canvas.outline(name, [[_points(corners, f"{src}, {name}")] for corners in shape or []], class_)
        else:
            raise _no_outline(f"{src}, {name}")


def _points(corners: Any, where: str) -> list[tuple[Any, Any]]:
    """The points of x, y, x, y, ..."""
    if not isinstance(corners, list) or len(corners) % 2:
        raise _no_outline(where)
    return list(zip(corners[::2], corners[1::2], strict=True))


def _no_outline(where: str) -> UserError:
    return UserError(f"{where} is no outline of x, y, x, y, ...: export it again, or mend it")


def _patch(encoded: Entry, height: int, width: int, where: str) -> Patch:
    """Decode a run-length encoded mask: column by column, runs of 0 and 1 in turn, as a list or compressed."""
    size, counts = encoded.get("size"), encoded.get("counts")
    if size != [height, width]:
        raise UserError(f"{where} is a mask of size {size}, its image of {[height, width]}: export it again")
    mask = None
    if isinstance(counts, str) and COMPRESSED.fullmatch(counts):
        mask = _decoded(encoded)
    elif isinstance(counts, list) and all(isinstance(run, int) and run >= 0 for run in counts):
        if sum(counts) == height * width:
            mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(width, height).T
    else:
        raise UserError(f"{where} has no runs of pixels (counts): export it again, or remove the object")
    if mask is None:
        raise UserError(f"{where} has runs that do not cover its image once: export it again, or remove the object")
    for rows, columns in find_objects(mask):
        return Patch(rows.start, columns.start, mask[rows, columns].astype(bool))
    return Patch(0, 0, np.zeros((0, 0), bool))


def _decoded(encoded: Entry) -> UInt8[np.ndarray, "h w"] | None:
    """Decode compressed runs; None unless they cover the image once."""
    try:
        mask = coco.decode(encoded)  # pyright: ignore[reportArgumentType]
    except ValueError:  # they go beyond the image
        return None
    again: Any = coco.encode(np.asfortranarray(mask))
    # differs where runs end early: pycocotools leaves the rest of the pixels to chance
    return mask if again["counts"].decode() == encoded["counts"] else None


def _licence(src: Path, document: Entry) -> str:
    licences = document.get("licenses")
    if not isinstance(licences, list):
        return "Not stated."
    names = [str(entry["name"]) for entry in licences if isinstance(entry, dict) and entry.get("name")]
    return whole_text(f"{', '.join(dict.fromkeys(names))}.", f"{src}, licenses") if names else "Not stated."
