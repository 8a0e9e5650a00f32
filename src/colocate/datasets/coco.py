"""COCO's JSON: images, categories, and objects as polygons or run-length encoded masks.

An entry of `images` may say more than COCO's own fields: `source` or `case`, `mpp`, and `split`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Int32
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.shapes import Canvas, Patch, Remarks
from colocate.data.decode import header
from colocate.datasets.files import Known, caution, read_json, split
from colocate.datasets.writer import Draft, Facts

CROWDS = "Crowds (iscrowd), left out"


@final
@dataclass
class _Image:
    """One image, and the annotations of its objects."""

    name: str
    path: Path
    size: tuple[Any, Any]
    """Height and width in pixels, if the file says them."""
    known: Known
    annotations: list[dict[str, Any]] = field(default_factory=list)


def drafts(
    src: Path,
    *,
    images: str = ".",
    mpp: float | None = None,
    test_share: float | None = None,
    skip_broken: bool = False,
) -> tuple[Facts, Iterator[Draft]]:
    """The images that the file `src` lists, which lie in `images` (a folder, seen from that of `src`).

    All objects are drawn once before the first image is written, so that a broken one is named at once. Categories
    without an object are no classes. Crowds are left out and said, as are (with `skip_broken`) objects without area or
    outside of their image. See `known.split` for the split.

    Raises:
        UserError: the file is no COCO JSON; an image is missing, unreadable or of another size than it says; an object
            is of an unknown image or category, broken, or has the mask of another image size.
    """
    document = read_json(src)
    names = {id: str(_field(src, entry, "name")) for id, entry in _by_id(src, document, "categories").items()}
    found = {id: _image(src, entry, images, mpp) for id, entry in _by_id(src, document, "images").items()}
    remarks = Remarks()
    for id, annotation in _by_id(src, document, "annotations").items():
        where = f"{src}, annotation {id}"
        for key, listed in (("image_id", found), ("category_id", names)):
            if _field(src, annotation, key) not in listed:
                raise UserError(f"{where} has the {key} {annotation[key]}, which is not in the file: export it again")
        if annotation.get("iscrowd"):
            remarks.add(CROWDS, f"{src.name}, annotation {id}")
            continue
        found[annotation["image_id"]].annotations.append(annotation)
    known: dict[str, Known] = {}
    every = {id: number for number, id in enumerate(names)}
    used: set[int] = set()
    for image in found.values():
        if image.name in known:
            raise UserError(f"{src} has two images of the name {image.name}: rename one, there and on disk")
        known[image.name] = image.known
        used.update(_draw(src, image, every, remarks, skip_broken)[1].values())
    labels = {id: number for number, id in enumerate((id for id in names if every[id] in used), start=1)}
    classes = tuple(names[id] for id in labels)
    if not classes:
        raise UserError(f"{src} has no object: give the file of an export with annotations")
    if len(set(classes)) < len(classes):
        raise UserError(f"{src} has several categories of one name: rename them")
    scheme, parts = split(known, test_share, src)
    notes = (*caution(known, src.stem), *remarks.notes())
    return Facts(src.stem, "instances", classes, _licence(document), notes=notes), (
        Draft(image.name, image.path, mask, image.known.source, image.known.mpp, {scheme: part}, object_classes)
        for image, part in zip(found.values(), parts, strict=True)
        for mask, object_classes in [_draw(src, image, labels, Remarks(), skip_broken)]
    )


def _by_id(src: Path, document: Any, key: str) -> dict[Any, dict[str, Any]]:
    """The entries of one of COCO's lists. Raises UserError if there is no such list, or two have one id."""
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{src} has no list {key} as COCO's JSON has: give the file of an export")
    found: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        id = _field(src, entry, "id")
        if id in found:
            raise UserError(f"{src} has {key} {id} twice: export it again, with each id once")
        found[id] = entry
    return found


