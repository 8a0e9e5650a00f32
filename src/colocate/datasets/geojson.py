"""GeoJSON, as QuPath exports it: one file of polygons beside each image, in the image's pixels.

SRC/items.csv may say more of the images: columns path (its name, with or without ending), source (case), mpp, split.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Int32
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.shapes import Canvas, Remarks
from colocate.data.decode import header
from colocate.datasets.files import IMAGES, Known, by_stem, caution, pairs, read_json, read_table, split
from colocate.datasets.writer import Draft, Facts

NAMELESS = "object"
NO_POLYGON = "Features that are no polygons, left out"


class _Feature(NamedTuple):
    name: str
    class_: str
    polygons: Any
    """As `Canvas.outline` takes them; None if the feature is a point, a line or the like."""
    geometry: str


def drafts(
    src: Path,
    *,
    images: str = ".",
    mpp: float | None = None,
    test_share: float | None = None,
    skip_broken: bool = False,
) -> tuple[Facts, Iterator[Draft]]:
    """The images in `images` (a folder, seen from `src`), each with NAME.geojson or NAME.json in `src`.

    A feature's class is its classification's name, "object" if it has none; classes are numbered by name. All objects
    are drawn once before the first image is written, so that a broken one is named at once. With `skip_broken`, those
    without area or outside of their image, and points and lines, are left out and said. See `known.split` for the
    split.

    Raises:
        UserError: an image or its outlines are missing, a file is no GeoJSON, a feature is broken, or items.csv does
            not fit the images.
    """
    image_files = by_stem(src / images)
    found = list(pairs(image_files, _outlines(src), src))
    remarks = Remarks()
    seen: dict[str, int] = {}
    used: set[int] = set()
    for _, image, outlines in found:
        features = _features(outlines)
        for feature in features:
            seen.setdefault(feature.class_, len(seen) + 1)
        used.update(_draw(image, outlines, features, seen, remarks, skip_broken)[1].values())
    labels = {name: number for number, name in enumerate(sorted(name for name in seen if seen[name] in used), start=1)}
    if not labels:
        raise UserError(f"{src} has no outline in any of its {len(found)} files: export the objects again")
    table = src / "items.csv"
    rows = read_table(table, image_files) if table.exists() else {}
    known = {name: rows.get(name, Known()) for name in image_files}
    scheme, parts = split(known, test_share, table)
    name = src.absolute().name
    notes = (*caution(known, name), *remarks.notes())
    return Facts(name, "instances", tuple(labels), "Not stated.", notes=notes), (
        Draft(
            name,
            image,
            mask,
            row.source,
            mpp if mpp is not None and isnan(row.mpp) else row.mpp,
            {scheme: part},
            object_classes,
        )
        for (name, image, outlines), row, part in zip(found, known.values(), parts, strict=True)
        for mask, object_classes in [_draw(image, outlines, _features(outlines), labels, Remarks(), skip_broken)]
    )


def _outlines(src: Path) -> dict[str, Path]:
    """The files of outlines by the names of their images: QuPath calls that of a.tif a.geojson or a.tif.geojson."""
    files: dict[str, Path] = {}
    for stem, path in by_stem(src, (".geojson", ".json")).items():
        name = Path(stem).stem if Path(stem).suffix.lower() in IMAGES else stem
        if other := files.get(name):
            raise UserError(f"{path} and {other.name} are of one image: keep one of them")
        files[name] = path
    return files


def _features(path: Path) -> list[_Feature]:
    """The features of a collection, a bare list, or a single one. Raises UserError if the file is none of these."""
    document = read_json(path)
    if isinstance(document, dict):
        document = document.get("features", [document])
    if not isinstance(document, list):
        raise UserError(f"{path} is no GeoJSON of features: export it again")
    return [_feature(path, feature, f"feature {number}") for number, feature in enumerate(document, start=1)]


def _feature(path: Path, feature: Any, name: str) -> _Feature:
    try:
        kind, corners = str(feature["geometry"]["type"]), feature["geometry"].get("coordinates")
        classification = (feature.get("properties") or {}).get("classification") or {}
        if isinstance(classification, str):
            classification = {"name": classification}
        names = classification.get("names") or []
        class_ = str(classification.get("name") or ": ".join(names) or NAMELESS)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}, {name} is no GeoJSON feature with a geometry: export it again, or remove it"
        ) from error
    polygons = {"Polygon": [corners], "MultiPolygon": corners or []}.get(kind)
    return _Feature(name, class_, polygons, kind)


def _draw(
    image: Path, outlines: Path, features: list[_Feature], labels: dict[str, int], remarks: Remarks, skip: bool
) -> tuple[Int32[Tensor, "h w"], dict[int, int]]:
    """The object at each pixel, and the class of each object (0 where it has none in `labels`)."""
    width, height = header(image.read_bytes(), str(image)).size
    canvas = Canvas(height, width, outlines, remarks, skip=skip)
    for feature in features:
        if feature.polygons is not None:
            canvas.outline(feature.name, feature.polygons, labels.get(feature.class_, 0))
        elif skip:
            canvas.remark(NO_POLYGON, feature.name)
        else:
            remedy = "remove it, or leave such features out with --skip-broken"
            raise UserError(f"{outlines}, {feature.name} is a {feature.geometry}, not a polygon: {remedy}")
    return canvas.finish()
