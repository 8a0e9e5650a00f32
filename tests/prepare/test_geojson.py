"""GeoJSON as QuPath writes it: classes, holes and parts; what is broken, missing or outside is named."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch

from colocate.base.errors import UserError
from colocate.base.shapes import read_geojson
from colocate.datasets import geojson
from colocate.datasets.labelled import Labelled
from colocate.datasets.writer import write
from tests.data.pictures import picture
from tests.prepare.releases import save

Feature = dict[str, Any]
WIDE, HIGH = 50, 40


def square(left: float, top: float, side: float = 10) -> list[list[float]]:
    ring = [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]
    return [*ring, ring[0]]


def feature(*rings: Any, kind: str = "Polygon", **properties: Any) -> Feature:
    geometry = {"type": kind, "coordinates": rings[0] if kind == "Point" else list(rings)}
    properties = {"objectType": "annotation"} | properties
    return {"type": "Feature", "id": "8a-5e", "geometry": geometry, "properties": properties}


def classed(name: str) -> dict[str, Any]:
    return {"classification": {"name": name, "color": [200, 0, 0]}}


def put(file: Path, *features: Feature) -> Path:
    file.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return file


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Five images of one gland each, the last of none."""
    src = tmp_path / "glands"
    for number in range(5):
        save(picture(number, WIDE, HIGH), src / f"a{number}.png")
        put(src / f"a{number}.geojson", *[feature(square(number, 2), **classed("gland"))][: 4 - number])
    return src


@pytest.fixture
def made(src: Path, tmp_path: Path) -> Callable[..., Labelled]:
    return lambda **options: write(tmp_path / "out", *geojson.drafts(src, **options))


def areas(data: Labelled, number: int) -> list[int]:
    """Of the objects in a mask, in their order."""
    return data.mask(number).unique(return_counts=True)[1].tolist()[1:]


def test_what_qupath_marks_is_no_object(src: Path, made: Callable[..., Labelled]) -> None:
    """A rectangle of Region* around the glands, and one to Ignore*; and a blank after a class is none of its name.

    Objects are annotations with a class, though detections lie in them, and cells, by their outline.
    """
    region = feature(square(0, 0, 38), **classed("Region*"))
    ignored = feature(square(20, 20), **classed("Ignore*"))
    put(src / "a0.geojson", feature(square(0, 2), **classed("gland ")), region, ignored)
    put(src / "a1.geojson", feature(square(0, 0, 25), **classed("gland")), feature(square(4, 10), objectType="cell"))
    cell = feature(square(4, 10), objectType="cell") | {"nucleusGeometry": feature(square(6, 12, 4))["geometry"]}
    put(src / "a2.geojson", cell)
    data = made()
    assert data.classes == ("gland", "object")
    assert [areas(data, number) for number in range(3)] == [[100], [525, 100], [100]]
    assert f"{geojson.STARRED}: 2 (a0.geojson, feature 2; a0.geojson, feature 3)." in data.notes
    assert f"{geojson.NUCLEI}: 1 (a2.geojson, feature 1)." in data.notes


DETECTIONS = [
    {"objectType": "detection"},
    {"objectType": "", "object_type": "cell"},
    {"objectType": "", "id": "PathDetectionObject"},
]


def test_where_qupath_looked_for_objects_is_none(src: Path, made: Callable[..., Labelled]) -> None:
    """All objects exported: the annotation in which nuclei were looked for, the core it lies in, and the nuclei.

    Another annotation without a class, in which nothing was found, is an object.
    """
    core, looked = feature(square(0, 0, 38), objectType="tma_core"), feature(square(0, 0, 25))
    for number, made_of in enumerate(DETECTIONS):
        nuclei = [feature(square(x, 10, 6), **made_of) for x in (4, 14)]
        for nucleus in nuclei:
            nucleus["id"] = made_of.get("id", "8a-5e")
        put(src / f"a{number}.geojson", core, looked, *nuclei, feature(square(30, 30, 8)))
    data = made()
    assert [areas(data, number) for number in range(3)] == [[36, 36, 64]] * 3
    for number, said in enumerate((geojson.CORES, geojson.AROUND), start=1):
        places = "; ".join(f"a{image}.geojson, feature {number}" for image in range(3))
        assert f"{said}: 3 ({places})." in data.notes


