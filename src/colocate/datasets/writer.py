"""Write a prepared data set, in the form that `labelled.py` reads: all of it or nothing, with a contact sheet."""

from __future__ import annotations

import colorsys
import errno
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import track
from skimage.measure import label
from skimage.segmentation import find_boundaries
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.files import absolute, claimed, encoded
from colocate.base.tables import write_csv
from colocate.data.decode import header, pixels
from colocate.data.inspect import contact_sheet
from colocate.datasets.files import check_upright, is_white
from colocate.datasets.labelled import COLUMNS, OBJECTS, VERSION, Item, Kind, Labelled, pixel_names
from colocate.slides.settings import check_mpp

AS_IT_IS = {"PNG": ".png", "JPEG": ".jpg"}
MOST_OBJECTS = 65535
MOST_TORN = 0.5  # of the objects of a set that may be in several parts
DOZEN, COVERS = 12, 0.5  # where images have so many objects, a single one on more of an image is doubtful


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
    numbered: bool = False
    """Instances: objects were told apart by the numbers in masks, which those who save such files may forget."""
    expected: dict[str, int] = field(default_factory=dict)
    """Counts to check: "images", "objects", "sources", or a part of the first split, such as {"train": 85}."""
    prepared_as: str = ""


Converted: TypeAlias = tuple[Facts, Iterator[Draft]]
"""What a converter returns."""


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
        UserError: two classes have one name, `out` is taken, the disk is full, a mask does not fit its image or holds
            what it cannot, a name comes twice, there is no image, or a count is not as expected.
    """
    pixel_names(facts.kind, facts.classes)
    with folder_or_nothing(out) as folder:
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        written = _Written(folder, facts)
        screen = Console(stderr=True)
        for draft in track(drafts, "Writing images", console=screen, disable=not screen.is_terminal, transient=True):
            written.add(draft)
        written.conclude(partial)
        draw_sheet(Labelled.open(folder), folder / SHEET)
    return Labelled.open(out)


def check_free(out: Path) -> None:
    """Raises UserError if there is something at `out` already."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another OUT, or remove it")


