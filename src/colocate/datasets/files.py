"""Find and read the files of a data set as released: folders, images and masks by name, patients."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy.ndimage import binary_dilation, generate_binary_structure, maximum_filter, minimum_filter
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.files import check_utf8
from colocate.base.text import composed
from colocate.data.sources import IMAGES
from colocate.slides.pictures import FORMATS, ORIENTATION

WHITE = 255
BITS, PHOTOMETRIC = 258, 262  # TIFF's BitsPerSample and PhotometricInterpretation, of which 0 says that white is 0
LOSSY = ("JPEG", "jpeg", "webp")  # Pillow's names; small ones are of TIFF, which does not say whether its WebP is lossy
# Pixels between background and a larger number: how many, of all beside background. Of cells that touch all their
# neighbours it is below 0.4, of soft edges above 0.55; a soft object of four pixels across has twelve.
FEWEST_SOFT, SOFT = 10, 0.5
VOID = 0.9  # of the edges of all other objects that 255 lies along where it parts them
LOST = 0.05  # of pixels at edges that are single ones of numbers which come again: GlaS has none, as JPEG 0.05 to 0.3


def folder_in(src: Path, *names: str) -> Path:
    """Find the folder of one of these names in `src`; capitals and `-_ ` do not count.

    Raises UserError if `src` is no folder, or has no such folder.
    """
    if found := find_folder(src, *names, itself=False):
        return found
    raise UserError(f"{src} has no folder {' or '.join(names)}: give the folder of the files as released")


def find_folder(src: Path, *names: str, itself: bool = True) -> Path | None:
    """As `folder_in`, but None if there is none; `src` itself (`itself`) if it has such a name."""
    wanted = {_plain(name) for name in names}
    found = (entry for entry in entries(src) if entry.is_dir() and _plain(entry.name) in wanted)
    return next(found, src if itself and _plain(src.absolute().name) in wanted else None)


def entries(src: Path) -> list[Path]:
    """List a folder, sorted by name, without hidden files. Raises UserError if it is no folder."""
    if not src.is_dir():
        raise UserError(f"{src} is no folder: give the folder that holds the files")
    return sorted(path for path in src.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX")


def by_stem(folder: Path, endings: Sequence[str] = IMAGES) -> dict[str, Path]:
    """List the files with these endings (in capitals or not) by their names without ending, in natural order.

    Raises UserError if `folder` is no folder, or two of the files differ in their ending alone.
    """
    files: dict[str, Path] = {}
    for path in sorted(entries(folder), key=lambda path: natural(path.name)):
        if path.suffix.lower() in endings and path.is_file():
            check_utf8(path)
            if other := files.get(name := composed(path.stem)):
                raise UserError(f"{path} and {other.name} have the same name: keep one of them")
            files[name] = path
    return files


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key that orders numbers in names by value.

    >>> sorted(["a10", "a9", "b1"], key=natural)
    ['a9', 'a10', 'b1']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def pairs(images: Mapping[str, Path], masks: Mapping[str, Path], where: Path) -> Iterator[tuple[str, Path, Path]]:
    """Pair images with masks of the same names: name, image, mask. Raises UserError where one lacks the other."""
    for these, others, kind in ((images, masks, "mask"), (masks, images, "image")):
        if lonely := [path for name, path in these.items() if name not in others]:
            more = f" ({len(lonely) - 1:,} more like it)" if len(lonely) > 1 else ""
            raise UserError(f"{lonely[0]} has no {kind} in {where}{more}: get it again, or undo its renaming")
    return ((name, path, masks[name]) for name, path in images.items())


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file, also of more pixels than `data.decode` takes for a tile.

    Raises UserError if it is missing, no image, cut short or damaged, if that shows while it is open; or larger than
    Pillow takes.
    """
    try:
        with Image.open(path, formats=(*FORMATS, "TIFF")) as image:
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{path} has more than 179 million pixels: cut the image and its mask into pieces") from None
    except Exception as error:  # on damaged files Pillow's readers raise almost anything
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is missing, cut short or damaged ({reason}): get it again") from error


