"""The contact sheet of a prepared data set: some of its images with their labels drawn over them."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int32, UInt8
from PIL import Image

from colocate.data.contact_sheet import contact_sheet
from colocate.data.labelled import Labelled

SHEET = "contact-sheet.png"
SHOWN = 24
SIDE_PX, COLUMNS = 128, 6
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
    contact_sheet(thumbs, out, SIDE_PX, COLUMNS)


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
