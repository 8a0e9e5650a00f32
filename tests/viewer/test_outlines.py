"""Outlines as they are drawn and found, against plain loops over all of them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import shapely
from starlette.testclient import TestClient

from colocate.base.errors import UserError
from colocate.prediction.outputs import Outlined, class_colour, write_outlines
from colocate.slides.listing import Listed
from colocate.slides.slide import Slide
from colocate.viewer.outlines import FILL, SMALL_PX, Outlines, read_predictions
from colocate.viewer.pyramid import Region, finest, region
from tests.phantom_slide import painted, write_pyramid
from tests.viewer.conftest import SIDE, World, blobs, client_of, decoded, predict_blobs

SIZE = (SIDE, 1101)
COLOURS = (class_colour(1), class_colour(2))


def outlines(found: list[Outlined]) -> Outlines:
    classes, scores = np.array([one.class_ - 1 for one in found], int), np.array([one.score for one in found], float)
    shapes = np.array([one.shape for one in found], dtype=object)
    return Outlines(shapes, ("gland", "nucleus"), COLOURS, classes, scores, {"number": 1.0 * np.arange(len(found))})


@pytest.mark.parametrize("scale", [0.5, 1, 4])
def test_large_outlines_are_tinted_inside_and_nothing_outside(scale: float) -> None:
    found = outlines(blobs(40, *SIZE, seed=4))
    wide = shapely.bounds(found.shapes) @ (-1, 0, 1, 0) > 12 * scale
    large, others = found.shapes[wide, None, None], found.shapes[~wide, None, None]
    place = Region(150, 90, 300, 260, scale)
    drawn = found.draw(place, found.visible([0, 1], 0))
    rows, cols = np.mgrid[1 : place.height : 5, 1 : place.width : 5]
    points = shapely.points(place.x + (cols + 0.5) * scale, place.y + (rows + 0.5) * scale)
    away = (shapely.distance(others, points) >= 3 * scale).all(0)
    away &= (shapely.distance(shapely.boundary(large), points) >= 2.5 * scale).all(0)  # else it is too near to tell
    around = shapely.contains(large, points).sum(0)  # holes of a shape that is drawn later lie over what is below them
    assert min((away & (around == count)).sum() for count in (0, 1)) > 20
    assert ((drawn[rows, cols, 3] == FILL) == around)[away & (around < 2)].all()


def test_what_lies_in_a_hole_is_drawn_whatever_is_larger() -> None:
    """A thin ring around a region, as class maps have them; another part of the region lies outside."""
    inside, far = shapely.box(30, 30, 170, 170), shapely.box(190, 10, 390, 390)
    ring = shapely.box(20, 20, 180, 180).difference(inside)
    found = outlines([Outlined(shapely.MultiPolygon([inside, far]), 1, 1.0), Outlined(ring, 2, 1.0)])
    drawn = found.draw(Region(0, 0, 400, 400, 1), found.visible([0, 1], 0))
    for row, col, colour in ((100, 100, COLOURS[0]), (200, 300, COLOURS[0]), (25, 100, COLOURS[1])):
        assert np.abs(drawn[row, col] - np.array((*colour, FILL))).max() <= 2


def small_ones(count: int, scale: float, seed: int = 0) -> Outlines:
    """Squares below 3 px at a scale, far enough from each other and from the border of 500 x 400 px."""
    dice = np.random.default_rng(seed)
    places = [(x, y) for x in range(10, 490, 8) for y in range(10, 390, 8)]
    chosen = [places[number] for number in dice.choice(len(places), count, replace=False)]
    found = []
    for number, (x, y) in enumerate(chosen):
        side = dice.uniform(0.2, 2.5) * scale
        left, top = (x + dice.uniform(0, 1)) * scale, (y + dice.uniform(0, 1)) * scale
        found.append(Outlined(shapely.box(left, top, left + side, top + side), 1 + number % 2, 0.9))
    return outlines(found)


@pytest.mark.parametrize("scale", [1, 100])
def test_small_ones_cover_pixels_as_they_lie(scale: float) -> None:
    """The exact share of each pixel that is covered, by shapely's intersections."""
    found = small_ones(200, scale)
    drawn = found.draw(Region(0, 0, 500, 400, scale), found.visible([0, 1], 0))
    total = sum(shape.area for shape in found.shapes) / scale**2
    assert abs(drawn[..., 3].sum() / 255 - total) < 0.01 * total
    for shape, class_ in list(zip(found.shapes, found.classes, strict=True))[::20]:
        left, top = (int(side / scale) for side in shape.bounds[:2])
        for row in range(top - 1, top + 5):
            for col in range(left - 1, left + 5):
                pixel = shapely.box(col * scale, row * scale, (col + 1) * scale, (row + 1) * scale)
                share = pixel.intersection(shape).area / scale**2
                assert abs(drawn[row, col, 3] / 255 - share) < 0.01
                if share > 0.01:
                    assert tuple(drawn[row, col, :3]) == COLOURS[class_]


