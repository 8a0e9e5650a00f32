"""Images and masks in, a prepared data set out: in the form that `data/labelled.py` reads, and all of it or nothing."""

from __future__ import annotations

import colorsys
import csv
import errno
import io
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Int32, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from colocate.base.errors import UserError
from colocate.data.decode import header, pixels
from colocate.data.inspect import contact_sheet
from colocate.datasets.labelled import COLUMNS, VERSION, Item, Kind, Labelled
from colocate.slides.slide import check_mpp

SHEET = "contact-sheet.png"
SHOWN = 24
SIDE_PX, SHEET_COLUMNS = 128, 6
TINT = 0.4  # how much of a class's colour lies over the tissue
OBJECT_PX = 8  # an outline shows nothing of smaller objects
OUTLINES = ((0, 255, 0), (0, 255, 255), (255, 255, 0), (255, 140, 0))  # colours that stained tissue does not have
PAPER = (255, 255, 255)
BLACK = (0, 0, 0)
Colour = tuple[int, int, int]


def draw_sheet(data: Labelled, out: Path) -> None:
    """Some images, evenly spread over the parts of the first split, each with name and part; then the classes' colours.

    Instances are outlined, in the colour of their class or, if there is only one, each in another; of semantics the
    classes are tinted (of two only the second) and the ignored one blackened. Where objects would be too small to see,
    the middle of the image is shown. Raises UserError if `out` cannot be written.
    """
    classes = _colours(data)
    thumbs = []
    for number in _spread(data):
        item = data.items[number]
        image, mask = data.image(number).permute(1, 2, 0).numpy(), data.mask(number).numpy()
        part = next(iter(item.splits.values()), "")
        if data.kind == "instances" and (middle := _middle(mask)):
            image, mask, part = image[middle], mask[middle], f"{part} (middle)"
        small = Image.fromarray(image)
        small.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
        mask = np.array(Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST))
        picture = np.array(small)
        if data.kind == "instances":
            edges = _edges(mask)
            _paint(picture, edges, _object_colours(data, number, mask[edges], classes), 1.0)
        else:
            for value in np.unique(mask).tolist():
                _paint(picture, mask == value, classes[value], 1.0 if value == data.ignored else TINT)
        thumbs.append((Image.fromarray(picture), item.name, part))
    if data.kind == "semantics" or len(data.classes) > 1:
        for value, name in enumerate(data.classes, start=min(classes)):
            patch = Image.new("RGB", (SIDE_PX // 2, SIDE_PX // 4), classes[value] or PAPER)
            thumbs.append((patch, name, f"class {value}"))
    contact_sheet(thumbs, out, SIDE_PX, SHEET_COLUMNS)


def _colours(data: Labelled) -> dict[int, Colour | None]:
    """The colour of each class, None for the one that is left as it is."""
    numbers = range(1, len(data.classes) + 1) if data.kind == "instances" else range(len(data.classes))
    hues = {number: colorsys.hsv_to_rgb(place / len(numbers), 1, 1) for place, number in enumerate(numbers)}
    colours: dict[int, Colour | None] = {
        number: (round(255 * red), round(255 * green), round(255 * blue)) for number, (red, green, blue) in hues.items()
    }
    if len(colours) <= len(OUTLINES):
        colours = dict(zip(colours, OUTLINES, strict=False))
    if data.kind == "semantics" and len(colours) == 2:
        colours = {0: None, 1: OUTLINES[0]}
    if data.ignored is not None:
        colours[data.ignored] = BLACK
    return colours


def _object_colours(
    data: Labelled, number: int, objects: Int32[np.ndarray, " n"], classes: dict[int, Colour | None]
) -> UInt8[np.ndarray, "n 3"]:
    """The colour of each of some objects of an image."""
    if len(data.classes) == 1:
        return np.array(OUTLINES, np.uint8)[objects % len(OUTLINES)]
    of_objects = data.object_classes(number, torch.from_numpy(objects.astype(np.int64))).tolist()
    return np.array([classes[class_] or PAPER for class_ in of_objects], np.uint8).reshape(-1, 3)


def _paint(
    picture: UInt8[np.ndarray, "h w 3"],
    where: Bool[np.ndarray, "h w"],
    colour: Colour | UInt8[np.ndarray, "n 3"] | None,
    share: float,
) -> None:
    if colour is not None:
        picture[where] = ((1 - share) * picture[where] + share * np.array(colour)).round().astype(np.uint8)


def _spread(data: Labelled) -> list[int]:
    """Numbers of images, part after part, evenly spread."""
    parts = data.parts(data.schemes[0]).values() if data.schemes else [range(len(data))]
    ordered = [number for part in parts for number in part] or list(range(len(data)))
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, min(SHOWN, len(ordered))).round().astype(int)]


