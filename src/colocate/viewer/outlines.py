"""Many outlines on a slide: drawn for the part and at the zoom that is asked for, and found where one points."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import shapely
from jaxtyping import Bool, Float64, Int64
from PIL import Image, ImageDraw

from colocate.base.errors import UserError
from colocate.base.tables import read_table
from colocate.prediction.outputs import beside
from colocate.viewer.cache import kept
from colocate.viewer.pyramid import RGBA, Region

SMALL_PX = 4  # what is smaller is drawn as a square of its area: all at once, however many there are
FINE = 2  # lines are drawn so many times larger and then reduced, which smooths them
LINE_PX = 3  # before that
FILL = 60  # opacity
TILE = (0, 90, 255)
GEOMETRY, PROPERTIES = '"geometry":', ',"properties":'  # in a line of GeoJSON
CLASS, MEASURED = '"classification":', ',"measurements":'  # in its properties
NEAR_PX = 3  # how far from an outline one may point
PLACED, JUDGED = ("x", "y", "size", "mpp", "slide_mpp"), ("tissue", "sharpness")  # columns of a manifest
MOST_POINTS = 4000  # of an outline that is sent to be shown alone


@final
@dataclass(frozen=True, eq=False)
class Outlines:
    """n shapes on a slide."""

    shapes: np.ndarray
    """n valid (Multi)Polygons in level0 pixels."""
    names: tuple[str, ...]
    """Of the classes."""
    colours: tuple[tuple[int, int, int], ...]
    """Of the classes: red, green, blue."""
    classes: Int64[np.ndarray, " n"]
    """The number of each one's class."""
    scores: Float64[np.ndarray, " n"]
    """In [0, 1]."""
    values: dict[str, Float64[np.ndarray, " n"]]
    """What else is known of each, by what it is; nan where it is not."""

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.shapes)

    @cached_property
    def _bounds(self) -> Float64[np.ndarray, "n 4"]:
        return shapely.bounds(self.shapes)

    @cached_property
    def _sizes(self) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n 2"]]:
        """Areas, and centres."""
        return shapely.area(self.shapes), shapely.get_coordinates(shapely.centroid(self.shapes))

    def visible(self, classes: Sequence[int], least: float) -> Bool[np.ndarray, " n"]:
        """Which are of some of the classes and have a score of `least` or more."""
        chosen = np.zeros(len(self.names), bool)
        chosen[[number for number in classes if 0 <= number < len(chosen)]] = True
        return chosen[self.classes] & (self.scores >= least)

    def draw(self, place: Region, visible: Bool[np.ndarray, " n"]) -> RGBA:
        """Draw those that lie in a part of the slide; the work is bounded by the part's pixels, not by their number."""
        edge = 2 * place.scale
        wide, high = place.width * place.scale, place.height * place.scale
        box = shapely.box(place.x - edge, place.y - edge, place.x + wide + edge, place.y + high + edge)
        found = np.sort(self._tree.query(box))
        found = found[visible[found]]
        bounds = self._bounds[found]
        small = (bounds[:, 2:] - bounds[:, :2]).max(1) < SMALL_PX * place.scale
        below = self._squares(place, found[small])
        if small.all():
            return below
        picture = Image.fromarray(below)
        picture.alpha_composite(self._lines(place, found[~small], box))
        return np.asarray(picture)

    def _squares(self, place: Region, these: Int64[np.ndarray, " m"]) -> RGBA:
        """Each shape as a square of its area in the right place, which covers parts of up to 6 x 6 pixels."""
        areas, centres = (values[these] for values in self._sizes)
        side = np.sqrt(areas) / place.scale
        corner = (centres - (place.x, place.y)) / place.scale - side[:, None] / 2
        first = np.floor(corner).astype(int)
        colours = np.array(self.colours, float).reshape(-1, 3)[self.classes[these]]
        pixels = np.zeros((4, place.height * place.width))
        for dy, dx in np.ndindex(SMALL_PX + 2, SMALL_PX + 2):
            x, y = first[:, 0] + dx, first[:, 1] + dy
            cover = (np.minimum(x + 1, corner[:, 0] + side) - np.maximum(x, corner[:, 0])).clip(0)
            cover *= (np.minimum(y + 1, corner[:, 1] + side) - np.maximum(y, corner[:, 1])).clip(0)
            inside = (cover > 0) & (x >= 0) & (y >= 0) & (x < place.width) & (y < place.height)
            spot, part = (y * place.width + x)[inside], cover[inside]
            for total, weights in zip(pixels, (part, *(colours[inside].T * part)), strict=True):
                total += np.bincount(spot, weights, len(total))
        share = pixels[0].clip(1e-12)
        mixed = np.vstack([pixels[1:] / share, 255 * pixels[0].clip(0, 1)])
        return mixed.T.round().astype(np.uint8).reshape(place.height, place.width, 4)

    def _lines(self, place: Region, these: Int64[np.ndarray, " m"], box: Any) -> Image.Image:
        """Each shape tinted and outlined; parts within others, and in the holes of others, last."""
        shapes, owners = shapely.get_parts(self.shapes[these], return_index=True)
        filled = shapely.area(shapely.polygons(shapely.get_exterior_ring(shapes)))
        order = np.argsort(-filled, kind="stable")  # a hole is cut out of all that is drawn before
        shapes, owners = shapely.simplify(shapes[order], 0.3 * place.scale), these[owners[order]]
        bounds, frame = shapely.bounds(shapes), box.bounds
        reaches = (bounds[:, :2] < frame[:2]).any(1) | (bounds[:, 2:] > frame[2:]).any(1)
        shapes[reaches] = shapely.clip_by_rect(shapes[reaches], *frame)
        parts, whole = shapely.get_parts(shapes, return_index=True)
        polygons = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
        parts, owners = parts[polygons], owners[whole[polygons]]
        rings, of_part = shapely.get_rings(parts, return_index=True)
        holes = np.zeros(len(rings), bool)
        holes[1:] = of_part[1:] == of_part[:-1]
        points, of_ring = shapely.get_coordinates(rings, return_index=True)
        points = ((points - (place.x, place.y)) * (FINE / place.scale)).astype(np.float32)
        ends = np.searchsorted(of_ring, np.arange(len(rings) + 1))
        picture = Image.new("RGBA", (FINE * place.width, FINE * place.height))
        draw = ImageDraw.Draw(picture)
        classes = self.classes[owners[of_part]].tolist()
        for start, stop, hole, class_ in zip(
            ends[:-1].tolist(), ends[1:].tolist(), holes.tolist(), classes, strict=True
        ):
            ring = points[start:stop].ravel().tolist()
            colour = self.colours[class_]
            draw.polygon(ring, (0, 0, 0, 0) if hole else (*colour, FILL))
            draw.line(ring, (*colour, 255), LINE_PX)
        return picture.reduce(FINE)

    def at(self, x: float, y: float, scale: float, visible: Bool[np.ndarray, " n"]) -> int | None:
        """The number of the shape at level0 (x, y), the smallest of several, or within `NEAR_PX` pixels of `scale`."""
        point = shapely.Point(x, y)
        found = self._tree.query(point, "dwithin", NEAR_PX * scale)
        found = found[visible[found]]
        if not len(found):
            return None
        return int(min(found, key=lambda one: (shapely.distance(self.shapes[one], point), self._sizes[0][one])))

    def describe(self, number: int) -> dict[str, Any]:
        """All that is known of a shape, and its outline as rings of points x, y."""
        shape = self.shapes[number]
        if (points := shapely.get_num_coordinates(shape)) > MOST_POINTS:
            shape = shapely.simplify(shape, np.sqrt(shape.area) * points / MOST_POINTS / 1000)
        rings = shapely.get_rings(shapely.get_parts(shape))
        return {
            "number": number,
            "class": self.names[self.classes[number]],
            "colour": self.colours[self.classes[number]],
            "score": float(self.scores[number]),
            "values": {
                name: None if np.isnan(column[number]) else float(column[number])
                for name, column in self.values.items()
            },
            "bounds": self._bounds[number].tolist(),
            "rings": [shapely.get_coordinates(ring).tolist() for ring in rings],
        }


