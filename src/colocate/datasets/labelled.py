"""Read a labelled data set in colocate's own form: images, masks, cases and splits.

    FOLDER/dataset.json   name, kind, classes, ignored class, licence, notes, what it was prepared as
    FOLDER/items.csv      one line an image (its columns are `COLUMNS`, then one `split:SCHEME` for each way to split)
    FOLDER/images/, FOLDER/masks/

Masks are PNG of the image's size. Instances: 8 or 16 bits, 0 = background, each object its own number; the class
of each stands in FOLDER/objects.csv (path,object,class) where there is more than one. Semantics: 8 bits, the class of
each pixel. `colocate prepare` writes this form; `Labelled` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.files import read_json
from colocate.base.tables import as_text, read_table
from colocate.base.text import Count
from colocate.data.decode import decode
from colocate.datasets.files import opened

VERSION = 1
OBJECTS = "objects.csv"
REGIONS = "Images are regions of slides"  # how a note of sets begins whose images are called SLIDE_LEFT_TOP
COLUMNS = ("path", "mask", "source", "mpp", "height", "width", "path_sha256", "mask_sha256")
Kind = Literal["instances", "semantics"]


def pixel_names(kind: Kind, classes: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes 0, 1, ... that a pixel can have, background included.

    Raises UserError: two have one name, so that no score could tell them apart.
    """
    names = tuple(classes) if kind == "semantics" else ("background", *classes)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two classes of pixels are called {twice[0]}: give each a name of its own")
    return names


@final
class Item(NamedTuple):
    """One labelled image."""

    path: str
    """The image, relative to the data set's folder."""
    mask: str
    source: str
    """The case (patient, else slide) it is of, in words that are the same in every data set; empty where unknown."""
    mpp: float
    """Micrometres per pixel, nan where unknown."""
    height: int
    width: int
    path_sha256: str
    mask_sha256: str
    splits: dict[str, str]
    """What it is for in each way of splitting, such as {"official": "train"}; empty where it has no part in one."""

    @property
    def name(self) -> str:
        """The image's name without folder and ending."""
        return Path(self.path).stem


