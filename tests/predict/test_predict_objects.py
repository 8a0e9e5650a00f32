"""Objects of slides as files: each once and in its place, done once, failures set aside."""

from __future__ import annotations

import csv
import errno
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image

from colocate.base.errors import UserError
from colocate.evaluation.metrics.objects import Found
from colocate.prediction import outputs as outline_files
from colocate.prediction.outputs import Outlined, class_colour
from colocate.prediction.predict import predict
from colocate.prediction.predictor import Predictor
from colocate.prediction.settings import PredictConfig
from colocate.slides.listing import Listed
from colocate.slides.one_slide import write_overlay
from colocate.slides.runner import Tally
from colocate.slides.slide import Slide
from colocate.slides.tissue import Tissue
from tests.phantom_slide import write_pyramid
from tests.predict.seen import CONFIG, CPU, FINDER, MAPPER, discs, drawn_in, masked, objects, slide_of, torn


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return discs(300, 330)


@pytest.fixture(scope="module")
def plain(ids: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written of a slide of these objects."""
    folder = tmp_path_factory.mktemp("plain")
    assert predict(FINDER, [slide_of(folder, ids)], folder / "out", CONFIG) == Tally(1, 0, 0)
    return folder / "out"


def test_each_object_once_in_its_place(ids: np.ndarray, plain: Path) -> None:
    found = drawn_in(plain)
    numbers = set(np.unique(ids)) - {0}
    assert len(found) == len(numbers) > 30
    for item in found:
        shape = shapely.geometry.shape(item["geometry"])
        number = ids[int(shape.representative_point().y), int(shape.representative_point().x)]
        numbers.remove(number)
        mask = ids == number
        pixels = int(mask.sum())
        rings = sum(1 + len(part.interiors) for part in shapely.get_parts(shape))
        assert abs(shape.area - pixels) <= 0.51 * rings  # a bevelled ring is half a pixel smaller
        patch = shapely.contains_xy(shape, *(np.argwhere(mask)[:, ::-1] + 0.5).T)
        assert patch.all()
        properties = item["properties"]
        assert properties["classification"]["name"] == ("odd" if number % 2 else "even")
        assert properties["measurements"]["Score"] == pytest.approx(1 - number / 400, abs=1e-4)
        assert properties["objectType"] == "detection"
    assert not numbers
    with (plain / "slide.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [item["id"] for item in found]
    assert [float(row["Area µm^2"]) for row in rows] == [
        item["properties"]["measurements"]["Area µm^2"] for item in found
    ]
    marker = json.loads((plain / "slide.json").read_text())
    assert marker["objects"] == Counter(row["class"] for row in rows)
    with Image.open(plain / "slide.png") as picture:
        assert picture.size == (330, 300) and (plain / "slide.png").stat().st_size < 300_000


def test_places_and_sizes_are_level0_and_micrometres(ids: np.ndarray, plain: Path, tmp_path: Path) -> None:
    """A slide of half the pixel size: the network sees every second pixel; outlines are in the slide's own."""
    large = ids.repeat(2, 0).repeat(2, 1)
    predict(FINDER, [slide_of(tmp_path, large, mpp=0.5)], tmp_path / "fine", CONFIG)
    for one, other in zip(drawn_in(tmp_path / "fine"), drawn_in(plain), strict=True):
        shape, wanted = (shapely.geometry.shape(item["geometry"]) for item in (one, other))
        halved = shapely.transform(shape, lambda points: points / 2)
        assert halved.symmetric_difference(wanted).area < 0.01 * wanted.area
        for name, value in other["properties"]["measurements"].items():
            assert one["properties"]["measurements"][name] == pytest.approx(value, rel=1e-3)


def test_places_count_from_where_the_scan_begins(
    ids: np.ndarray, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Slide.open
    monkeypatch.setattr(Slide, "open", lambda *words: replace(opened(*words), origin=(7, 5)))
    predict(FINDER, [slide_of(tmp_path, ids)], tmp_path / "bounds", CONFIG)
    for one, other in zip(drawn_in(tmp_path / "bounds"), drawn_in(plain), strict=True):
        shape, wanted = (shapely.geometry.shape(item["geometry"]) for item in (one, other))
        assert shapely.transform(shape, lambda points: points + np.array([7, 5])).equals_exact(wanted, 0.011)


def counted() -> tuple[Predictor, list[int]]:
    """A predictor, and how many windows it has been given each time."""
    looked: list[int] = []

    def look(windows: Any, tissue: Any) -> Sequence[Found]:
        looked.append(len(windows))
        return objects(windows)

    return replace(FINDER, look=look), looked


def test_windows_without_tissue_are_not_looked_at(ids: np.ndarray, tmp_path: Path) -> None:
    mask = np.zeros(ids.shape, bool)
    mask[:94, :94] = True
    counting, looked = counted()
    predict(counting, [masked(slide_of(tmp_path, ids), mask)], tmp_path / "out", CONFIG)
    assert looked == [1]
    assert len(drawn_in(tmp_path / "out")) == 4  # discs within the mask, of nine in the window


def test_done_slides_are_skipped_and_other_settings_refused(tmp_path: Path) -> None:
    out, (counting, looked) = tmp_path / "out", counted()
    one, two = (slide_of(tmp_path, discs(120, 130), name=name) for name in ("one", "deep/two"))
    predict(counting, [one], out, CONFIG)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    once = sum(looked)
    assert predict(counting, [one, two], out, replace(CONFIG, device=replace(CPU, batch=7))) == Tally(1, 1, 0)
    assert sum(looked) == 2 * once and (out / "deep" / "two.geojson").exists()
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    for predictor, config, reason in (
        (FINDER, replace(CONFIG, score=0.6), "score 0.5, not 0.6"),
        (FINDER, replace(CONFIG, overlap=64), "overlap 32, not 64"),
        (FINDER, replace(CONFIG, device=replace(CPU, precision="bf16-mixed")), "precision"),
        (replace(FINDER, fingerprint="other"), CONFIG, "model objects, not other"),
        (replace(FINDER, mpp=2.0), CONFIG, "mpp 1.0, not 2.0"),
    ):
        with pytest.raises(UserError, match=f"one.json is of other settings .*{reason}.*: choose another --out"):
            predict(predictor, [one], out, config)
    marker = json.loads((out / "one.json").read_text())
    (out / "one.json").write_text(json.dumps(marker | {"finished": False}))  # stopped before its end
    assert predict(counting, [one, two], out, CONFIG) == Tally(1, 1, 0)
    assert (out / "one.geojson").read_bytes() == before["one.geojson"]


def test_what_was_deleted_is_made_again(tmp_path: Path) -> None:
    slide, out = slide_of(tmp_path, discs(120, 130)), tmp_path / "out"
    predict(MAPPER, [slide], out, CONFIG)
    assert predict(MAPPER, [slide], out, CONFIG) == Tally(0, 1, 0)
    for ending in (".geojson", ".csv", ".png", ".tif"):
        before = (out / f"slide{ending}").read_bytes()
        (out / f"slide{ending}").unlink()
        assert predict(MAPPER, [slide], out, CONFIG) == Tally(1, 0, 0)
        assert (out / f"slide{ending}").read_bytes() == before


def test_what_others_wrote_stays(ids: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "slide.geojson").write_text("drawn by hand")
    with pytest.raises(UserError, match=r"slide\.geojson is there and not by `colocate predict`"):
        predict(FINDER, [slide_of(tmp_path, ids)], out, CONFIG)
    (out / "slide.json").write_text("{}")
    with pytest.raises(UserError, match=r"slide\.json is not by `colocate predict`"):
        predict(FINDER, [slide_of(tmp_path, ids)], out, CONFIG)
    assert (out / "slide.geojson").read_text() == "drawn by hand"


@pytest.mark.slow
def test_a_bad_slide_is_set_aside_and_leaves_nothing(ids: np.ndarray, tmp_path: Path) -> None:
    coarse = slide_of(tmp_path, ids, mpp=1.2, name="coarse")
    good, broken, empty = (slide_of(tmp_path, ids, name=name) for name in ("good", "torn", "void"))
    torn(broken.path, 7)
    slides = [coarse, good, broken, masked(empty, np.zeros_like(ids))]
    out = tmp_path / "out"
    assert predict(FINDER, slides, out, replace(CONFIG, device=replace(CPU, workers=2))) == Tally(1, 0, 3)
    with (out / "failed.csv").open(newline="") as file:
        failed = {row["slide"]: row["reason"] for row in csv.DictReader(file)}
    assert "1.2 micrometres per pixel, which cannot show 1" in failed["coarse"]
    assert "torn" in failed["torn"] and "no tissue was found" in failed["void"]
    endings = (".csv", ".geojson", ".json", ".png")
    assert sorted(path.name for path in out.iterdir()) == ["failed.csv", *(f"good{ending}" for ending in endings)]
    assert predict(FINDER, [good, replace(broken, path=good.path)], out, CONFIG) == Tally(1, 1, 0)


def test_a_full_disk_and_ctrl_c_end_the_run_with_nothing_halfway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, out = slide_of(tmp_path, discs(120, 130)), tmp_path / "out"
    for error, kind in (
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        calls: list[int] = []

        def fails(*words: Any, calls: list[int] = calls, error: BaseException = error) -> Any:
            calls.append(1)
            if len(calls) == 5:
                raise error
            return class_colour(*words)

        with monkeypatch.context() as patch:
            patch.setattr(outline_files, "class_colour", fails)
            with pytest.raises(kind):
                predict(FINDER, [listed], out, CONFIG)
        assert [path.name for path in out.iterdir()] == ["slide.json"]
        assert not json.loads((out / "slide.json").read_text())["finished"]
    assert predict(FINDER, [listed], out, CONFIG) == Tally(1, 0, 0)


def test_settings_that_make_no_sense() -> None:
    wrong: list[dict[str, Any]] = [
        {"window": 0},  # which would be the default
        {"window": 100},
        {"window": 32},
        {"overlap": 20},
        {"window": 128, "overlap": 96},
        {"score": 0.0},
        {"score": 1.0},
        {"min_area": -1.0},
        {"min_area": float("nan")},  # than which nothing is larger
    ]
    for settings in wrong:
        with pytest.raises(UserError):
            PredictConfig(**settings)
    with pytest.raises(UserError, match="give the slide `failed` another name"):
        predict(FINDER, [Listed("failed", Path("failed.svs"))], Path("out"), CONFIG)


def test_objects_on_glass_are_left_out(ids: np.ndarray, tmp_path: Path) -> None:
    """The user's mask says that tissue ends amid a row of discs: those of which most lies below it go."""
    mask = np.zeros(ids.shape, bool)
    mask[:130] = True
    predict(FINDER, [masked(slide_of(tmp_path, ids), mask)], tmp_path / "out", CONFIG)
    shapes = [shapely.geometry.shape(item["geometry"]) for item in drawn_in(tmp_path / "out")]
    above = [number for number in np.unique(ids[:130]) if number and mask[ids == number].mean() >= 0.5]
    assert len(shapes) == len(above) > 10
    assert all(shape.centroid.y < 130 for shape in shapes)


def test_pictures_of_a_strip_show_places_where_they_are(tmp_path: Path) -> None:
    """Its shorter side is rounded to a pixel, which must not stretch the longer one."""
    slide = Slide.open(write_pyramid(tmp_path / "strip.tif", np.full((9000, 94, 3), 255, np.uint8), 1.0, levels=1))
    square = Outlined(shapely.box(20, 8700, 60, 8800), 1, 1.0)
    outline_files.write_outlines(tmp_path / "drawn", slide, [square], {1: "square"}, "detection")
    write_overlay(tmp_path / "tiles.png", slide, Tissue(np.zeros((900, 9), bool), 94, 9000), [(0, 8700)], 100)
    for name in ("drawn.png", "tiles.png"):
        with Image.open(tmp_path / name) as picture:
            rows = np.flatnonzero((np.asarray(picture.convert("RGB")) < 200).any((1, 2)))
        assert np.abs((rows + 0.5) * 9000 / picture.height - 8750).max() == pytest.approx(50, abs=10)