def test_one_class(made: Callable[..., Labelled]) -> None:
    data = made(mpp=0.5)
    assert (data.name, data.kind, data.classes) == ("glands", "instances", ("gland",))
    assert [item.name for item in data.items] == [f"a{number}" for number in range(5)]
    for number in range(4):
        expected = torch.zeros(HIGH, WIDE, dtype=torch.int32)
        expected[2:12, number : number + 10] = 1
        assert torch.equal(data.mask(number), expected)
    assert not data.mask(4).any()
    assert {item.mpp for item in data.items} == {0.5}
    assert sorted(map(len, data.parts("images").values())) == [1, 4]
    assert data.notes == ("glands names no cases: a patient may be on both sides.",)
    data.verify()


def test_classes_as_qupath_has_written_them(made: Callable[..., Labelled], src: Path) -> None:
    """A name, several names (a derived class), a bare word, null, an empty one, and no properties at all."""
    classes = [classed("tumour"), {"classification": {"names": ["tumour", "positive"]}}, {"classification": "stroma"},
               {"classification": None}, {"classification": {}}]  # fmt: skip
    features = [feature(square(8 * number, 2, 6), **given) for number, given in enumerate(classes)]
    put(src / "a0.geojson", *features, {**feature(square(2, 20, 6)), "properties": None})
    data = made()
    assert data.classes == ("gland", "object", "stroma", "tumour", "tumour: positive")
    found = data.object_classes(0, torch.arange(1, 7)).tolist()
    assert [data.classes[number - 1] for number in found] == [
        "tumour", "tumour: positive", "stroma", "object", "object", "object",
    ]  # fmt: skip


def test_holes_and_parts(made: Callable[..., Labelled], src: Path) -> None:
    ring = [square(2, 2, 20), square(6, 6, 10)]
    put(src / "a0.geojson", feature(*ring, **classed("gland")), feature(square(8, 8, 4), **classed("gland")))
    put(src / "a1.geojson", feature(ring, [square(8, 8, 4)], kind="MultiPolygon", **classed("gland")))
    data = made()
    mask = data.mask(0)
    assert (int((mask == 1).sum()), int((mask == 2).sum())) == (400 - 100, 16)
    assert mask[7, 7] == 0
    assert torch.equal(data.mask(1), (mask > 0).int())


ONE = square(3, 4)
FORMS: dict[str, Any] = {
    "a collection": {"type": "FeatureCollection", "features": [feature(ONE)]},
    "a bare list, as of QuPath": [feature(ONE)],
    "one feature": feature(ONE),
    "a bare geometry": {"type": "Polygon", "coordinates": [ONE]},
    "a list of geometries": [{"type": "Polygon", "coordinates": [ONE]}],
    "a collection of geometries": feature(ONE) | {
        "geometry": {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [ONE]}]}
    },
    "heights": feature([[x, y, 0] for x, y in ONE]),
    "an open ring": feature(ONE[:-1]),
    "the other way round": feature(ONE[::-1]),
    "twice round": feature(ONE[:-1] + ONE),
    "a polygon of several": feature([ONE], kind="MultiPolygon"),
    "parts that overlap": feature([square(3, 4)], [[[3, 4], [8, 4], [8, 14], [3, 14]]], kind="MultiPolygon"),
    "a crossing ring": feature([[3, 4], [13, 4], [13, 14], [8, 14], [8, 4], [10, 4], [10, 14], [3, 14]]),
    "no type": {"geometry": {"type": "Polygon", "coordinates": [ONE]}},
    "whole numbers": json.loads(json.dumps(feature(ONE)).replace(".0", "")),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_square(src: Path, form: str) -> None:
    (src / "a0.geojson").write_text(json.dumps(FORMS[form]))
    assert [found.shape.area for found in read_geojson(src / "a0.geojson")] == [100]
    assert next(geojson.drafts(src)[1]).mask[4:14, 3:13].sum() == 100