@contextmanager
def folder_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write into that takes the name `out` if all goes well, and vanishes otherwise.

    Raises UserError if there is something at `out` already, another process writes it, or the disk is full.
    """
    check_free(out)
    out = absolute(out)
    part = out.with_name(f".{out.name}.part")
    try:
        with claimed(out.with_name(f".{out.name}.lock"), wait=False) as mine:
            if not mine:
                raise UserError(f"{out} is being written by another process: let it end, or choose another OUT")
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            part.mkdir(parents=True)
            try:
                yield part
                part.replace(out)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else f"{error.filename or 'a file'}: {error.strerror or error}"
        raise UserError(f"{out} was not written ({reason}): mend this and run it again") from error


@dataclass
class _Written:
    """What has been written to `folder` so far."""

    folder: Path
    facts: Facts
    items: dict[str, Item] = field(default_factory=dict)
    object_rows: list[tuple[str, int, int]] = field(default_factory=list)
    pixels: Counter[int] = field(default_factory=Counter)
    """Of each class; of instances 0 is the background."""
    objects: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Of each image of instances: how many, and the share of the image that the largest covers."""
    torn: dict[str, int] = field(default_factory=dict)
    """How many objects of an image are in several parts, where any are."""

    def add(self, draft: Draft) -> None:
        """Write the files of one image."""
        where = str(draft.image) if isinstance(draft.image, Path) else draft.name
        if draft.name in self.items:
            raise UserError(f"{where}: a second image is named {draft.name!r}: rename one of them")
        if not math.isnan(draft.mpp):
            check_mpp(draft.mpp, where)
        image, ending, size = _packed(draft)
        if size != tuple(draft.mask.shape):
            (high, wide), (mask_high, mask_wide) = size, draft.mask.shape
            sizes = f"is {wide} x {high} px and its mask {mask_wide} x {mask_high}"
            raise UserError(f"{where} {sizes}: one of them is not as released, get it again")
        path, mask_path = f"images/{draft.name}{ending}", f"masks/{draft.name}.png"
        mask = draft.mask.numpy()
        if self.facts.kind == "instances":
            ids, mask = _numbered(mask, where)
            names = self.facts.classes
            given = dict.fromkeys(ids, 1) if len(names) == 1 else draft.object_classes or {}
            classes = [given.get(id, 0) for id in ids]
            for id, class_ in zip(ids, classes, strict=True):
                if not 1 <= class_ <= len(names):
                    told = f"{len(names)} ({', '.join(names)})"
                    raise UserError(f"{where}: object {id} has no class of 1 to {told}: add it")
            self.object_rows += [(path, number, class_) for number, class_ in enumerate(classes, start=1)]
            of_pixels = np.array([0, *classes])[mask]
            self.objects[draft.name] = len(ids), float(np.bincount(mask.ravel())[1:].max(initial=0) / mask.size)
            parts: Any = label(mask)  # connected pixels of one number
            numbers, first = np.unique(parts, return_index=True)
            of_object = np.bincount(mask.ravel()[first[numbers > 0]])
            if (of_object > 1).any():
                self.torn[where] = int((of_object > 1).sum())
        else:
            self._check_classes(mask, where)
            mask = of_pixels = mask.astype(np.uint8)
        self.pixels.update(dict(enumerate(np.bincount(of_pixels.ravel()).tolist())))
        packed_mask = _png(mask)
        (self.folder / path).write_bytes(image)
        (self.folder / mask_path).write_bytes(packed_mask)
        hashes = sha256(image).hexdigest(), sha256(packed_mask).hexdigest()
        self.items[draft.name] = Item(path, mask_path, draft.source, draft.mpp, *size, *hashes, dict(draft.splits))

    def _check_classes(self, mask: Int32[np.ndarray, "h w"], where: str) -> None:
        last = len(self.facts.classes) - 1
        for class_ in np.unique(mask).tolist():
            if not 0 <= class_ <= min(last, 255) and class_ != self.facts.ignored:
                remedy = "name them all (--classes), or the one that does not count (--ignored)"
                if is_white(torch.from_numpy(mask)):
                    remedy = "save white as the number of its class, such as 1, or name two classes, white the second"
                raise UserError(f"{where}: its mask holds class {class_}, but classes are 0 to {last}: {remedy}")

    def conclude(self, partial: bool) -> None:
        """Check the counts and write the tables."""
        facts, folder, items = self.facts, self.folder, list(self.items.values())
        if not items:
            raise UserError(f"{facts.name}: there is no labelled image: give the folder of the files as released")
        if facts.numbered and self.torn:
            first, torn, objects = next(iter(self.torn)), sum(self.torn.values()), len(self.object_rows)
            remedy = "number each object from 1, or prepare a folder with --parts objects (or --parts together)"
            if max(count for count, _ in self.objects.values()) == 1:
                said = f"no mask holds two numbers, and {torn} hold theirs in several parts (as of {first})"
                raise UserError(f"{facts.name}: {said}: {remedy}")
            if torn > MOST_TORN * objects:
                said = f"{torn:,} of {objects:,} objects are in several parts (as in {first}), as classes are"
                raise UserError(f"{facts.name}: {said}: {remedy}, or add --semantics")
        schemes = tuple(dict.fromkeys(scheme for item in items for scheme in item.splits))
        counts = self._counts(schemes)
        notes = list(facts.notes)
        found = counts | next(iter(counts["parts"].values()), {})
        wrong = [
            f"{found.get(name, 0):,} {name} instead of {count:,}"
            for name, count in facts.expected.items()
            if found.get(name, 0) != count
        ]
        if wrong and not partial:
            remedy = "get what is missing, or take the files as they are with --partial"
            raise UserError(f"{facts.name}: {', '.join(wrong)}: {remedy}")
        if wrong:
            notes.append(f"Not the complete data set: {', '.join(wrong)}.")
        for scheme, parts in counts["parts"].items():
            if not partial and not ("train" in parts and any(part.startswith("test") for part in parts)):
                names = ", ".join(parts) or "none"
                raise UserError(f"{facts.name}: split {scheme} has the parts {names}: it needs train and test")
        described: dict[str, Any] = {
            "version": VERSION,
            "name": facts.name,
            "prepared_as": facts.prepared_as,
            "kind": facts.kind,
            "classes": facts.classes,
            "ignored": facts.ignored,
            "licence": facts.licence,
            "notes": notes,
            "counts": counts,
        }
        if facts.kind == "instances" and len(facts.classes) > 1:
            write_csv(folder / OBJECTS, ("path", "object", "class"), self.object_rows)
            described["objects_sha256"] = sha256((folder / OBJECTS).read_bytes()).hexdigest()
        (folder / "dataset.json").write_text(json.dumps(described, indent=2) + "\n")
        sides = [[item.splits.get(scheme, "") for scheme in schemes] for item in items]
        rows = [(*item[:3], _number(item.mpp), *item[4:8], *side) for item, side in zip(items, sides, strict=True)]
        write_csv(folder / "items.csv", (*COLUMNS, *(f"split:{scheme}" for scheme in schemes)), rows)
        for scheme in schemes:
            train = [item for item in items if item.splits.get(scheme) == "train"]
            if train:
                rows = [(item.path, _number(item.mpp), item.source) for item in train]
                write_csv(folder / f"train-{scheme}.csv", ("path", "mpp", "source"), rows)

    def _counts(self, schemes: Sequence[str]) -> dict[str, Any]:
        items, names = self.items.values(), dict(enumerate(self.facts.classes))
        counts: dict[str, Any] = {"images": len(items), "sources": len({item.source for item in items} - {""})}
        counts["parts"] = {
            scheme: dict(Counter(part for item in items if (part := item.splits.get(scheme)))) for scheme in schemes
        }
        if self.facts.kind == "instances":
            names = dict(enumerate(("background", *self.facts.classes)))
            objects = Counter(names[class_] for _, _, class_ in self.object_rows)
            counts["objects"] = objects.total()
            counts["objects of class"] = {name: objects[name] for name in self.facts.classes}
            each = [count for count, _ in self.objects.values()]
            usual = median(each)
            counts["objects an image"] = {"median": usual, "least": min(each), "most": max(each), "none": each.count(0)}
            alone = (name for name, (count, share) in self.objects.items() if count == 1 and share > COVERS)
            counts["doubtful"] = list(alone) if usual >= DOZEN else []
        counts["pixels of class"] = {
            names.get(class_, "ignored"): count for class_, count in sorted(self.pixels.items()) if count
        }
        return counts