def _field(src: Path, entry: dict[str, Any], key: str) -> Any:
    value = entry.get(key)
    if not isinstance(value, int | float | str):
        raise UserError(f"{src} has an entry without {key}, which COCO's JSON has ({str(entry)[:60]}): export it again")
    return value


def _image(src: Path, entry: dict[str, Any], folder: str, mpp: float | None) -> _Image:
    file = str(_field(src, entry, "file_name"))
    path = src.parent / folder / file
    if not path.is_file():
        raise UserError(f"{path}, image {entry['id']} of {src}, is missing: get it, or give its folder with --images")
    said = entry.get("mpp", math.nan if mpp is None else mpp)
    try:
        known = Known(
            str(entry.get("source") or entry.get("case") or ""),
            float(said),
            str(entry.get("split") or ""),
        )
    except (TypeError, ValueError):
        raise UserError(f"{src}, image {entry['id']}: mpp {said!r} is no number: mend or remove it") from None
    name = Path(file).with_suffix("").as_posix().replace("/", "_")
    return _Image(name, path, (entry.get("height"), entry.get("width")), known)


def _draw(
    src: Path, image: _Image, labels: Mapping[Any, int], remarks: Remarks, skip: bool
) -> tuple[Int32[Tensor, "h w"], dict[int, int]]:
    """The object at each pixel, and the class of each object (0 where it has none in `labels`)."""
    width, height = header(image.path.read_bytes(), str(image.path)).size
    if image.size not in ((height, width), (None, None)):
        said = f"{image.size[1]} x {image.size[0]} px"
        raise UserError(
            f"{image.path} is {width} x {height} px, but {src} says {said}: get the image that was annotated"
        )
    canvas = Canvas(height, width, src, remarks, skip=skip)
    for annotation in image.annotations:
        name = f"annotation {annotation['id']}"
        outline, label = annotation.get("segmentation") or [], labels.get(annotation["category_id"], 0)
        if isinstance(outline, dict):
            canvas.patch(name, _patch(outline, height, width, f"{src}, {name}"), label)
        else:
            canvas.outline(name, [[_points(corners, f"{src}, {name}")] for corners in outline], label)
    return canvas.finish()


def _points(corners: Any, where: str) -> list[tuple[Any, Any]]:
    """The points of x, y, x, y, ..."""
    if not isinstance(corners, list) or len(corners) % 2:
        raise UserError(f"{where} is no outline of x, y, x, y, ...: export it again, or mend it")
    return list(zip(corners[::2], corners[1::2], strict=True))


def _patch(encoded: dict[str, Any], height: int, width: int, where: str) -> Patch:
    """The pixels of a run-length encoded mask: column by column, runs of 0 and 1 in turn.

    Decoded here, for pycocotools fills up runs that are too short with whatever the memory held.
    """
    if encoded.get("size") != [height, width]:
        size = encoded.get("size")
        raise UserError(f"{where} is a mask of size {size}, its image of {[height, width]}: export it again")
    counts = encoded.get("counts")
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise UserError(f"{where} has no runs of pixels (counts): export it again, or remove the object")
    if sum(runs) != height * width:
        raise UserError(f"{where} has runs that do not cover its image once: export it again, or remove the object")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask = flat.reshape(width, height).T
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return Patch(0, 0, np.zeros((0, 0), bool))
    return Patch(int(rows[0]), int(columns[0]), mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy())


def _unpacked(counts: str) -> list[int] | None:
    """The runs of COCO's compressed form; None if it is none.

    A run is stored as its difference from the last but one, in groups of 5 bits, the lowest first; bit 5 (of the
    character's code less 48) says that more follow, bit 4 of the last group is the sign.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if shift == 0 else None


def _licence(document: dict[str, Any]) -> str:
    licences = document.get("licenses")
    if not isinstance(licences, list):
        return "Not stated."
    names = [str(entry["name"]) for entry in licences if isinstance(entry, dict) and entry.get("name")]
    return f"{', '.join(dict.fromkeys(names))}." if names else "Not stated."
