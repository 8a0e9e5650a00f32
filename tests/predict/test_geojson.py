"""What is written is GeoJSON by its schema, opens as we read QuPath's own, and says sizes in micrometres."""

from __future__ import annotations

import json
import math
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from geojson_pydantic import Feature, FeatureCollection, MultiPolygon, Polygon
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.measure import label

from colocate.base.shapes import bevelled, outline
from colocate.datasets import geojson
from colocate.datasets.writer import write
from colocate.prediction.outputs import Outlined, Written, features, measurements, write_features
from tests.data.pictures import picture
from tests.prepare.releases import save

TRIANGLE = shapely.Polygon([(0, 0), (0, 3), (4, 0)])  # clockwise as RFC 7946 counts
RING = shapely.box(0, 0, 10, 10).difference(shapely.box(3, 3, 7, 7))
TWO = shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(5, 5, 6.123456, 6)])


def written(shape: shapely.Geometry, name: str = "gland", score: float = 0.91, kind: str = "detection") -> Written:
    return features([Outlined(shape, 1, score)], {1: name}, 0.5, kind)[0]  # type: ignore[arg-type]


def made(shape: shapely.Geometry, **changes: Any) -> dict[str, Any]:
    return json.loads(written(shape, **changes).text)


def sizes(shape: shapely.Geometry, mpp: float) -> dict[str, float]:
    return {key: value.item() for key, value in measurements([shape], mpp).items()}


@pytest.mark.parametrize(("shape", "kind"), [(TRIANGLE, Polygon), (RING, Polygon), (TWO, MultiPolygon)])
def test_a_feature_keeps_to_the_schema(shape: shapely.Geometry, kind: type) -> None:
    one = made(shape)
    parsed = Feature[kind, dict](**one)  # type: ignore[valid-type]
    read = shapely.geometry.shape(one["geometry"])
    assert read.is_valid and abs(read.area - shape.area) < 0.02
    for part in shapely.get_parts(read):
        assert part.exterior.is_ccw and not any(hole.is_ccw for hole in part.interiors)
    assert parsed.properties is not None and parsed.properties["objectType"] == "detection"
    assert parsed.properties["classification"] == {"name": "gland", "color": [0, 158, 115]}
    assert parsed.properties["measurements"]["Score"] == 0.91
    assert shapely.get_coordinates(read).round(2).tolist() == shapely.get_coordinates(read).tolist()


def test_an_id_is_made_of_plain_json() -> None:
    """As it was when features were made one by one: files of earlier runs have the same ids."""
    for shape in (TRIANGLE, RING, TWO, shapely.affinity.translate(RING, 1e6 / 3, -7e5 / 9)):
        one = made(shape, name="Drüse")
        content = {key: one[key] for key in ("type", "geometry", "properties")}
        assert one["id"] == str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content)))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_many_at_once_are_as_each_alone(seeds: list[int]) -> None:
    """Areas and centres read back are those of the shapes to a tenth of a pixel."""
    shapes = []
    for seed in seeds:
        dice = np.random.default_rng(seed)
        shape = shapely.MultiPoint(dice.normal(size=(dice.integers(3, 12), 2)) * 20 + dice.uniform(0, 1e5)).convex_hull
        other = shapely.affinity.translate(shape, 200, 0)
        shapes.append(shapely.MultiPolygon([shape, other]) if seed % 3 == 0 else shape)
    found = [Outlined(shape, 1 + number % 2, number / 20) for number, shape in enumerate(shapes)]
    names = {1: "a", 2: "b"}
    together = features(found, names, 0.5, "annotation")
    assert together == [features([one], names, 0.5, "annotation")[0] for one in found]
    for one, shape in zip(together, shapes, strict=True):
        read = shapely.geometry.shape(json.loads(one.text)["geometry"])
        assert abs(read.area - shape.area) < 0.1 + 0.01 * shape.length
        assert read.centroid.distance(shape.centroid) < 0.1