def read_mask(path: Path) -> Int32[Tensor, "h w"]:
    """Read a grey or palette image's values as stored; three equal channels count as grey, 1-bit white as 255.

    Raises UserError: the file is missing or damaged, or its values are not numbers for sure: it is packed with loss, is
    turned, is transparent, has several pages, counts from white, is in floating point, holds colours, has a palette of
    greys of which 0 is not the darkest, or has more bits than are read.
    """
    with opened(path) as image:
        tiles: Any = getattr(image, "tile", None)  # in Pillow's words; to be asked before pixels are read
        codec, raw = (tiles[0].codec_name, str(tiles[0].args)) if tiles else ("", "")
        step = 85 if "L;2" in raw else 17 if "L;4" in raw else 1  # Pillow stretches grey of 2 or 4 bits to 255
        if reason := _not_of_numbers(image, path, codec, raw):
            raise UserError(f"{path} {reason}: save the mask as one grey PNG of 8 or 16 bits, with 0 for none")
        check_upright(image.getexif().get(ORIENTATION, 1), path)  # Pillow turns a TIFF when it reads its pixels
        values, mode = np.array(image.convert("L") if image.mode == "1" else image), image.mode
        palette = np.array(image.getpalette() or [], np.int32).reshape(-1, 3)
    used = palette[np.unique(values)] if mode == "P" and values.max() < len(palette) else palette[:0]
    if values.min() == 0 and (used == used[:, :1]).all() and (used[1:] < used[:1]).any():
        reason = "has a palette of greys of which 0 is not the darkest, so that it is unclear what is background"
        raise UserError(f"{path} {reason}: save the mask as one grey PNG of 8 or 16 bits, with 0 for none")
    if values.ndim == 3 and mode in ("RGB", "RGBA", "LA"):
        channels = list(np.moveaxis(values, 2, 0))
        if mode != "RGB" and (channels.pop() != WHITE).any():
            raise UserError(f"{path} is a mask that is transparent in places: save it without transparency")
        if any((channel != channels[0]).any() for channel in channels):
            remedy = "save a grey image of 8 or 16 bits that holds the number of the object or class at each pixel"
            raise UserError(f"{path} is a mask in colours, which have no order: {remedy}")
        values = channels[0]
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise UserError(f"{path} holds {mode} pixels, not numbers: save the mask as grey with 8 or 16 bits")
    return torch.from_numpy(values.astype(np.int32) // step)


def _not_of_numbers(image: Image.Image, path: Path, codec: str, raw: str) -> str:
    """Why an image's values are not sure to be what was meant, or to be read; empty if they are.

    codec, raw: what unpacks it, and the kind of its values.
    """
    tags = getattr(image, "tag_v2", {})  # of TIFFs alone
    packing = str(image.info.get("compression") if image.format == "TIFF" else image.format).removeprefix("tiff_")
    if packing in LOSSY or (packing == "WEBP" and _loses(path.read_bytes())):
        return f"is packed as {packing.upper()}, which may change numbers along every edge"
    # `raw` does not say it of planes apart
    if image.mode in ("RGB", "RGBA", "LA") and (";16" in raw or max(tags.get(BITS, (8,))) > 8):
        return "has 16 bits in each channel, of which 8 would be read"
    if codec == "libtiff" and "BS" in raw:
        return "is a compressed TIFF of signed numbers in big-endian order, which would be read the wrong way round"
    if tags.get(PHOTOMETRIC) == 0:
        return "is a TIFF in which white is 0, so that it is unclear what is background"
    if (pages := getattr(image, "n_frames", 1)) > 1:
        size = image.size
        image.seek(1)
        if image.size == size:  # smaller ones are the same picture again, as in slides
            return f"has {pages} pages, of which one is the mask"
        image.seek(0)
    return ""


def _loses(webp: bytes) -> bool:
    """Tell whether a WebP file's first picture is packed with loss."""
    place = 12
    while (chunk := webp[place : place + 4]) not in (b"VP8 ", b"VP8L", b""):
        size = 16 if chunk == b"ANMF" else int.from_bytes(webp[place + 4 : place + 8], "little")  # which holds others
        place += 8 + size + size % 2
    return chunk != b"VP8L"


def read_objects(path: Path) -> Int32[Tensor, "h w"]:
    """Read a mask that holds the number of the object at each pixel, 0 for none.

    Raises UserError: what `read_mask` and `check_drawn` raise; or it is black and white, or has more objects than 8
    bits count: programs go on from 0 then, or give all others the last number.
    """
    mask = read_mask(path)
    if is_white(mask):
        remedy = "number the objects from 1, or prepare it as a folder with --parts objects or --semantics"
        raise UserError(f"{path} is black and white, which cannot tell objects that touch apart: {remedy}")
    check_drawn(mask, path)
    numbers = mask[mask > 0].unique()
    if len(numbers) == WHITE == int(numbers[-1]):
        from skimage.measure import label  # an extra's, and tiles with masks are pretrained on without it

        with opened(path) as image:
            has_8_bits = not image.mode.startswith("I")
        parts: Any = label(mask.numpy())
        if has_8_bits and parts.max() > WHITE:
            reason = "uses all 255 numbers of 8 bits, some for several objects"
            remedy = "save it with 16 bits (or, if no two objects touch, take --parts objects)"
            raise UserError(f"{path} {reason}: {remedy}")
    return mask


def check_drawn(mask: Int32[Tensor, "h w"], path: Path) -> None:
    """Raises UserError if not every number in a mask is an object.

    A mask was smoothed (resized or drawn with soft edges) where most pixels beside its background lie below a larger
    number, and packed with loss where some numbers come as single pixels again and again. 255 is void, as in Pascal
    VOC, where it parts all others from each other and from the background.
    """
    values, cross = mask.numpy(), generate_binary_structure(2, 1)
    low, high = (filtered(values, footprint=cross) for filtered in (minimum_filter, maximum_filter))
    edges, void = (values > 0) & (low < high), values == WHITE
    between = edges & (low == 0) & (values < high)
    near = sliding_window_view(np.pad(values, 1, constant_values=-1), (3, 3))[edges]
    single = values[edges][(near == near[:, 1:2, 1:2]).sum((1, 2)) == 1]
    again = len(single) - len(kinds := np.unique(single))
    beside = binary_dilation(void, cross)
    rim = values.max() == WHITE and (beside & (values == 0)).any()
    drawn = "save it as it was drawn, and resize it without interpolation (nearest neighbour)"
    if between.sum() >= FEWEST_SOFT and between.sum() > SOFT * (edges & (low == 0)).sum():
        reason = f"has soft edges, whose values would count as objects: {drawn}"
    elif again >= FEWEST_SOFT and again > LOST * edges.sum() and len(kinds) > 2:
        reason = "was packed with loss (as JPEG is) before, and noise would count as objects: save it as it was drawn"
    elif rim and (edges & ~void & beside).sum() > VOID * (edges & ~void).sum():
        reason = "has 255 along the edges of its objects, which is void and no object: set it to 0"
    else:
        return
    raise UserError(f"{path} {reason}")


def check_palettes(masks: Iterable[Path], last: int) -> None:
    """Raises UserError where one of the numbers 0 to `last` has two colours: each file got its palette by itself."""
    colours: dict[int, tuple[list[int], Path]] = {}
    for path in masks:
        with opened(path) as image:
            if image.mode != "P":
                continue
            palette, counts = image.getpalette() or [], image.histogram()[: last + 1]
        for number in [number for number, count in enumerate(counts) if count]:
            colour = palette[3 * number : 3 * number + 3]
            known, first = colours.setdefault(number, (colour, path))
            if colour != known:
                said = f"{path} gives the number {number} another colour than {first}"
                raise UserError(f"{said}: save all masks as grey, with the same number for the same thing")


def is_white(mask: Int32[Tensor, "h w"]) -> bool:
    """Tell whether a mask holds 255 and besides it nothing but 0."""
    return set(mask.unique().tolist()) in ({WHITE}, {0, WHITE})


def check_upright(turned: int, path: Path | str) -> None:
    """Raises UserError if an image says that it is to be turned (EXIF's orientation): programs differ in doing so."""
    if turned not in (0, 1):
        both = "save image and mask (or outlines) as they are to be seen, without that entry"
        raise UserError(
            f"{path} is to be turned by its EXIF entry (orientation {turned}), its labels perhaps not: {both}"
        )


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).casefold()


BARCODE = re.compile(r"TCGA-[0-9A-Z]{2}-[0-9A-Z]{4}(?![0-9A-Z])")  # of The Cancer Genome Atlas: site, participant


def patient(name: str) -> str:
    """The patient in a TCGA barcode (its first three parts), the same in every data set that has the patient.

    Raises UserError if the name does not begin with a barcode.

    >>> patient("TCGA-A7-A13E-01Z-00-DX1")
    'TCGA-A7-A13E'
    """
    if match := BARCODE.match(name):
        return match[0]
    raise UserError(f"{name} does not begin with a TCGA barcode, which says whose it is: undo its renaming")


def boxes(height: int, width: int, piece: int) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom of the pieces of an image, row by row.

    >>> boxes(3, 5, 4)
    [(0, 0, 2, 3), (2, 0, 5, 3)]
    """
    columns, rows = (
        [(size * number // count, size * (number + 1) // count) for number in range(count)]
        for size, count in ((width, -(-width // piece)), (height, -(-height // piece)))
    )
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]
