"""Whose an image of The Cancer Genome Atlas is: its name begins with a barcode, TCGA-SITE-PARTICIPANT-..."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, final
from xml.etree import ElementTree

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from colocate.base.errors import UserError
from colocate.data.decode import header


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises UserError if it cannot be read or is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give another, or mend this") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON, or is cut short ({error}): export it again") from error


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file. Raises UserError if it cannot be read or is no XML."""
    try:
        return ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give another, or mend this") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is no XML, or is cut short ({error}): get it again") from error


IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def folder_in(src: Path, *names: str) -> Path:
    """The folder of one of these names in `src`, however it is written: capitals and `-_ ` do not count.

    Raises:
        UserError: `src` is no folder, or has no such folder.
    """
    wanted = {_plain(name) for name in names}
    for entry in entries(src):
        if entry.is_dir() and _plain(entry.name) in wanted:
            return entry
    raise UserError(f"{src} has no folder {' or '.join(names)}: give the folder of the files as released")


def entries(src: Path) -> list[Path]:
    """What lies in a folder, by name, without hidden files. Raises UserError if it is no folder."""
    if not src.is_dir():
        raise UserError(f"{src} is no folder: give the folder of the files as released")
    return sorted(path for path in src.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX")


def by_stem(folder: Path, endings: Sequence[str] = IMAGES) -> dict[str, Path]:
    """The files of a folder that end so (in capitals or not), by their name without the ending, in natural order.

    Raises:
        UserError: `folder` is no folder, or two of the files differ in their ending alone.
    """
    files: dict[str, Path] = {}
    for path in sorted(entries(folder), key=lambda path: natural(path.name)):
        if path.suffix.lower() in endings and path.is_file():
            if other := files.get(path.stem):
                raise UserError(f"{path} and {other.name} have the same name: keep one of them")
            files[path.stem] = path
    return files


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts names as people do.

    >>> sorted(["a10", "a9", "b1"], key=natural)
    ['a9', 'a10', 'b1']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def pairs(images: Mapping[str, Path], masks: Mapping[str, Path], where: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, image and mask of each image.

    Raises:
        UserError: an image has no mask, or a mask no image.
    """
    for these, others, kind in ((images, masks, "mask"), (masks, images, "image")):
        if lonely := [path for name, path in these.items() if name not in others]:
            more = f" ({len(lonely) - 1:,} more like it)" if len(lonely) > 1 else ""
            raise UserError(f"{lonely[0]} has no {kind} in {where}{more}: get it again, or undo its renaming")
    return ((name, path, masks[name]) for name, path in images.items())


def read_mask(path: Path) -> Int32[Tensor, "h w"]:
    """The values of a grey or palette image as they are stored; three equal channels count as grey, 1-bit white as 255.

    Raises:
        UserError: the file is missing, damaged, in floating point, or holds colours.
    """
    try:
        image = header(path.read_bytes(), str(path))
        image.load()
    except UserError:
        raise
    except Exception as error:  # on damaged files Pillow's readers raise almost anything
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is missing, cut short or damaged ({reason}): get it again") from error
    values = np.array(image.convert("L") if image.mode == "1" else image)
    if values.ndim == 3 and image.mode in ("RGB", "RGBA", "LA"):
        colours = values[:, :, : 1 if image.mode == "LA" else 3]
        if (colours != colours[:, :, :1]).any():
            remedy = "save a grey image of 8 or 16 bits that holds the number of the object or class at each pixel"
            raise UserError(f"{path} is a mask in colours, which have no order: {remedy}")
        values = colours[:, :, 0]
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise UserError(f"{path} holds {image.mode} pixels, not numbers: save the mask as grey with 8 or 16 bits")
    return torch.from_numpy(values.astype(np.int32))


def split_by_case(cases: Sequence[str], share: float) -> list[str]:
    """What each image is for, train or test: all images of a case the same, decided by the cases' hashes alone.

    cases: of each image, its own name where unknown. The cases with the lowest hashes are test, as many as come
    nearest to `share` of the images, but at least one on each side.

    Raises:
        UserError: `share` is not in (0, 1), or there is only one case.

    >>> split_by_case(["a", "a", "b", "c", "d"], 0.4)
    ['train', 'train', 'train', 'test', 'test']
    """
    if not 0 < share < 1:
        raise UserError(f"--test-share {share:g} leaves a side without images: give a number between 0 and 1")
    distinct = sorted(set(cases), key=lambda case: sha256(case.encode()).digest())
    if len(distinct) < 2:
        raise UserError("All images are of one case, which cannot be on both sides: give each its split")
    images = Counter(cases)
    held = np.cumsum([images[case] for case in distinct])
    count = 1 + int(np.abs(held[:-1] - share * len(cases)).argmin())
    test = set(distinct[:count])
    return ["test" if case in test else "train" for case in cases]


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).casefold()


COLUMNS = ("path", "source", "mpp", "split")


@final
class Known(NamedTuple):
    """Of one image; see `Draft`."""

    source: str = ""
    mpp: float = math.nan
    split: str = ""


def read_table(table: Path, images: Mapping[str, Path]) -> dict[str, Known]:
    """What a table items.csv says of images, by their names: columns path (with or without ending), source, mpp, split.

    Raises:
        UserError: it has other columns, does not fit the images, or an mpp is no number.
    """
    rows: dict[str, Known] = {}
    by_name = {path.name: name for name, path in images.items()}
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if "path" not in columns or not set(columns) <= set(COLUMNS):
            raise UserError(
                f"{table} has the columns {', '.join(columns)}: it may have {', '.join(COLUMNS)}, path always"
            )
        for line, row in enumerate(reader, start=2):
            given = Path(row["path"] or "").name
            name = by_name.get(given, given)
            if name not in images or name in rows:
                reason = "is a second line of" if name in rows else "is not among the images:"
                raise UserError(f"{table}, line {line} {reason} {row['path']}: mend or remove the line")
            try:
                mpp = float(row.get("mpp") or "nan")
            except ValueError:
                raise UserError(f"{table}, line {line}: mpp {row['mpp']!r} is no number: mend or empty it") from None
            rows[name] = Known(row.get("source") or "", mpp, row.get("split") or "")
    if missing := [path for name, path in images.items() if name not in rows]:
        raise UserError(f"{table} has no line for {missing[0].name}: add it, or remove the table")
    return rows


def split(known: Mapping[str, Known], test_share: float | None, where: Path) -> tuple[str, list[str]]:
    """A way of splitting images, and the part of each.

    It is the given one ("given"), else `test_share` (0.2) of the images are test, chosen by the hash of their case
    ("cases") or, where none is known, of their name ("images"). known: by the images' names; where: what gave it.

    Raises:
        UserError: a split is given and a share as well, or `split_by_case` cannot.
    """
    if any(image.split for image in known.values()):
        if test_share is not None:
            raise UserError(f"{where} gives a split: leave out --test-share, or remove the split there")
        return "given", [image.split for image in known.values()]
    scheme = "cases" if any(image.source for image in known.values()) else "images"
    cases = [image.source or name for name, image in known.items()]
    return scheme, split_by_case(cases, 0.2 if test_share is None else test_share)


def caution(known: Mapping[str, Known], name: str) -> tuple[str, ...]:
    """What to say of a data set of that name if no case is known."""
    if any(image.source for image in known.values()):
        return ()
    return (f"{name} names no cases: a patient may be on both sides.",)


BARCODE = re.compile(r"TCGA-([0-9A-Z]{2})-[0-9A-Z]{4}(?![0-9A-Z])")


def patient(name: str) -> str:
    """The first three parts of the barcode: the same words in every data set, so that a shared patient is found.

    Raises:
        UserError: the name does not begin with a barcode.

    >>> patient("TCGA-A7-A13E-01Z-00-DX1")
    'TCGA-A7-A13E'
    """
    return _barcode(name)[0]


def site(name: str) -> str:
    """The second part of the barcode: the institute that the tissue comes from. Raises UserError as `patient` does."""
    return _barcode(name)[1]


def _barcode(name: str) -> re.Match[str]:
    if match := BARCODE.match(name):
        return match
    raise UserError(f"{name} does not begin with a TCGA barcode, which says whose it is: undo its renaming")