def _numbered(mask: Int32[np.ndarray, "h w"], where: str) -> tuple[list[int], np.ndarray]:
    """The numbers of the objects, and the mask with them as 1, 2, ... in 8 or 16 bits."""
    ids = np.unique(mask)
    if ids[0] < 0:
        raise UserError(f"{where}: its mask holds the object {ids[0]}: number objects from 1, with 0 for none")
    ids = ids[ids > 0]
    if len(ids) > MOST_OBJECTS:
        raise UserError(f"{where}: {len(ids):,} objects are more than fit in 16 bits: cut the image into tiles")
    numbers = np.where(mask > 0, np.searchsorted(ids, mask) + 1, 0)
    return ids.tolist(), numbers.astype(np.uint8 if len(ids) < 256 else np.uint16)


def _packed(draft: Draft) -> tuple[bytes, str, tuple[int, int]]:
    """The image's bytes as they are to be stored, the ending of their file, and (height, width) in pixels."""
    if not isinstance(draft.image, Path):
        colours = draft.image
    else:
        data = draft.image.read_bytes()
        stored = header(data, str(draft.image))
        check_upright(stored.orientation, draft.image)
        colours = pixels(stored)  # unpacked even if it is copied, to find damage now
        if stored.format in AS_IT_IS:
            return data, AS_IT_IS[stored.format], (colours.shape[1], colours.shape[2])
    return _png(colours.permute(1, 2, 0).numpy()), ".png", (colours.shape[1], colours.shape[2])


def _png(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(np.ascontiguousarray(values)), "PNG")


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


SHEET = "contact-sheet.png"
SHOWN, SHEET_COLUMNS = 24, 6
SIDE_PX = 128
MIDDLE_PX = 384  # of each image is shown: the whole of large ones would show no nucleus
TINT = 0.4  # how much of a class's colour lies over the tissue
HUES = (1 / 3, 1 / 2, 1 / 6, 1 / 11)  # green, cyan, yellow, orange: stained tissue has none of them


def draw_sheet(data: Labelled, out: Path) -> None:
    """Draw the middle of some images, evenly spread over the parts of the first split, with their labels.

    Objects are outlined, in the colour of their class or, where there is only one, each in another. Of semantics all
    classes but the first are tinted, the ignored one is black. Raises UserError if `out` cannot be written.
    """
    parts = data.parts(data.schemes[0]).values() if data.schemes else ()
    numbers = [number for part in parts for number in part] or list(range(len(data)))
    names = data.pixel_names
    hues = HUES if len(names) <= len(HUES) + 1 else [place / len(names) for place in range(1, len(names))]
    palette = np.array([colorsys.hsv_to_rgb(hue, 1, 1) for hue in hues]) * 255
    thumbs = []
    for place in np.linspace(0, len(numbers) - 1, min(SHOWN, len(numbers))).round().astype(int).tolist():
        item = data.items[numbers[place]]
        top, left = (max(0, (side - MIDDLE_PX) // 2) for side in (item.height, item.width))
        here = np.s_[top : top + MIDDLE_PX, left : left + MIDDLE_PX]
        small = Image.fromarray(data.image(numbers[place]).permute(1, 2, 0).numpy()[here])
        small.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
        picture = np.array(small)
        mask = Image.fromarray(data.mask(numbers[place]).numpy()[here])
        labels = np.array(mask.resize(small.size, Image.Resampling.NEAREST))
        shown, share = labels > 0, TINT
        if data.kind == "instances":
            shown, share = find_boundaries(labels, mode="inner"), 1.0
            if len(data.classes) > 1:
                labels = data.pixel_classes(numbers[place], torch.from_numpy(labels)).numpy()
        colours = palette[(labels[shown] - 1) % len(palette)]
        picture[shown] = ((1 - share) * picture[shown] + share * colours).round()
        picture[labels == data.ignored] = 0
        thumbs.append((Image.fromarray(picture), item.name, next(iter(item.splits.values()), "")))
    for value, name in enumerate(names):
        if len(names) > 2 and value not in (0, data.ignored):
            colour = tuple(palette[value - 1].round().astype(int).tolist())
            thumbs.append((Image.new("RGB", (SIDE_PX // 2, SIDE_PX // 4), colour), name, f"class {value}"))
    contact_sheet(thumbs, out, SIDE_PX, SHEET_COLUMNS)
