"""What was found on a slide as files: GeoJSON for QuPath, a CSV table, a picture, and a marker that all are there."""

from __future__ import annotations

import errno
import json
import math
import tempfile
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
import shapely
import tifffile
from jaxtyping import Float64, UInt8, UInt16
from PIL import Image, ImageDraw
from shapely.geometry.base import BaseGeometry
from skimage.measure import label, regionprops

from colocate.base.errors import UserError
from colocate.base.files import light_png, reserve, write_atomically
from colocate.base.shapes import bevelled, outline
from colocate.base.tables import write_csv
from colocate.base.text import changes
from colocate.pages.style import BLUE, GREEN, ORANGE, VERMILION
from colocate.slides.slide import Slide

Kind = Literal["detection", "annotation"]
DECIMALS = 2  # of coordinates in pixels
SIDES_PX = (1500, 1200, 950, 750, 600, 450)  # of the picture's longer side; the largest whose PNG is light
LINE_PX = 2
AT_ONCE = 500  # outlines that are measured together
LONGEST_PX = 8192  # of the picture in which regions are outlined: of larger maps every second, fourth, ... pixel
FEATURE_SETTINGS = "settings"  # attribute of a file of features: all that decides its numbers
ROWS = 8192  # of features, read at once
UNSEEN = 255  # the class of what is no tissue
TILE_PX = 512  # of the map of classes
SMALLEST_PX = 1024  # longer side of its coarsest level
LARGE_BYTES = 2 << 30  # from here on BigTIFF: classic TIFF ends at 4 GiB
ENDINGS = (".geojson", ".csv", ".png", ".tif")  # the last of maps of classes alone
# Okabe and Ito's palette, those first that show best on pink and purple tissue.
COLOURS = (GREEN, "#f0e442", "#56b4e9", VERMILION, BLUE, ORANGE, "#999999", "#cc79a7")


def class_colour(class_: int) -> tuple[int, int, int]:
    """Return red, green and blue of a class (1, 2, ...); colours repeat after eight classes.

    >>> class_colour(1)
    (0, 158, 115)
    """
    red, green, blue = bytes.fromhex(COLOURS[(class_ - 1) % len(COLOURS)][1:])
    return red, green, blue


class Outlined(NamedTuple):
    """Something on a slide or in a picture."""

    shape: BaseGeometry
    """Polygon or MultiPolygon in level0 pixels, or in those of the picture."""
    class_: int
    score: float


def measurements(shapes: Sequence[BaseGeometry], mpp: float) -> dict[str, Float64[np.ndarray, " n"]]:
    """Measure outlines in pixels of `mpp` micrometres.

    Holes count for the area alone. Circularity is 4 pi area / perimeter^2 of the outer outline, 1 for a disc. The
    diameters are the longest and the shortest distance of two parallel lines with the object between them.

    >>> measurements([shapely.box(0, 0, 30, 40)], mpp=0.5)["Max diameter µm"]
    array([25.])
    """
    every: Any = np.array(shapes, dtype=object)
    parts, numbers = shapely.get_parts(every, return_index=True)
    outside: Any = shapely.polygons(shapely.get_exterior_ring(parts))
    filled: Any = outside if len(parts) == len(every) else _joined(outside, numbers)
    centres: Any = shapely.centroid(every)
    area, length = shapely.area(filled), shapely.length(filled)
    longest, shortest = _diameters(every)
    return {
        "Area µm^2": shapely.area(every) * mpp**2,
        "Perimeter µm": length * mpp,
        "Circularity": np.minimum(1.0, 4 * math.pi * area / length**2),
        "Max diameter µm": longest * mpp,
        "Min diameter µm": shortest * mpp,
        "Centroid X µm": shapely.get_x(centres) * mpp,
        "Centroid Y µm": shapely.get_y(centres) * mpp,
    }


