"""GeoJSON, as QuPath exports it: one file of polygons beside each image, in the image's pixels.

SRC/items.csv may say more of the images: columns path (its name, with or without ending), source (case), mpp, split.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import shapely

from colocate.base.errors import UserError
from colocate.base.files import absolute
from colocate.base.shapes import Feature, class_name, read_geojson
from colocate.datasets.files import IMAGES, by_stem, pairs
from colocate.datasets.outlines import Canvas, Remarks, outlined_drafts
from colocate.datasets.own import Own, read_items, whole_text
from colocate.datasets.writer import Converted, Facts
from colocate.slides.readers import ENDINGS

NAMELESS = "object"
DETECTED = ("detection", "cell")
POLYGONS = ("Polygon", "MultiPolygon", "GeometryCollection")
NO_POLYGON = "Features that are no polygons, left out"
STARRED = "Features whose class ends with *, as QuPath marks what is no object, left out"
CORES = "Cores of a tissue microarray, left out"
AROUND = "Annotations without a class around detections, left out (give those that are objects a class)"
NUCLEI = "Cells of QuPath with a nucleus, taken by the cell's outline"


def drafts(
    src: Path,
    *,
    images: str = ".",
    mpp: float | None = None,
    test_share: float | None = None,
    skip_broken: bool = False,
) -> Converted:
    """Read the images in `images` (a folder, seen from `src`), each with NAME.geojson or NAME.json in `src`.

    A feature's class is its classification's name, "object" if it has none; classes are numbered by name. With
    `skip_broken`, objects without area or outside of their image, and points and lines, are left out and said; what
    `objects_in` leaves out always is.

    Raises UserError: an image or its outlines are missing, a file is no GeoJSON, a feature is broken, or items.csv does
    not fit the images.
    """
    image_files = by_stem(src / images)
    table = src / "items.csv"
    known = read_items(table, image_files, mpp)
    found = {
        name: Own(image, outlines, known[name])
        for name, image, outlines in pairs(image_files, outline_files(src, image_files), src)
    }
    facts = Facts(absolute(src).name, "instances", (), "Not stated.")
    return outlined_drafts(facts, found, _draw, Remarks(), test_share=test_share, where=table, skip=skip_broken)


def outline_files(src: Path, images: Collection[str] = ()) -> dict[str, Path]:
    """The files of outlines by the names of their images: QuPath calls that of a.tif a.geojson or a.tif.geojson, and
    takes .ome.tif for one ending."""
    files: dict[str, Path] = {}
    for stem, path in by_stem(src, (".geojson", ".json")).items():
        name = Path(stem).stem if Path(stem).suffix.lower() in (*IMAGES, *ENDINGS) else stem
        if name not in images and f"{name}.ome" in images:
            name += ".ome"
        if other := files.get(name):
            raise UserError(f"{path} and {other.name} are of one image: keep one of them")
        files[name] = path
    return files


def _draw(own: Own, canvas: Canvas) -> None:
    for feature, class_ in objects_in(read_geojson(own.labels), own.labels, canvas.remark):
        if feature.kind in POLYGONS:
            canvas.shape(feature.name, feature.shape, feature.mended, class_)
        else:
            canvas.leave_out(NO_POLYGON, feature.name, f"is a {feature.kind}, not a polygon")


def objects_in(
    features: Sequence[Feature], path: Path, remark: Callable[[str, str], None]
) -> Iterator[tuple[Feature, str]]:
    """The objects among features, with their classes; `remark` is told what QuPath means as none.

    That are classes whose names end with * (Region*, Ignore*), cores of a tissue microarray, and annotations without a
    class in which detections lie: QuPath was asked to look for them there.
    """
    found = [one.shape.representative_point() for one in features if one.object_type in DETECTED and one.shape.area]
    tree = shapely.STRtree(found)
    for feature in features:
        class_ = class_of(feature, path)
        if class_.endswith("*"):
            remark(STARRED, feature.name)
        elif feature.object_type == "tma_core":
            remark(CORES, feature.name)
        elif (
            feature.object_type == "annotation"
            and not class_name(feature)
            and tree.query(feature.shape, "contains").size
        ):
            remark(AROUND, feature.name)
        else:
            if feature.nucleus:
                remark(NUCLEI, feature.name)
            yield feature, class_


def class_of(feature: Feature, path: Path) -> str:
    """The name of a feature's class. Raises UserError if it has one that is no name."""
    try:
        return whole_text(class_name(feature) or NAMELESS, f"{path}, {feature.name}")
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}, {feature.name} has a classification without a name: export it again") from error