@pytest.mark.parametrize("points", [4, 90])
def test_an_ellipse_is_that_of_its_box(src: Path, points: int) -> None:
    """Whether its points lie on the ellipse or at the corners of its box."""
    ring = [[10.0, 10], [40, 10], [40, 20], [10, 20]]
    if points > 4:
        turns = [2 * math.pi * number / 180 for number in range(180)]
        ring = [[25 + 15 * math.cos(turn), 15 + 5 * math.sin(turn)] for turn in turns]
    one = feature(ring)
    one["geometry"]["isEllipse"] = True
    (found,) = read_geojson(put(src / "e.geojson", one))
    assert found.shape.area == pytest.approx(math.pi * 15 * 5, rel=1e-3)
    assert found.shape.bounds == pytest.approx((10, 10, 40, 20))


def test_what_is_not_outlined_is_no_part_of_the_tissue(src: Path) -> None:
    """Of a user's outline of tissue the polygons alone count."""
    nothing = {"type": "Feature", "geometry": None, "properties": {}}
    some = [nothing, feature([3, 4], kind="Point"), feature(ONE), feature(square(8, 4))]
    shapes = [found.shape for found in read_geojson(put(src / "e.geojson", *some))]
    assert [shape.area for shape in shapes] == [0, 0, 100, 100]
    assert shapely.union_all(shapes).area == 150


def test_an_outline_of_endless_crossings_is_refused_soon(src: Path) -> None:
    ring = np.random.default_rng(0).random((20_000, 2)).tolist()
    began = time.process_time()
    with pytest.raises(UserError, match=r"feature 1 is no outline .*20,000 points crosses itself about .* times\)"):
        read_geojson(put(src / "e.geojson", feature(ring)))
    assert time.process_time() - began < 5


def test_a_long_outline_is_read(src: Path) -> None:
    """Of as many points, with crossings where a hand trembles."""
    turns = np.linspace(0, 2 * math.pi, 20_000, endpoint=False)
    ring = np.stack([np.cos(turns), np.sin(turns)], 1) * 1000
    ring[::100] = ring[::100][:, ::1] * 0.999 + np.roll(ring, 3, axis=0)[::100] * 0.001
    ring[5:-5:50], ring[6:-4:50] = ring[6:-4:50].copy(), ring[5:-5:50].copy()
    (found,) = read_geojson(put(src / "e.geojson", feature(ring.tolist())))
    assert found.mended and found.shape.area == pytest.approx(math.pi * 1e6, rel=1e-3)


def test_names_and_places(made: Callable[..., Labelled], src: Path) -> None:
    """QuPath may keep the image's ending, and leave out .ome; images may lie elsewhere."""
    (src / "a0.geojson").rename(src / "a0.png.geojson")
    (src / "a1.geojson").rename(src / "a1.json")
    (src.parent / "images").mkdir()
    for path in src.glob("*.png"):
        path.rename(src.parent / "images" / path.name)
    (src.parent / "images" / "a2.png").unlink()
    save(picture(2, WIDE, HIGH), src.parent / "images" / "a2.ome.tif")
    assert [item.name for item in made(images="../images").items] == ["a0", "a1", "a2.ome", "a3", "a4"]


def test_two_files_of_one_image_are_named(made: Callable[..., Labelled], src: Path) -> None:
    put(src / "a0.png.geojson")
    with pytest.raises(UserError, match=r"a0\.(png\.)?geojson and a0\.(png\.)?geojson are of one image: keep one"):
        made()


def test_cases_and_splits_of_a_table(made: Callable[..., Labelled], src: Path) -> None:
    rows = [f"a{number}.png,P{number // 2},,train" for number in range(4)]
    (src / "items.csv").write_text("\n".join(["path,source,mpp,split", *rows, "a4,P9,0.5,test"]))
    data = made(mpp=0.25)
    assert [item.source for item in data.items] == ["P0", "P0", "P1", "P1", "P9"]
    assert [item.mpp for item in data.items] == [0.25] * 4 + [0.5]
    assert data.parts("given") == {"train": [0, 1, 2, 3], "test": [4]}
    assert data.notes == ()
    with pytest.raises(UserError, match=r"items\.csv gives a split: leave out --test-share"):
        made(test_share=0.5)


