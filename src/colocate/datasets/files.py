"""Find and read the files of a data set as released: folders, images and masks by name, JSON, XML, patients."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from jaxtyping import Int32
from PIL import Image
from torch import Tensor

from colocate.base.errors import UserError
from colocate.data.sources import IMAGES
from colocate.slides.pictures import FORMATS


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises UserError if it cannot be read or is no JSON."""
    return _parsed(path, "JSON", json.loads)


def read_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file and return its root. Raises UserError if it cannot be read or is no XML."""
    return _parsed(path, "XML", ElementTree.fromstring)


def _parsed(path: Path, kind: str, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give another, or mend this") from error
    except (ValueError, RecursionError, ElementTree.ParseError) as error:
        raise UserError(f"{path} is no {kind}, or is cut short ({error}): get it again") from error


def folder_in(src: Path, *names: str) -> Path:
    """Find the folder of one of these names in `src`; capitals and `-_ ` do not count.

    Raises:
        UserError: `src` is no folder, or has no such folder.
    """
    wanted = {_plain(name) for name in names}
    for entry in entries(src):
        if entry.is_dir() and _plain(entry.name) in wanted:
            return entry
    raise UserError(f"{src} has no folder {' or '.join(names)}: give the folder of the files as released")


def entries(src: Path) -> list[Path]:
    """List a folder, sorted by name, without hidden files. Raises UserError if it is no folder."""
    if not src.is_dir():
        raise UserError(f"{src} is no folder: give the folder of the files as released")
    return sorted(path for path in src.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX")


def by_stem(folder: Path, endings: Sequence[str] = IMAGES) -> dict[str, Path]:
    """List the files with these endings (in capitals or not) by their names without ending, in natural order.

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
    """A sort key that orders numbers in names by value.

    >>> sorted(["a10", "a9", "b1"], key=natural)
    ['a9', 'a10', 'b1']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def pairs(images: Mapping[str, Path], masks: Mapping[str, Path], where: Path) -> Iterator[tuple[str, Path, Path]]:
    """Pair images with masks of the same names: name, image, mask.

    Raises:
        UserError: an image has no mask, or a mask no image.
    """
    for these, others, kind in ((images, masks, "mask"), (masks, images, "image")):
        if lonely := [path for name, path in these.items() if name not in others]:
            more = f" ({len(lonely) - 1:,} more like it)" if len(lonely) > 1 else ""
            raise UserError(f"{lonely[0]} has no {kind} in {where}{more}: get it again, or undo its renaming")
    return ((name, path, masks[name]) for name, path in images.items())


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file of any size, also of more pixels than `data.decode` takes for a tile.

    Raises:
        UserError: it is missing, no image, cut short or damaged, if that shows while it is open.
    """
    try:
        with Image.open(path, formats=(*FORMATS, "TIFF")) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # on damaged files Pillow's readers raise almost anything
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is missing, cut short or damaged ({reason}): get it again") from error


def read_mask(path: Path) -> Int32[Tensor, "h w"]:
    """Read a grey or palette image's values as stored; three equal channels count as grey, 1-bit white as 255.

    Raises:
        UserError: the file is missing, damaged, in floating point, or holds colours.
    """
    with opened(path) as image:
        values, mode = np.array(image.convert("L") if image.mode == "1" else image), image.mode
    if values.ndim == 3 and mode in ("RGB", "RGBA", "LA"):
        colours = values[:, :, : 1 if mode == "LA" else 3]
        if (colours != colours[:, :, :1]).any():
            remedy = "save a grey image of 8 or 16 bits that holds the number of the object or class at each pixel"
            raise UserError(f"{path} is a mask in colours, which have no order: {remedy}")
        values = colours[:, :, 0]
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise UserError(f"{path} holds {mode} pixels, not numbers: save the mask as grey with 8 or 16 bits")
    return torch.from_numpy(values.astype(np.int32))


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).casefold()


BARCODE = re.compile(r"TCGA-[0-9A-Z]{2}-[0-9A-Z]{4}(?![0-9A-Z])")  # of The Cancer Genome Atlas: site, participant


def patient(name: str) -> str:
    """The patient in a TCGA barcode (its first three parts), the same in every data set that has the patient.

    Raises:
        UserError: the name does not begin with a barcode.

    >>> patient("TCGA-A7-A13E-01Z-00-DX1")
    'TCGA-A7-A13E'
    """
    if match := BARCODE.match(name):
        return match[0]
    raise UserError(f"{name} does not begin with a TCGA barcode, which says whose it is: undo its renaming")