def test_tiles_side_by_side_are_as_one() -> None:
    found = outlines(blobs(80, *SIZE, seed=5))
    every = found.visible([0, 1], 0)
    for scale in (1, 4, 16):
        whole = found.draw(Region(100, 100, 60, 40, scale), every)
        parts = [found.draw(Region(100 + 30 * side * scale, 100, 30, 40, scale), every) for side in (0, 1)]
        differ = np.abs(np.hstack(parts).astype(int) - whole).max(2) > 40
        assert differ.mean() < 0.01


@pytest.mark.parametrize(("classes", "least"), [([], 0), ([0], 0.62), ([1], 0.9), ([0, 1], 1), ([5, -1], 0)])
def test_only_what_is_asked_for_is_drawn_and_found(classes: list[int], least: float) -> None:
    every = blobs(60, *SIZE, seed=1)
    found = outlines(every)
    wanted = [one for one in every if one.class_ - 1 in classes and one.score >= least]
    visible = found.visible(classes, least)
    assert visible.sum() == len(wanted)
    place = Region(0, 0, 650, 551, 2)
    alone = outlines(wanted)
    assert np.array_equal(found.draw(place, visible), alone.draw(place, alone.visible([0, 1], 0)))


def test_a_point_finds_the_smallest_shape_around_it() -> None:
    every = blobs(60, *SIZE, seed=1)
    found, points = outlines(every), np.random.default_rng(2).uniform(0, SIZE, (400, 2))
    visible = found.visible([0, 1], 0.6)
    covers = shapely.covers(found.shapes, shapely.points(points)[:, None]) & (found.scores >= 0.6)
    for (x, y), around in zip(points.tolist(), map(np.flatnonzero, covers), strict=True):
        number = found.at(x, y, 1e-9, visible)
        assert number == (min(around, key=lambda n: every[n].shape.area) if len(around) else None)
    assert 20 < covers.any(1).sum() < 380
    beside = shapely.Point(every[-1].shape.bounds[2] + 5, every[-1].shape.centroid.y)
    assert found.at(beside.x, beside.y, 1e-9, visible) != 59
    near = np.flatnonzero(visible & (shapely.distance(found.shapes, beside) <= 30))
    assert found.at(beside.x, beside.y, 10, visible) in near


def test_predictions_are_read_as_they_were_written(world: World, client: TestClient) -> None:
    written = json.loads((world.predictions / "phantom.geojson").read_text())["features"]
    found = read_predictions(world.predictions / "phantom", (10, -20))
    assert len(found.shapes) == len(written) == 60
    for number, item in enumerate(written):
        shape = shapely.affinity.translate(shapely.geometry.shape(item["geometry"]), 10, -20)
        assert found.shapes[number].equals(shape)
        told = found.describe(number)
        properties = item["properties"]
        assert (told["class"], list(told["colour"])) == tuple(properties["classification"].values())
        values = {**told["values"], "Score": told["score"]}
        assert {name: pytest.approx(value, abs=1e-3) for name, value in properties["measurements"].items()} == values
    facts = client.get("/api/slides/0/predictions/0").json()
    assert [(one["name"], one["count"]) for one in facts["classes"]] == [("gland", 30), ("nucleus", 30)]
    assert facts["least"] == min(item["properties"]["measurements"]["Score"] for item in written)


def test_a_click_tells_the_measurements(world: World, client: TestClient) -> None:
    written = json.loads((world.predictions / "phantom.geojson").read_text())["features"]
    for item in written[::7]:
        point = shapely.geometry.shape(item["geometry"]).representative_point()
        query = {"x": point.x, "y": point.y, "scale": 0.001, "classes": "0,1", "score": 0}
        told = client.get("/api/slides/0/predictions/0/at", params=query).json()
        around = [one for one in written if shapely.geometry.shape(one["geometry"]).covers(point)]
        assert told["values"]["Area µm^2"] == min(one["properties"]["measurements"]["Area µm^2"] for one in around)
        ring = shapely.Polygon(told["rings"][0])
        assert ring.covers(point) or len(told["rings"]) > 1
    query = {"x": -50, "y": -50, "scale": 1, "classes": "0,1", "score": 0}
    assert client.get("/api/slides/0/predictions/0/at", params=query).json() is None