def _middle(mask: Int32[np.ndarray, "h w"]) -> tuple[slice, slice] | None:
    """The middle of an image whose objects would be too small on the sheet: so little that half of them are not."""
    areas = np.bincount(mask.ravel())[1:]
    if not areas.any():
        return None
    window = max(SIDE_PX, round(SIDE_PX * float(np.sqrt(np.median(areas[areas > 0]))) / OBJECT_PX))
    high, wide = mask.shape
    if window >= max(high, wide):
        return None
    top, left = max(0, (high - window) // 2), max(0, (wide - window) // 2)
    return slice(top, top + window), slice(left, left + window)


def _edges(mask: Int32[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels of objects that touch something else above, below, left or right."""
    around = np.pad(mask, 1, mode="edge")
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    return (mask > 0) & np.any([neighbour != mask for neighbour in neighbours], axis=0)


AS_IT_IS = {"PNG": ".png", "JPEG": ".jpg"}
MOST_OBJECTS = 65535


@final
class Draft(NamedTuple):
    """One labelled image on its way into a data set."""

    name: str
    """Its file name there, without ending; no two images have the same."""
    image: UInt8[Tensor, "3 h w"] | Path
    """RGB pixels, or a file: a PNG or JPEG is copied byte for byte, anything else written as PNG, without loss."""
    mask: Int32[Tensor, "h w"]
    """Instances: the number of the object at each pixel, 0 for none (an object may have several connected parts;
    the numbers become 1, 2, ... in their order); semantics: the class of each pixel."""
    source: str = ""
    """The case as "DATASET:CASE", empty where unknown."""
    mpp: float = math.nan
    """Micrometres per pixel, nan where unknown."""
    splits: Mapping[str, str] = MappingProxyType({})
    """What it is for in each way of splitting, such as {"official": "testA", "patients": "test"}."""
    object_classes: dict[int, int] | None = None
    """The class (1, 2, ...) of each object in the mask; needed where the data set has more than one."""


@final
@dataclass(frozen=True)
class Facts:
    """What a data set says of itself; see `Labelled` for the fields of the same names."""

    name: str
    kind: Kind
    classes: tuple[str, ...]
    licence: str
    ignored: int | None = None
    notes: tuple[str, ...] = ()
    expected: dict[str, int] = field(default_factory=dict)
    """Counts to check: "images", "objects", "sources", or a part of the first split, such as {"train": 85}."""


def write(out: Path, facts: Facts, drafts: Iterable[Draft], *, partial: bool = False) -> Labelled:
    """Write a data set to the folder `out`, holding one image at a time, and draw its contact sheet.

    For each way of splitting there is a table train-SCHEME.csv of the training images alone, for
    `colocate pretrain --data`.

    Args:
        out: Appears when all is written; it may be there before only if it is empty.
        facts: What the data set says of itself.
        drafts: The images, in the order they are to have.
        partial: Counts other than the expected ones become a note, not an error.

    Raises:
        UserError: `out` is taken, the disk is full, a mask does not fit its image or holds what it cannot, a name comes
            twice, there is no image, or a count is not as expected.
    """
    with folder_or_nothing(out) as folder:
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        tally = _Tally(facts)
        screen = Console(stderr=True)
        for draft in track(drafts, "Writing images", console=screen, disable=not screen.is_terminal, transient=True):
            tally.add(folder, draft)
        tally.close(folder, partial)
        draw_sheet(Labelled.open(folder), folder / SHEET)
    return Labelled.open(out)


def check_free(out: Path) -> None:
    """Raises UserError if there is something at `out` already."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another OUT, or remove it")


@contextmanager
def folder_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write into that takes the name `out` if all goes well, and vanishes otherwise.

    Raises:
        UserError: there is something at `out` already, or the disk is full.
    """
    check_free(out)
    out = Path(os.path.abspath(out))  # noqa: PTH100 (resolve() would follow the user's links)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        part.replace(out)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else f"{error.filename or 'a file'}: {error.strerror or error}"
        raise UserError(f"{out} was not written ({reason}): mend this and run it again") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@dataclass
class _Tally:
    """What has been written so far."""

    facts: Facts
    items: dict[str, Item] = field(default_factory=dict)
    object_rows: list[tuple[str, int, int]] = field(default_factory=list)
    objects: Counter[int] = field(default_factory=Counter)  # of each class
    pixels: Counter[int] = field(default_factory=Counter)

    def add(self, folder: Path, draft: Draft) -> None:
        """Write the files of one image."""
        where = str(draft.image) if isinstance(draft.image, Path) else draft.name
        if draft.name != Path(draft.name).name:
            raise UserError(f"{where}: {draft.name!r} cannot be the name of a file: rename it")
        if draft.name in self.items:
            raise UserError(f"{where}: a second image is named {draft.name!r}: rename one of them")
        if not math.isnan(draft.mpp):
            check_mpp(draft.mpp, where)
        image, ending, size = _packed(draft)
        if size != tuple(draft.mask.shape):
            (high, wide), (mask_high, mask_wide) = size, draft.mask.shape
            sizes = f"is {wide} x {high} px and its mask {mask_wide} x {mask_high}"
            raise UserError(f"{where} {sizes}: one of them is not as released, get it again")
        if self.facts.kind == "instances":
            mask, classes = self._objects(draft, where)
        else:
            mask, classes = self._classes(draft, where), []
        path, mask_path = f"images/{draft.name}{ending}", f"masks/{draft.name}.png"
        packed_mask = _png(mask)
        (folder / path).write_bytes(image)
        (folder / mask_path).write_bytes(packed_mask)
        hashes = sha256(image).hexdigest(), sha256(packed_mask).hexdigest()
        self.items[draft.name] = Item(path, mask_path, draft.source, draft.mpp, *size, *hashes, dict(draft.splits))
        self.object_rows += [(path, number, class_) for number, class_ in enumerate(classes, start=1)]
        self.objects.update(classes)
        values = np.bincount(mask.ravel(), minlength=1)
        if self.facts.kind == "semantics":
            self.pixels.update(dict(enumerate(values.tolist())))
        else:
            for class_, count in zip([0, *classes], values.tolist(), strict=True):
                self.pixels[class_] += count

    def _objects(self, draft: Draft, where: str) -> tuple[np.ndarray, list[int]]:
        """The mask with its objects numbered from 1, and the class of each."""
        mask = draft.mask.numpy()
        ids = np.unique(mask)
        if ids[0] < 0:
            raise UserError(f"{where}: its mask holds the object {ids[0]}: number objects from 1, with 0 for none")
        ids = ids[ids > 0]
        if len(ids) > MOST_OBJECTS:
            raise UserError(f"{where}: {len(ids):,} objects are more than fit in 16 bits: cut the image into tiles")
        numbers = np.where(mask > 0, np.searchsorted(ids, mask) + 1, 0)
        names = self.facts.classes
        given = draft.object_classes or {}
        classes = [1 if len(names) == 1 else given.get(id, 0) for id in ids.tolist()]
        for id, class_ in zip(ids.tolist(), classes, strict=True):
            if not 1 <= class_ <= len(names):
                raise UserError(f"{where}: object {id} has no class of 1 to {len(names)} ({', '.join(names)}): add it")
        return numbers.astype(np.uint8 if len(ids) < 256 else np.uint16), classes

    def _classes(self, draft: Draft, where: str) -> np.ndarray:
        mask = draft.mask.numpy()
        for class_ in np.unique(mask).tolist():
            if not 0 <= class_ < min(len(self.facts.classes), 256) and class_ != self.facts.ignored:
                last = len(self.facts.classes) - 1
                raise UserError(f"{where}: its mask holds class {class_}, but classes are 0 to {last}: name them all")
        return mask.astype(np.uint8)

    def close(self, folder: Path, partial: bool) -> None:
        """Check the counts and write the tables."""
        facts = self.facts
        if not self.items:
            raise UserError(f"{facts.name}: there is no labelled image: give the folder of the files as released")
        items = list(self.items.values())
        schemes = tuple(dict.fromkeys(scheme for item in items for scheme in item.splits))
        counts = self._counts(schemes)
        notes = list(facts.notes)
        if wrong := _differences(counts, facts.expected):
            if not partial:
                remedy = "get what is missing, or take the files as they are with --partial"
                raise UserError(f"{facts.name}: {', '.join(wrong)}: {remedy}")
            notes.append(f"Not the complete data set: {', '.join(wrong)}.")
        for scheme, parts in counts["parts"].items():
            if not partial and not ("train" in parts and any(part.startswith("test") for part in parts)):
                found = ", ".join(parts) or "none"
                raise UserError(f"{facts.name}: split {scheme} has the parts {found}: it needs train and test")
        described: dict[str, Any] = {
            "version": VERSION,
            "name": facts.name,
            "kind": facts.kind,
            "classes": facts.classes,
            "ignored": facts.ignored,
            "licence": facts.licence,
            "notes": notes,
            "counts": counts,
        }
        (folder / "dataset.json").write_text(json.dumps(described, indent=2) + "\n")
        sides = [[item.splits.get(scheme, "") for scheme in schemes] for item in items]
        rows = [(*item[:3], _number(item.mpp), *item[4:8], *side) for item, side in zip(items, sides, strict=True)]
        _table(folder / "items.csv", (*COLUMNS, *(f"split:{scheme}" for scheme in schemes)), rows)
        if facts.kind == "instances" and len(facts.classes) > 1:
            _table(folder / "objects.csv", ("path", "object", "class"), self.object_rows)
        for scheme in schemes:
            train = [item for item in items if item.splits.get(scheme) == "train"]
            if train:
                rows = [(item.path, _number(item.mpp), item.source) for item in train]
                _table(folder / f"train-{scheme}.csv", ("path", "mpp", "source"), rows)

    def _counts(self, schemes: Sequence[str]) -> dict[str, Any]:
        facts, items = self.facts, self.items.values()
        counts: dict[str, Any] = {"images": len(items), "sources": len({item.source for item in items} - {""})}
        counts["parts"] = {
            scheme: dict(Counter(part for item in items if (part := item.splits.get(scheme)))) for scheme in schemes
        }
        pixels = [(class_, count) for class_, count in self.pixels.items() if count]
        names = dict(enumerate(facts.classes))
        if facts.kind == "instances":
            names = {0: "background", **{number + 1: name for number, name in names.items()}}
            counts["objects"] = self.objects.total()
            counts["objects of class"] = {name: self.objects[number] for number, name in names.items() if number}
        counts["pixels of class"] = {names.get(class_, "ignored"): count for class_, count in sorted(pixels)}
        return counts


def _packed(draft: Draft) -> tuple[bytes, str, tuple[int, int]]:
    """The image's bytes as they are to be stored, the ending of their file, and (height, width) in pixels."""
    if not isinstance(draft.image, Path):
        colours = draft.image
    else:
        data = draft.image.read_bytes()
        stored = header(data, str(draft.image))
        colours = pixels(stored, str(draft.image))  # unpacked even if it is copied, to find damage now
        if stored.format in AS_IT_IS:
            return data, AS_IT_IS[stored.format], (colours.shape[1], colours.shape[2])
    return _png(colours.permute(1, 2, 0).numpy()), ".png", (colours.shape[1], colours.shape[2])


def _png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(file, "PNG")
    return file.getvalue()


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _differences(counts: dict[str, Any], expected: dict[str, int]) -> list[str]:
    """What is not as expected, in words."""
    parts = next(iter(counts["parts"].values()), {})
    found = {name: counts.get(name, parts.get(name, 0)) for name in expected}
    return [f"{found[name]:,} {name} instead of {count:,}" for name, count in expected.items() if found[name] != count]


def _table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