LEFT_OUT = {
    "empty": (feature(), "encloses no pixel: mend it, or leave such objects out with --skip"),
    "no parts": (feature(kind="MultiPolygon"), "encloses no pixel"),
    "outside": (feature(square(300, 300)), r"lies outside of its image \(50 x 40 px\)"),
    "point": (feature([3, 4], kind="Point"), "is a Point, not a polygon: mend it, or leave .*--skip-broken"),
    "nothing": (feature() | {"geometry": None}, "is a feature without geometry, not a polygon"),
    "line": (feature([3, 4], [9, 9], kind="LineString"), "is a LineString, not a polygon"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_features_without_pixels_are_refused_or_left_out(made: Callable[..., Labelled], src: Path, kind: str) -> None:
    broken, error = LEFT_OUT[kind]
    put(src / "a3.geojson", feature(square(3, 3)), broken | {"properties": classed("never")})
    with pytest.raises(UserError, match=rf"a3\.geojson, feature 2 {error}"):
        made()
    data = made(skip_broken=True)
    assert data.classes == ("gland", "object")
    assert data.mask(3).unique().tolist() == [0, 1]
    assert any(note.endswith(": 1 (a3.geojson, feature 2).") for note in data.notes)


@pytest.mark.parametrize(
    "broken",
    [
        7,
        {"type": "Feature"},
        feature(square(1, 1)) | {"geometry": {"coordinates": [square(1, 1)]}},
        feature([[1, 1], [math.nan, 2], [3, 3]]),
        feature([[1, 1], [1e999, 2], [3, 3]]),
        feature([[1, 1], [10**400, 2], [3, 3]]),
        feature([[1, 1], [1e308, 2], [3, 3]]),
        feature([[1, 1], [{}, 2], [3, 3]]),
        *(
            {"type": "Polygon", "isEllipse": True, "coordinates": corners}
            for corners in ([], [[]], [[[1, 1], [10**400, 2], [3, 3]]], [[[1e308, 1], [-1e308, 2], [3, 3]]])
        ),
        feature(square(1, 1), classification=7),
        feature(square(1, 1), classification={"names": 7}),
        feature(square(1, 1)) | {"properties": ["x"]},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": square(1, 1)}},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[1, 1], ["x", 2], [3, 3]]]}},
        {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [square(1, 1)]}},
    ],
)  # fmt: skip
def test_what_is_no_feature_is_named_always(made: Callable[..., Labelled], src: Path, broken: Any) -> None:
    put(src / "a3.geojson", feature(square(3, 3)), broken)
    with pytest.raises(
        UserError, match=r"a3\.geojson, feature 2 (is no (GeoJSON feature|outline of points)|has a class)"
    ):
        made(skip_broken=True)


@pytest.mark.parametrize("text", ["", "{", '{"features": 3}', "3", "[" * 100_000, "\0", "\ufeff"])
def test_what_is_no_geojson_is_named(made: Callable[..., Labelled], src: Path, text: str) -> None:
    (src / "a3.geojson").write_text(text)
    with pytest.raises(UserError, match=r"a3\.geojson is no (JSON, or is cut short|GeoJSON of features)"):
        made()


def test_nothing_outlined(made: Callable[..., Labelled], src: Path) -> None:
    for number in range(5):
        put(src / f"a{number}.geojson")
    with pytest.raises(UserError, match="glands has no outline in any of its 5 images"):
        made()


def test_half_a_character_in_a_class_is_named(src: Path) -> None:
    put(src / "a1.geojson", feature(square(1, 2), **classed("gl\ud800and")))
    with pytest.raises(UserError, match=r"a1\.geojson, feature 1 has half a character \('gl\\ud800and'\): mend it"):
        geojson.drafts(src)