def _joined(parts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The parts of each object as one shape."""
    groups = np.split(parts, np.flatnonzero(np.diff(numbers)) + 1)
    return np.array([group[0] if len(group) == 1 else shapely.union_all(group) for group in groups], dtype=object)


def _diameters(shapes: np.ndarray) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """The longest and the shortest diameter of each shape, those with as many corners of their hulls at a time."""
    corners, numbers = shapely.get_coordinates(shapely.convex_hull(shapes), return_index=True)
    counts = np.bincount(numbers, minlength=len(shapes))
    longest, shortest = np.zeros(len(shapes)), np.zeros(len(shapes))
    for count in np.unique(counts).tolist():
        these = np.flatnonzero(counts == count)
        hulls = corners[np.isin(numbers, these)].reshape(len(these), count, 2)
        edges = np.diff(hulls, axis=1)
        normals = np.stack([-edges[..., 1], edges[..., 0]], 1) / np.linalg.norm(edges, axis=2)[:, None]
        apart = hulls[:, :, None] - hulls[:, None]
        longest[these] = np.hypot(apart[..., 0], apart[..., 1]).max((1, 2))
        shortest[these] = np.ptp(hulls @ normals, axis=1).min(1)
    return longest, shortest


class Written(NamedTuple):
    """A feature of a GeoJSON file."""

    id: str
    """A UUID made of all the rest."""
    name: str
    values: list[float]
    """The score, then what `measurements` gives."""
    text: str


def features(found: Sequence[Outlined], names: Mapping[int, str], mpp: float, kind: Kind) -> list[Written]:
    """Make GeoJSON features of (Multi)Polygons in pixels of `mpp` micrometres, for QuPath."""
    shapes = [one.shape for one in found]
    oriented = shapely.orient_polygons(np.array(shapes, dtype=object))
    texts = shapely.to_geojson(shapely.transform(oriented, lambda points: points.round(DECIMALS)))
    sizes = {key: column.round(4).tolist() for key, column in measurements(shapes, mpp).items()}
    written = []
    for place, (one, text) in enumerate(zip(found, texts.tolist(), strict=True)):
        values = {key: column[place] for key, column in sizes.items()} | {"Score": round(one.score, 4)}
        classification = {"name": names[one.class_], "color": list(class_colour(one.class_))}
        properties = {"objectType": kind, "classification": classification, "measurements": values}
        spaced = text.replace(",", ", ").replace(":", ": ")
        content = f'{{"type": "Feature", "geometry": {spaced}, "properties": {json.dumps(properties)}}}'
        id = str(uuid.uuid5(uuid.NAMESPACE_OID, content))
        told = json.dumps(properties, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        line = f'{{"type":"Feature","id":"{id}","geometry":{text},"properties":{told}}}'
        *measured, score = values.values()
        written.append(Written(id, names[one.class_], [score, *measured], line))
    return written


def write_features(path: Path, features: Iterable[Written]) -> None:
    """Write features as a FeatureCollection, a line each, as they come: the file is whole or not there.

    Raises UserError: the disk is full or the folder cannot be written.
    """

    def write(file: Any) -> None:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for number, item in enumerate(features):
            file.write(b",\n" if number else b"\n")
            file.write(item.text.encode())
        file.write(b"\n]}\n")

    write_atomically(path, write)


def write_outlines(
    place: Path, slide: Slide, outlines: Iterable[Outlined], names: Mapping[int, str], kind: Kind
) -> dict[str, int]:
    """Write PLACE.geojson, PLACE.csv and PLACE.png as the outlines come; returns how many there are of each class.

    Places in the files are counted from where the scanned area begins (`slide.origin`), as QuPath counts them. Each
    file is whole or not there.

    Raises UserError: the disk is full or the folder cannot be written.
    """
    picture = Image.fromarray(slide.thumbnail(SIDES_PX[0]))
    rows: list[tuple[object, ...]] = []
    counts: Counter[int] = Counter()

    def written() -> Iterator[Written]:
        rest = iter(outlines)
        while some := list(islice(rest, AT_ONCE)):
            for shape, class_, _ in some:
                _draw(picture, shape, class_colour(class_), max(picture.size) / max(slide.width, slide.height))
                counts[class_] += 1
            shapes = shapely.transform([one.shape for one in some], lambda points: points - slide.origin)
            moved = [one._replace(shape=shape) for one, shape in zip(some, shapes, strict=True)]
            for item in features(moved, names, slide.mpp, kind):
                rows.append((item.id, item.name, *(f"{value:.4f}" for value in item.values)))
                yield item

    write_features(beside(place, ".geojson"), written())
    columns = ["id", "class", "score", *measurements([shapely.box(0, 0, 1, 1)], slide.mpp)]
    write_csv(beside(place, ".csv"), columns, rows)
    write_atomically(beside(place, ".png"), light_png(_small(picture, side) for side in SIDES_PX))
    return {name: counts[class_] for class_, name in names.items()}


def _draw(picture: Image.Image, shape: BaseGeometry, colour: tuple[int, int, int], scale: float) -> None:
    """Draw an outline in level0 pixels, `scale` of the picture's pixels each."""
    draw = ImageDraw.Draw(picture)
    for polygon in shapely.get_parts(shape):
        for ring in (polygon.exterior, *polygon.interiors):
            points = shapely.get_coordinates(ring) * scale
            draw.line(points.ravel().tolist(), colour, LINE_PX)


def _small(picture: Image.Image, side: int) -> Image.Image:
    smaller = picture.copy()
    smaller.thumbnail((side, side), Image.Resampling.BOX)
    return smaller.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def beside(place: Path, ending: str) -> Path:
    """Return the path of a slide's file; a slide's name may have dots in it.

    >>> beside(Path("out/slide 1.2"), ".csv").name
    'slide 1.2.csv'
    """
    return place.with_name(place.name + ending)


def check_settings(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError if a file is of other settings than are wanted."""
    if changed := changes(stored, json.loads(json.dumps(wanted))):
        raise UserError(f"{path} is of other settings ({changed}): choose another --out, or remove this slide's files")


@final
class Marker:
    """SLIDE.json: written with the settings before the other files, and with the results after them."""

    def __init__(self, place: Path, settings: Mapping[str, Any]) -> None:
        self.place = place
        self.path = beside(place, ".json")
        self.settings = settings

    def finished(self) -> bool:
        """Tell whether the slide is done, and none of its files was deleted since.

        Raises UserError: its files are of other settings, or of someone else.
        """
        if not self.path.exists():
            if there := [path for ending in ENDINGS if (path := beside(self.place, ending)).exists()]:
                raise UserError(f"{there[0]} is there and not by `colocate predict`: choose another --out")
            return False
        try:
            stored: Any = json.loads(self.path.read_text())
            settings, finished = dict(stored["settings"]), bool(stored["finished"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is not by `colocate predict`: choose another --out") from error
        check_settings(self.path, settings, self.settings)
        written = ENDINGS if settings["task"] == "semantics" else ENDINGS[:-1]
        return finished and all(beside(self.place, ending).exists() for ending in written)

    def write(self, results: Mapping[str, Any] | None = None) -> None:
        """Say that files of these settings may be there from now on; with results, that all are."""
        content = {"settings": self.settings, "finished": results is not None, **(results or {})}
        write_atomically(self.path, json.dumps(content, indent=1) + "\n")


def regions(
    seen: UInt8[np.ndarray, "h w"],
    confidence: UInt8[np.ndarray, "h w"],
    classes: Collection[int],
    least: float,
    scale: float,
) -> Iterator[Outlined]:
    """Outline the regions of some of the classes in a map, those of the first class first.

    Pixels that touch at a corner only are not connected. `least`: pixels that a region has at least; `scale`: level0
    pixels a pixel of the map. A region's score is the mean confidence of its pixels (in 255ths there).
    """
    step = 1
    while max(seen.shape) / step > LONGEST_PX:
        step *= 2
    seen, confidence = (np.ascontiguousarray(_coarser(one, step)) for one in (seen, confidence))
    for class_ in classes:
        for region in regionprops(label(seen == class_, connectivity=1), confidence):
            if region.area * step**2 >= least:
                shape = bevelled(outline(region.image, *region.bbox[:2]))
                shape = shapely.transform(shape, lambda points: points * (step * scale))
                yield Outlined(shape, class_, float(region.intensity_mean) / 255)


def _coarser(pixels: UInt8[np.ndarray, "h w"], step: int) -> UInt8[np.ndarray, "_ _"]:
    """Of each block of `step` x `step` pixels the middle one: by the first all would lie to the right and below."""
    return pixels[tuple(slice(min(step // 2, side - 1), None, step) for side in pixels.shape)]


def class_map(folder: Path, height: int, width: int) -> UInt8[np.ndarray, "2 height width"]:
    """The class of each pixel, `UNSEEN` so far, and its confidence in 255ths, in an unnamed file that goes with them.

    Raises UserError: the disk has no room for it: two bytes a pixel.
    """
    size = 2 * height * width
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            reserve(file, size)  # a mapped file must not meet a full disk
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = f"no room for a map of {size / 2**30:.1f} GiB" if full else error.strerror
            raise UserError(f"{folder}: {reason}; make room, and the same command continues") from error
        both = np.memmap(file, np.uint8, "r+", shape=(2, height, width))
    both[0] = UNSEEN
    return both


def write_class_map(path: Path, classes: UInt8[np.ndarray, "h w"], mpp: float) -> None:
    """Write classes as a tiled TIFF with levels of every second, fourth, ... pixel; whole or not at all.

    Viewers show them in the colours of the outlines.

    Raises UserError: the disk is full or the folder cannot be written.
    """
    steps = [1]
    while max(classes.shape) / steps[-1] > SMALLEST_PX:
        steps.append(2 * steps[-1])

    def content(file: Any) -> None:
        with tifffile.TiffWriter(file, bigtiff=classes.size > LARGE_BYTES) as tiff:
            for step in steps:
                level = _coarser(classes, step)
                tiff.write(
                    _tiles(level),
                    shape=level.shape,
                    dtype=np.uint8,
                    tile=(TILE_PX, TILE_PX),
                    compression="deflate",
                    photometric="palette",
                    colormap=_colours(),
                    subfiletype=int(step > 1),
                    resolution=(10_000 / mpp / step, 10_000 / mpp / step),
                    resolutionunit="CENTIMETER",
                    metadata=None,
                )

    write_atomically(path, content)


def _tiles(level: UInt8[np.ndarray, "h w"]) -> Iterator[UInt8[np.ndarray, "t t"]]:
    """Cut into tiles, row by row; `UNSEEN` beyond the edge."""
    for top in range(0, level.shape[0], TILE_PX):
        for left in range(0, level.shape[1], TILE_PX):
            part = level[top : top + TILE_PX, left : left + TILE_PX]
            tile = np.full((TILE_PX, TILE_PX), UNSEEN, np.uint8)
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def _colours() -> UInt16[np.ndarray, "3 256"]:
    """Return the palette: the classes' colours in outlines; white where there is no tissue."""
    colours = np.full((256, 3), 255, np.uint16)
    colours[:UNSEEN] = [class_colour(class_) for class_ in range(UNSEEN)]
    return np.ascontiguousarray(colours.T * 257)
