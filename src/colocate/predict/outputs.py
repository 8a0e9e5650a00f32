"""A map of classes becomes regions: connected pixels of one class, outlined."""

from __future__ import annotations

import csv
import io
import json
import math
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, final

import numpy as np
import shapely
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from scipy import ndimage
from shapely.geometry.base import BaseGeometry

from colocate.base.errors import UserError
from colocate.base.files import light_png, write_atomically
from colocate.base.shapes import bevelled, outline
from colocate.base.text import changes
from colocate.report.style import BLUE, GREEN, ORANGE, VERMILION
from colocate.slides.slide import Slide

DECIMALS = 2
"""Of coordinates in pixels."""
# Okabe and Ito's palette, those first that show best on pink and purple tissue.
COLOURS = (GREEN, "#f0e442", "#56b4e9", VERMILION, BLUE, ORANGE, "#999999", "#cc79a7")


def class_colour(class_: int) -> tuple[int, int, int]:
    """Red, green and blue of a class (1, 2, ...); after eight classes they start again.

    >>> class_colour(1)
    (0, 158, 115)
    """
    red, green, blue = bytes.fromhex(COLOURS[(class_ - 1) % len(COLOURS)][1:])
    return red, green, blue


def measurements(shape: BaseGeometry, mpp: float) -> dict[str, float]:
    """Size and form of an outline in pixels of `mpp` micrometres.

    Holes count for the area alone. Circularity is 4 pi area / perimeter^2 of the outer outline, 1 for a disc. The
    diameters are the longest and the shortest distance of two parallel lines with the object between them.

    >>> measurements(shapely.box(0, 0, 30, 40), mpp=0.5)["Max diameter µm"]
    25.0
    """
    parts = [shapely.Polygon(part.exterior) for part in shapely.get_parts(shape)]
    filled = parts[0] if len(parts) == 1 else shapely.union_all(parts)
    corners = shapely.get_coordinates(shape.convex_hull)
    edges = np.diff(corners, axis=0)
    normals = np.stack([-edges[:, 1], edges[:, 0]]) / np.linalg.norm(edges, axis=1)
    apart = corners[:, None] - corners
    return {
        "Area µm^2": shape.area * mpp**2,
        "Perimeter µm": filled.length * mpp,
        "Circularity": min(1.0, 4 * math.pi * filled.area / filled.length**2),
        "Max diameter µm": float(np.hypot(apart[..., 0], apart[..., 1]).max()) * mpp,
        "Min diameter µm": float(np.ptp(corners @ normals, axis=0).min()) * mpp,
        "Centroid X µm": shape.centroid.x * mpp,
        "Centroid Y µm": shape.centroid.y * mpp,
    }


def feature(
    shape: BaseGeometry,
    name: str,
    score: float,
    colour: tuple[int, int, int],
    measurements: Mapping[str, float],
    kind: Literal["detection", "annotation"] = "detection",
) -> dict[str, Any]:
    """A GeoJSON feature of a Polygon or MultiPolygon in level0 pixels; its id is a UUID made of all the rest.

    name: of its class.
    """
    rounded = shapely.transform(shapely.orient_polygons(shape), lambda points: points.round(DECIMALS))
    content = {
        "type": "Feature",
        "geometry": shapely.geometry.mapping(rounded),
        "properties": {
            "objectType": kind,
            "classification": {"name": name, "color": list(colour)},
            "measurements": {key: round(value, 4) for key, value in measurements.items()} | {"Score": round(score, 4)},
        },
    }
    return {"type": "Feature", "id": str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content)))} | content


def write_features(path: Path, features: Iterable[dict[str, Any]]) -> None:
    """Write features as a FeatureCollection, a line each, as they come: the file is whole or not there.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """

    def write(file: Any) -> None:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for number, item in enumerate(features):
            file.write(b",\n" if number else b"\n")
            file.write(json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())
        file.write(b"\n]}\n")

    write_atomically(path, write)


SIDES_PX = (1500, 1200, 950, 750, 600, 450)  # of the longer side; the largest whose PNG is light
LINE_PX = 2


@final
class Overview:
    """Outlines drawn one by one, then written as a PNG of at most 1,500 px and 300 kB."""

    def __init__(self, slide: Slide) -> None:
        self.picture = Image.fromarray(slide.thumbnail(SIDES_PX[0]))
        self.scale = self.picture.width / slide.width
        self.draw = ImageDraw.Draw(self.picture)

    def add(self, shape: BaseGeometry, colour: tuple[int, int, int]) -> None:
        """An outline in level0 pixels."""
        for polygon in shapely.get_parts(shape):
            for ring in (polygon.exterior, *polygon.interiors):
                points = shapely.get_coordinates(ring) * self.scale
                self.draw.line(points.ravel().tolist(), colour, LINE_PX)

    def write(self, path: Path) -> None:
        """Write the picture, smaller where it would be too heavy. Raises UserError where it cannot be written."""
        packed = light_png(self._versions())
        write_atomically(path, lambda file: file.write(packed))

    def _versions(self) -> Iterator[Image.Image]:
        for side in SIDES_PX:
            smaller = self.picture.copy()
            smaller.thumbnail((side, side), Image.Resampling.BOX)
            yield smaller.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