@final
@dataclass(frozen=True, eq=False, repr=False)
class Labelled:
    """A data set that `colocate prepare` wrote; made by `Labelled.open`."""

    folder: Path
    name: str
    kind: Kind
    classes: tuple[str, ...]
    """Instances: the names of classes 1, 2, ...; semantics: of classes 0, 1, ..."""
    ignored: int | None
    """Semantics: the class of pixels that do not count."""
    licence: str
    notes: tuple[str, ...]
    """Notes for every table of results."""
    items: tuple[Item, ...]
    objects_sha256: str | None = None
    """Of objects.csv; None where there is none, or where it was prepared before this was written down."""
    prepared_as: str = ""
    """The kind that `colocate prepare` was told, such as glas or folder; of older sets their name."""

    @classmethod
    def open(cls, folder: str | Path) -> Labelled:
        """Open a prepared data set.

        Raises UserError: no such folder, or it is not (any more) what `colocate prepare` wrote.
        """
        folder = Path(folder)
        remedy = "give a folder that `colocate prepare` wrote"
        if not (folder / "dataset.json").exists():
            raise UserError(
                f"{folder} has no dataset.json: {remedy}; images and labels as released go through it first"
            )
        try:
            facts: dict[str, Any] = read_json(folder / "dataset.json", "dataset.json that `colocate prepare` wrote")
            rows = _table(folder / "items.csv")
            if not rows:
                raise ValueError("items.csv lists no image")
            if facts["version"] != VERSION:
                raise UserError(f"{folder} was prepared by another version of colocate: prepare it again")
            pixel_names(facts["kind"], facts["classes"])
            return cls(
                folder,
                str(facts["name"]),
                facts["kind"],
                tuple(facts["classes"]),
                facts["ignored"],
                str(facts["licence"]),
                tuple(facts["notes"]),
                tuple(_item(row) for row in rows),
                facts.get("objects_sha256"),
                str(facts.get("prepared_as") or facts["name"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} is no prepared data set, or was changed ({error!r}): {remedy}") from error

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every image's and mask's bytes, classes of objects, cases and splits: equal wherever the folder lies.

        Raises UserError if objects.csv is needed, and missing or damaged.
        """
        facts: tuple[object, ...] = (self.kind, self.classes, self.ignored, sorted(map(repr, self.items)))
        if self.kind == "instances" and len(self.classes) > 1:
            facts += (sorted(self._objects.items()),)
        return blake2b(repr(facts).encode(), digest_size=16).hexdigest()

    @property
    def schemes(self) -> tuple[str, ...]:
        """The names of the splits; the first is the default."""
        return tuple(self.items[0].splits)

    def parts(self, scheme: str) -> dict[str, list[int]]:
        """The numbers of the images in each part of a split: train, test (or testA, testB), ...

        Raises UserError: no such split.
        """
        if scheme not in self.schemes:
            raise UserError(f"{self.name} has no split {scheme!r}: there are {', '.join(self.schemes) or 'none'}")
        parts: dict[str, list[int]] = {}
        for number, item in enumerate(self.items):
            if part := item.splits[scheme]:
                parts.setdefault(part, []).append(number)
        return parts

    def train(self, scheme: str) -> list[int]:
        """The numbers of the training images."""
        return self.parts(scheme).get("train", [])

    @property
    def always_train(self) -> list[int]:
        """The numbers of the images that every split trains on; choices made on them are fair to all splits."""
        return [number for number, item in enumerate(self.items) if set(item.splits.values()) == {"train"}]

    def test(self, scheme: str) -> list[int]:
        """The numbers of the test images: of all parts whose names begin with test."""
        parts = self.parts(scheme)
        return sorted(number for part in parts if part.startswith("test") for number in parts[part])

    def shared_sources(self, scheme: str) -> set[str]:
        """The cases that a split has on both sides."""
        train, test = ({self.items[n].source for n in numbers} for numbers in (self.train(scheme), self.test(scheme)))
        return (train & test) - {""}

    def unseen(self, scheme: str) -> list[int]:
        """The numbers of the test images of cases that are not trained on too."""
        shared = self.shared_sources(scheme)
        return [number for number in self.test(scheme) if self.items[number].source not in shared]

    def slide(self, number: int) -> str:
        """The name of the slide that an image is a region of; empty where it is not known to be one."""
        cut = any(note.startswith(REGIONS) for note in self.notes)
        return self.items[number].name.rsplit("_", 2)[0] if cut else ""

    def image(self, number: int) -> UInt8[Tensor, "3 h w"]:
        """Read an image's RGB pixels. Raises UserError if the file is missing or damaged."""
        path = self.folder / self.items[number].path
        return decode(self._bytes(path), str(path))

    def mask(self, number: int) -> Int32[Tensor, "h w"]:
        """Instances: the number of the object at each pixel, 0 for none; semantics: the class of each pixel.

        Raises UserError: the file is missing, damaged, or not of its image's size.
        """
        item = self.items[number]
        path = self.folder / item.mask
        with opened(path) as image:
            mask = torch.from_numpy(np.array(image).astype(np.int32))
        if mask.shape != (item.height, item.width):
            raise UserError(f"{path} has another size than items.csv says: prepare the data set again")
        return mask

    def object_classes(self, number: int, ids: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """The class (1, 2, ...) of objects of an image. Raises UserError where one is not in objects.csv."""
        if len(self.classes) == 1:
            return torch.ones_like(ids)
        path = self.items[number].path
        try:
            return torch.tensor([self._objects[path, object] for object in ids.tolist()], dtype=torch.int64)
        except KeyError as error:
            raise UserError(f"{self.folder / OBJECTS} has no class for object {error.args[0][1]} of {path}") from None

    @property
    def pixel_names(self) -> tuple[str, ...]:
        """The names of the classes 0, 1, ... that a pixel can have, background included."""
        return pixel_names(self.kind, self.classes)

    def pixel_classes(self, number: int, mask: Int32[Tensor, "h w"]) -> Int64[Tensor, "h w"]:
        """The class of each pixel of an image's mask, or of a part of it; of objects: 0 is background.

        Pixels below 0 (added around the image) stay as they are.
        """
        if self.kind == "semantics":
            return mask.long()
        ids = mask.unique()
        ids = ids[ids > 0].long()
        table = torch.arange(-1, int(mask.max()) + 1).clamp_max(0)  # table[id + 1]
        table[ids + 1] = self.object_classes(number, ids)
        return table[mask.long() + 1]

    def verify(self) -> None:
        """Check every image and mask, and the table of objects, against the hash that was written.

        Raises UserError: one is missing or was changed.
        """
        hashes = {item.path: item.path_sha256 for item in self.items}
        hashes |= {item.mask: item.mask_sha256 for item in self.items}
        if self.objects_sha256 is not None:
            hashes[OBJECTS] = self.objects_sha256
        with Count(len(hashes), "file") as count:
            for path, digest in hashes.items():
                if sha256(self._bytes(self.folder / path)).hexdigest() != digest:
                    raise UserError(f"{self.folder / path} was changed since it was prepared: prepare the set again")
                count.advance()

    @cached_property
    def _objects(self) -> dict[tuple[str, int], int]:
        file = self.folder / OBJECTS
        try:
            return {(row["path"], int(row["object"])): int(row["class"]) for row in as_text(read_table(file))}
        except (KeyError, ValueError) as error:
            said = f"{file} does not hold path, object and class ({error!r})"
            raise UserError(f"{said}: prepare the data set again") from error

    @staticmethod
    def _bytes(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): prepare the data set again") from error


def _table(file: Path) -> list[dict[str, str]]:
    try:
        return as_text(read_table(file))
    except UserError as error:
        raise ValueError(str(error)) from error


def _item(row: dict[str, str]) -> Item:
    path, mask, source, mpp, height, width, path_sha256, mask_sha256 = (row[name] for name in COLUMNS)
    splits = {name.removeprefix("split:"): part for name, part in row.items() if name.startswith("split:")}
    return Item(path, mask, source, float(mpp or "nan"), int(height), int(width), path_sha256, mask_sha256, splits)
