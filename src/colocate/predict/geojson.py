"""Objects as GeoJSON that QuPath (0.4 or newer) opens: an outline with its class, score and measurements each."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from ..figures.style import BLUE, GREEN, ORANGE, VERMILION
from ..files import write_atomically

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