def test_sizes_of_known_shapes() -> None:
    found = sizes(shapely.box(10, 20, 40, 60), 0.25)
    assert found["Area µm^2"] == 75
    assert found["Perimeter µm"] == 35
    assert found["Max diameter µm"] == 12.5
    assert found["Min diameter µm"] == 7.5
    assert (found["Centroid X µm"], found["Centroid Y µm"]) == (6.25, 10)
    assert found["Circularity"] == pytest.approx(4 * math.pi * 1200 / 140**2)
    ring = sizes(RING, 1)
    assert (ring["Area µm^2"], ring["Perimeter µm"]) == (84, 40)
    assert sizes(shapely.Point(9, 9).buffer(50), 1)["Circularity"] == pytest.approx(1, abs=0.01)


@given(st.integers(0, 1000), st.floats(0, 3.1), st.sampled_from([0.25, 1.0, 2.0]))
def test_sizes_are_those_of_the_object_however_it_lies(seed: int, turn: float, mpp: float) -> None:
    """Turned and moved it has the same; its diameters are the extremes of its shadows in all directions."""
    shape = shapely.MultiPoint(np.random.default_rng(seed).normal(size=(9, 2)) * 20).convex_hull
    found = sizes(shape, mpp)
    moved = shapely.affinity.translate(shapely.affinity.rotate(shape, turn, use_radians=True), 5, 7)
    for key, value in sizes(moved, mpp).items():
        assert "Centroid" in key or value == pytest.approx(found[key], rel=1e-6)
    angles = np.linspace(0, math.pi, 2000)
    corners = shapely.get_coordinates(shape)
    shadows = np.ptp(corners @ np.stack([np.cos(angles), np.sin(angles)]), axis=0) * mpp
    assert found["Max diameter µm"] == pytest.approx(shadows.max(), rel=1e-3)
    assert found["Min diameter µm"] == pytest.approx(shadows.min(), rel=1e-2)
    assert found["Min diameter µm"] <= shadows.min() * (1 + 1e-9)


def test_a_file_is_a_collection_and_has_the_same_bytes_again(tmp_path: Path) -> None:
    some = [written(TRIANGLE), written(RING), written(TWO)]
    write_features(tmp_path / "a.geojson", iter(some))
    write_features(tmp_path / "b.geojson", iter(some))
    stored = (tmp_path / "a.geojson").read_bytes()
    assert stored == (tmp_path / "b.geojson").read_bytes()
    assert len(FeatureCollection(**json.loads(stored)).features) == 3
    assert json.loads(stored)["features"] == [made(TRIANGLE), made(RING), made(TWO)]
    write_features(tmp_path / "none.geojson", [])
    assert json.loads((tmp_path / "none.geojson").read_text()) == {"type": "FeatureCollection", "features": []}


def test_what_is_written_is_read_as_training_data(tmp_path: Path) -> None:
    """As QuPath's exports are: the same pixels, each of its object, under the same class."""
    noise = np.random.default_rng(0).normal(size=(60, 80))
    ids = label(gaussian_filter(noise, 2) > 0.1, connectivity=1)
    shapes = [bevelled(outline(ids == id)) for id in range(1, ids.max() + 1)]
    names = [("gland", "nucleus")[number % 2] for number in range(len(shapes))]
    (tmp_path / "src").mkdir()
    save(picture(0, 80, 60), tmp_path / "src" / "a.png")
    save(picture(1, 80, 60), tmp_path / "src" / "b.png")
    write_features(tmp_path / "src" / "a.geojson", [written(*pair) for pair in zip(shapes, names, strict=True)])
    write_features(tmp_path / "src" / "b.geojson", [])
    data = write(tmp_path / "out", *geojson.drafts(tmp_path / "src"))
    assert (data.mask(0).numpy() == ids).all() and not data.mask(1).any()
    classes = data.object_classes(0, torch.arange(1, len(names) + 1))
    assert [data.classes[class_ - 1] for class_ in classes.tolist()] == names
