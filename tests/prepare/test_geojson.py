"""GeoJSON as QuPath writes it: classes, holes and parts; what is broken, missing or outside is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colocate.base.errors import UserError
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
    return {
        "type": "Feature",
        "id": "8a-5e",
        "geometry": geometry,
        "properties": {"objectType": "annotation"} | properties,
    }


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


@pytest.mark.parametrize("form", ["list", "single", "three coordinates"])
def test_other_forms(made: Callable[..., Labelled], src: Path, form: str) -> None:
    """A bare list of features (QuPath without FeatureCollection), one feature alone, and heights beside x and y."""
    one = feature(square(3, 4), **classed("gland"))
    if form == "three coordinates":
        one["geometry"]["coordinates"] = [[[x, y, 0] for x, y in square(3, 4)]]
    (src / "a0.geojson").write_text(json.dumps(one if form == "single" else [one]))
    assert made().mask(0)[4:14, 3:13].sum() == 100


def test_names_and_places(made: Callable[..., Labelled], src: Path) -> None:
    """QuPath may keep the image's ending; images may lie elsewhere."""
    (src / "a0.geojson").rename(src / "a0.png.geojson")
    (src / "a1.geojson").rename(src / "a1.json")
    for number in range(5):
        (src.parent / "images").mkdir(exist_ok=True)
        (src / f"a{number}.png").rename(src.parent / "images" / f"a{number}.png")
    assert len(made(images="../images")) == 5


def test_two_files_of_one_image_are_named(made: Callable[..., Labelled], src: Path) -> None:
    put(src / "a0.png.geojson")
    with pytest.raises(UserError, match=r"a0\.(png\.)?geojson and a0\.(png\.)?geojson are of one image: keep one"):
        made()


def test_cases_and_splits_of_a_table(made: Callable[..., Labelled], src: Path) -> None:
    lines = [
        "path,source,mpp,split",
        *(f"a{number}.png,P{number // 2},,train" for number in range(4)),
        "a4,P9,0.5,test",
    ]
    (src / "items.csv").write_text("\n".join(lines))
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
        {"type": "Feature", "geometry": None},
        feature(square(1, 1)) | {"properties": ["x"]},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": square(1, 1)}},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[1, 1], ["x", 2], [3, 3]]]}},
        {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [square(1, 1)]}},
    ],
)  # fmt: skip
def test_what_is_no_feature_is_named_always(made: Callable[..., Labelled], src: Path, broken: Any) -> None:
    put(src / "a3.geojson", feature(square(3, 3)), broken)
    with pytest.raises(UserError, match=r"a3\.geojson, feature 2 is no (GeoJSON feature|outline of points)"):
        made(skip_broken=True)


@pytest.mark.parametrize("text", ["", "{", '{"features": 3}', "3"])
def test_what_is_no_geojson_is_named(made: Callable[..., Labelled], src: Path, text: str) -> None:
    (src / "a3.geojson").write_text(text)
    with pytest.raises(UserError, match=r"a3\.geojson is no (JSON, or is cut short|GeoJSON of features)"):
        made()


def test_nothing_outlined(made: Callable[..., Labelled], src: Path) -> None:
    for number in range(5):
        put(src / f"a{number}.geojson")
    with pytest.raises(UserError, match="glands has no outline in any of its 5 images"):
        made()
