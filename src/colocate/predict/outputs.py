"""What was found on a slide as files: GeoJSON for QuPath, a CSV table, a picture, and a marker that all are there."""

from __future__ import annotations

import json
import math
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
import shapely
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from shapely.geometry.base import BaseGeometry
from skimage.measure import label, regionprops

from colocate.base.errors import UserError
from colocate.base.files import light_png, write_atomically
from colocate.base.shapes import bevelled, outline
from colocate.base.tables import write_csv
from colocate.base.text import changes
from colocate.report.style import BLUE, GREEN, ORANGE, VERMILION
from colocate.slides.slide import Slide

Kind = Literal["detection", "annotation"]
DECIMALS = 2  # of coordinates in pixels
SIDES_PX = (1500, 1200, 950, 750, 600, 450)  # of the picture's longer side; the largest whose PNG is light
LINE_PX = 2
LONGEST_PX = 8192  # of the picture in which regions are outlined: of larger maps every second, fourth, ... pixel
ENDINGS = (".geojson", ".csv", ".png", ".tif")
# Okabe and Ito's palette, those first that show best on pink and purple tissue.
COLOURS = (GREEN, "#f0e442", "#56b4e9", VERMILION, BLUE, ORANGE, "#999999", "#cc79a7")


def class_colour(class_: int) -> tuple[int, int, int]:
    """Return red, green and blue of a class (1, 2, ...); colours repeat after eight classes.

    >>> class_colour(1)
    (0, 158, 115)
    """
    red, green, blue = bytes.fromhex(COLOURS[(class_ - 1) % len(COLOURS)][1:])
    return red, green, blue


def measurements(shape: BaseGeometry, mpp: float) -> dict[str, float]:
    """Measure an outline in pixels of `mpp` micrometres.

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
    shape: BaseGeometry, name: str, score: float, colour: tuple[int, int, int], mpp: float, kind: Kind = "detection"
) -> dict[str, Any]:
    """Make a GeoJSON feature of a (Multi)Polygon in level0 pixels of `mpp` micrometres, of the class `name`.

    Its id is a UUID made of all the rest.
    """
    rounded = shapely.transform(shapely.orient_polygons(shape), lambda points: points.round(DECIMALS))
    values = measurements(shape, mpp) | {"Score": score}
    content = {
        "type": "Feature",
        "geometry": shapely.geometry.mapping(rounded),
        "properties": {
            "objectType": kind,
            "classification": {"name": name, "color": list(colour)},
            "measurements": {key: round(value, 4) for key, value in values.items()},
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


class Outlined(NamedTuple):
    """Something on a slide."""

    shape: BaseGeometry
    """In level0 pixels."""
    class_: int
    score: float


def write_outlines(
    place: Path, slide: Slide, outlines: Iterable[Outlined], names: Mapping[int, str], kind: Kind
) -> dict[str, int]:
    """Write PLACE.geojson, PLACE.csv and PLACE.png as the outlines come; returns how many there are of each class.

    Places in the files are counted from where the scanned area begins (`slide.origin`), as QuPath counts them. Each
    file is whole or not there.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    picture = Image.fromarray(slide.thumbnail(SIDES_PX[0]))
    rows: list[tuple[object, ...]] = []
    counts: Counter[int] = Counter()

    def features() -> Iterator[dict[str, Any]]:
        for shape, class_, score in outlines:
            colour = class_colour(class_)
            _draw(picture, shape, colour, picture.width / slide.width)
            moved = shapely.transform(shape, lambda points: points - slide.origin)
            item = feature(moved, names[class_], score, colour, slide.mpp, kind)
            *sizes, score = item["properties"]["measurements"].values()
            rows.append((item["id"], names[class_], *(f"{value:.4f}" for value in (score, *sizes))))
            counts[class_] += 1
            yield item

    write_features(beside(place, ".geojson"), features())
    columns = ["id", "class", "score", *measurements(shapely.box(0, 0, 1, 1), slide.mpp)]
    write_csv(beside(place, ".csv"), columns, rows)
    packed = light_png(_small(picture, side) for side in SIDES_PX)
    write_atomically(beside(place, ".png"), lambda file: file.write(packed))
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
        raise UserError(f"{path} is of other settings ({changed}): choose another --out")


@final
class Marker:
    """SLIDE.json: written with the settings before the other files, and with the results after them."""

    def __init__(self, place: Path, settings: Mapping[str, Any]) -> None:
        self.place = place
        self.path = beside(place, ".json")
        self.settings = settings

    def finished(self) -> bool:
        """Tell whether the slide is done.

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
        check_settings(self.path, settings, self.settings)
        return finished

    def write(self, results: Mapping[str, Any] | None = None) -> None:
        """Say that files of these settings may be there from now on; with results, that all are."""
        content = {"settings": self.settings, "finished": results is not None, **(results or {})}
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(self.path, lambda file: file.write(text.encode()))


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
    seen, confidence = np.ascontiguousarray(seen[::step, ::step]), np.ascontiguousarray(confidence[::step, ::step])
    for class_ in classes:
        for region in regionprops(label(seen == class_, connectivity=1), confidence):
            if region.area * step**2 >= least:
                shape = bevelled(outline(region.image, *region.bbox[:2]))
                shape = shapely.transform(shape, lambda points: points * (step * scale))
                yield Outlined(shape, class_, float(region.intensity_mean) / 255)