class Outlined(NamedTuple):
    """Something on a slide."""

    shape: BaseGeometry
    """In level0 pixels."""
    class_: int
    score: float


def write_outlines(
    place: Path,
    slide: Slide,
    outlines: Iterable[Outlined],
    names: Mapping[int, str],
    kind: Literal["detection", "annotation"],
) -> dict[str, int]:
    """Write PLACE.geojson, PLACE.csv and PLACE.png as the outlines come; returns how many there are of each class.

    Places in the files are counted from where the scanned area begins (`slide.origin`), as QuPath counts them. Each
    file is whole or not there.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    overview = Overview(slide)
    counts: Counter[int] = Counter()

    def features(table: Any) -> Iterator[dict[str, Any]]:
        rows = csv.writer(table, lineterminator="\n")
        sizes = list(measurements(shapely.box(0, 0, 1, 1), slide.mpp))
        rows.writerow(["id", "class", "score", *sizes])
        for shape, class_, score in outlines:
            colour = class_colour(class_)
            overview.add(shape, colour)
            counts[class_] += 1
            moved = shapely.transform(shape, lambda points: points - slide.origin)
            its = measurements(moved, slide.mpp)
            item = feature(moved, names[class_], score, colour, its, kind)
            rows.writerow([item["id"], names[class_], f"{score:.4f}", *(f"{its[size]:.4f}" for size in sizes)])
            yield item

    def write(file: io.BufferedWriter) -> None:
        table = io.TextIOWrapper(file, "utf-8", newline="")
        write_features(beside(place, ".geojson"), features(table))
        table.detach()  # flushes, and leaves the file open

    write_atomically(beside(place, ".csv"), write)
    overview.write(beside(place, ".png"))
    return {name: counts[class_] for class_, name in names.items()}


def beside(place: Path, ending: str) -> Path:
    """A slide's file; a slide's name may have dots in it.

    >>> beside(Path("out/slide 1.2"), ".csv").name
    'slide 1.2.csv'
    """
    return place.with_name(place.name + ending)


ENDINGS = (".geojson", ".csv", ".png", ".tif")


@final
class Marker:
    """SLIDE.json: written with the settings before anything else, and with the results after all else."""

    def __init__(self, place: Path, settings: Mapping[str, Any]) -> None:
        self.place = place
        self.path = beside(place, ".json")
        self.settings = json.loads(json.dumps(settings))

    def finished(self) -> bool:
        """Whether the slide is done.

        Raises:
            UserError: its files are of other settings, or of someone else.
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
        if changed := changes(settings, self.settings):
            raise UserError(f"{self.path} is of other settings ({changed}): choose another --out")
        return finished

    def begin(self) -> None:
        """Files of these settings may be there from now on."""
        self._write({"settings": self.settings, "finished": False})

    def finish(self, results: Mapping[str, Any]) -> None:
        """All files are there."""
        self._write({"settings": self.settings, "finished": True, **results})

    def drop(self) -> None:
        """Remove all of the slide's files."""
        for ending in (*ENDINGS, ".json"):
            beside(self.place, ending).unlink(missing_ok=True)

    def _write(self, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(self.path, lambda file: file.write(text.encode()))


LONGEST_PX = 8192
"""Of the picture in which regions are outlined: of larger maps every second, fourth, ... pixel is taken."""


def regions(
    seen: UInt8[np.ndarray, "h w"],
    confidence: UInt8[np.ndarray, "h w"],
    classes: Collection[int],
    least: float,
    scale: float,
) -> Iterator[Outlined]:
    """The regions of some classes, those of the first class first; class i stands in `seen` as i + 1.

    Pixels that touch at a corner only are not connected. `least`: pixels that a region has at least; `scale`: level0
    pixels a pixel of the map. A region's score is the mean confidence of its pixels (in 255ths there).
    """
    step = 1
    while max(seen.shape) / step > LONGEST_PX:
        step *= 2
    seen, confidence = np.ascontiguousarray(seen[::step, ::step]), np.ascontiguousarray(confidence[::step, ::step])
    for class_ in classes:
        labelled, _ = cast(Any, ndimage.label(seen == class_ + 1))
        areas = np.bincount(labelled.ravel())
        for id, where in enumerate(ndimage.find_objects(labelled), start=1):
            if where is None or areas[id] * step**2 < least:
                continue
            mask = labelled[where] == id
            shape = bevelled(outline(mask, where[0].start, where[1].start))
            score = float(confidence[where][mask].mean()) / 255
            yield Outlined(shapely.transform(shape, lambda points: points * (step * scale)), class_, score)
