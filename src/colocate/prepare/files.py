"""Files as released: folders and names whatever their case, masks of any bit depth, splits by case."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from colocate.data.decode import header
from colocate.errors import UserError

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
