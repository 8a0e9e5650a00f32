"""Outlines on a slide as GeoJSON for QuPath, a table, and a picture."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import shapely
from shapely.geometry.base import BaseGeometry

from ..files import write_atomically
from ..slide import Slide
from .geojson import class_colour, feature, measurements, write_features
from .overview import Overview


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