@pytest.mark.parametrize(
    "names", [("", "b"), (" gland", "gland "), ("NA", "null"), ("=1+1", "'x"), ('a,"b":', "腺\u2028")]
)
def test_classes_keep_their_names_and_colours(tmp_path: Path, names: tuple[str, str]) -> None:
    slide = Slide.open(write_pyramid(tmp_path / "slide.tif", painted(60, 50), 1.0, 1))
    shapes = [Outlined(shapely.box(10 * class_, 10, 10 * class_ + 5, 20), class_, 0.5) for class_ in (2, 1)]
    write_outlines(tmp_path / "odd", slide, shapes, dict(enumerate(names, start=1)), "detection")
    found = read_predictions(tmp_path / "odd", (0, 0))
    assert [found.names[class_] for class_ in found.classes] == [names[1], names[0]]
    assert [found.colours[class_] for class_ in found.classes] == [class_colour(2), class_colour(1)]


def test_cut_tiles_lie_where_the_manifest_says(world: World, client: TestClient) -> None:
    from pyarrow import parquet

    rows = parquet.read_table(world.tiles / "manifest.parquet").to_pylist()
    assert client.get("/api/slides/0/tiles/0").json()["classes"][0]["count"] == len(rows) > 3
    for row in rows:
        query = {"x": row["x"] + 64, "y": row["y"] + 64, "scale": 0.01, "classes": "0", "score": 0}
        told = client.get("/api/slides/0/tiles/0/at", params=query).json()
        assert told["bounds"] == [row["x"], row["y"], row["x"] + 128, row["y"] + 128]
        assert told["values"] == {name: pytest.approx(row[name]) for name in ("tissue", "sharpness")}
    drawn = decoded(client.get("/api/slides/0/tiles/0/0/0_0?classes=0&score=0"))
    scale = 2 ** finest(*SIZE)
    inside = [drawn[int((row["y"] + 64) / scale), int((row["x"] + 64) / scale), 3] for row in rows]
    assert min(inside) == max(inside) == FILL and drawn[2, 2, 3] == 0


def test_files_that_do_not_belong_together_are_one_sentence(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", painted(600, 500), 1.0, 1)
    out = predict_blobs(Listed("slide", path), tmp_path / "out", blobs(10, 600, 500))
    client = client_of([out])
    assert client.get("/api/slides/0/predictions/0").status_code == 200
    lines = (out / "slide.geojson").read_text().splitlines()
    for number, text in enumerate(
        ["", "[]", "\n".join(lines[:-3] + lines[-1:]), "\n".join(lines).replace("Polygon", "Pol")]
    ):
        place = tmp_path / f"other{number}" / "slide"
        place.parent.mkdir()
        place.with_suffix(".csv").write_bytes((out / "slide.csv").read_bytes())
        place.with_suffix(".geojson").write_text(text)
        with pytest.raises(UserError, match=r"slide\.geojson and its \.csv are not as"):
            read_predictions(place, (0, 0))


@pytest.mark.slow
def test_a_hundred_thousand_objects(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tile costs is bounded by its pixels: few outlines are drawn one by one. Says how long it takes."""
    count, side, dice = 100_000, 32_768, np.random.default_rng(0)
    turns = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    radius, x, y = dice.uniform(5, 14, (count, 1)), *dice.uniform(20, side - 20, (2, count, 1))
    shapes = shapely.polygons(np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], -1))
    classes = np.arange(count) % 2
    found = Outlines(np.asarray(shapes), ("a", "b"), COLOURS, classes, np.ones(count), {})
    visible = found.visible([0, 1], 0)
    one_by_one: list[int] = []
    lines = Outlines._lines

    def counted(self, place, these, box):  # type: ignore[no-untyped-def]
        one_by_one.append(len(these))
        return lines(self, place, these, box)

    monkeypatch.setattr(Outlines, "_lines", counted)
    found.at(0, 0, 1, visible)  # builds the tree
    for level in range(finest(side, side) + 1):
        seconds = []
        for column, row in {(0, 0), *map(tuple, dice.integers(0, 1 << level, (2, 2)).tolist())}:
            place = region(side, side, level, column, row)
            began = time.perf_counter()
            drawn = found.draw(place, visible)
            seconds.append(time.perf_counter() - began)
            if place.scale == 64:  # the whole slide
                area = float(np.pi * (radius**2).sum()) / place.scale**2
                assert 0.8 * area < drawn[..., 3].sum() / 255 < area  # some overlap
        with capsys.disabled():
            print(f"\nlevel {level}: {1000 * max(seconds):.0f} ms a tile at most", end="")
    assert max(one_by_one) < (512 / SMALL_PX + 2) ** 2