@kept(4, files=lambda place, _: (beside(place, ".geojson"), beside(place, ".csv")))
def read_predictions(place: Path, origin: tuple[int, int]) -> Outlines:
    """Read what `colocate predict` wrote as PLACE.geojson and PLACE.csv; `origin`: of the slide.

    Raises UserError: a file cannot be read, or they do not belong together.
    """
    path = beside(place, ".geojson")
    table = read_table(beside(place, ".csv"))
    try:
        lines = [line.rstrip(",") for line in path.read_text("utf-8").rstrip("\n").split("\n")[1:-1]]  # a feature each
        # of whole features shapely reads half as fast
        drawn = [line[line.index(GEOMETRY) + len(GEOMETRY) : line.index(PROPERTIES)] for line in lines]
        shapes = np.asarray(shapely.from_geojson(drawn), dtype=object).reshape(-1)
        said = [line[line.index(CLASS) + len(CLASS) : line.index(MEASURED)] for line in lines]
        of_class, classes = np.unique(said, return_inverse=True)
        told = [json.loads(one) for one in of_class.tolist()]
        names, colours = tuple(str(one["name"]) for one in told), tuple(tuple(one["color"]) for one in told)
        if len(shapes) != len(table):
            raise ValueError(f"{len(shapes)} outlines, {len(table)} lines")
        columns = {name: table[name].cast(pa.float64()).to_numpy() for name in table.column_names[2:]}
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException, shapely.errors.ShapelyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} and its .csv are not as `colocate predict` wrote them ({reason}): predict the slide again"
        ) from error
    shapes = shapely.transform(shapes, lambda points: points + origin)
    scores = columns.pop("score")
    return Outlines(shapes, names, colours, classes.reshape(-1), scores, columns)


@kept(4, files=lambda part: (part,))
def read_tiles(part: Path) -> Outlines:
    """Read the tiles that were cut of a slide, from its part of the manifest. Raises UserError: it cannot be read."""
    table = read_table(part, [*PLACED, *JUDGED])
    x, y, size, mpp, slide_mpp = (table[name].to_numpy().astype(float) for name in PLACED)
    side = size * mpp / slide_mpp
    shapes = np.asarray(shapely.box(x, y, x + side, y + side), dtype=object).reshape(-1)
    values = {name: table[name].to_numpy().astype(float) for name in JUDGED}
    return Outlines(shapes, ("tile",), (TILE,), np.zeros(len(x), np.int64), np.ones(len(x)), values)
