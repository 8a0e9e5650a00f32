"""An image in memory is seen as a slide of the same pixels is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from torch import Tensor

from colocate.prediction.image import ClassMap, Objects, look_over
from colocate.prediction.predict import predict
from tests.predict.seen import FINDER, MAPPER, ids_as_tissue, slide_of
from tests.predict.test_predict_objects import CONFIG, discs

WINDOWS = (CONFIG.window or 0, CONFIG.overlap or 0)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return discs(300, 270)


def test_objects_are_those_of_a_slide(ids: np.ndarray, tmp_path: Path) -> None:
    found = look_over(FINDER, ids_as_tissue(ids), WINDOWS)
    assert isinstance(found, Objects)
    predict(FINDER, [slide_of(tmp_path, ids)], tmp_path / "out", CONFIG)
    features = json.loads((tmp_path / "out" / "slide.geojson").read_text())["features"]
    assert len(features) == len(found.outlines) > 20
    for feature, outline, name, score in zip(features, *found, strict=True):
        assert shapely.geometry.shape(feature["geometry"]).normalize().equals_exact(outline.normalize(), 0.01)
        assert feature["properties"]["classification"]["name"] == name
        assert feature["properties"]["measurements"]["Score"] == pytest.approx(score, abs=1e-4)


def test_labels_number_the_pixels_of_each_object(ids: np.ndarray) -> None:
    found = look_over(FINDER, ids_as_tissue(ids), WINDOWS)
    assert isinstance(found, Objects)
    labels = found.labels(*ids.shape)
    assert (labels > 0).sum() == pytest.approx((ids > 0).sum(), rel=0.01)  # a bevelled corner is half a pixel less
    one_to_one = {(int(label), int(number)) for label, number in zip(labels[labels > 0], ids[labels > 0], strict=True)}
    assert len(one_to_one) == len(found.outlines) == len(np.unique(ids)) - 1


def test_every_pixel_has_its_class(ids: np.ndarray) -> None:
    found = look_over(MAPPER, ids_as_tissue(ids), WINDOWS)
    assert isinstance(found, ClassMap)
    truth = np.where(ids > 0, 1 + ids % 2, 0)
    assert np.array_equal(found.classes, truth) and found.names == MAPPER.classes
    assert np.allclose(found.confidence, (200 + truth) / 255)


def test_a_small_image_is_not_seen_among_white(ids: np.ndarray, tmp_path: Path) -> None:
    sides: list[int] = []

    def look(windows: Tensor, tissue: Tensor | None) -> Sequence[Any]:
        sides.append(windows.shape[-1])
        return FINDER.look(windows, tissue)

    watched = replace(FINDER, look=look)
    small, large = (look_over(watched, ids_as_tissue(ids), (side, 0)) for side in (1024, 320))
    predict(watched, [slide_of(tmp_path, ids)], tmp_path / "out", replace(CONFIG, window=1024, overlap=256))
    assert sides == [320, 320, 320]
    assert all(map(np.array_equal, small, large))


@pytest.mark.parametrize("scale", [2, 0.5])
def test_an_image_of_another_resolution_is_seen_at_the_models(ids: np.ndarray, scale: float) -> None:
    """The image's pixels are half as large as the model's, or twice: outlines are in the image's own."""
    seen = ids_as_tissue(ids)
    image = seen.repeat(2, 0).repeat(2, 1) if scale == 2 else seen[::2, ::2]
    centres = []
    for one in (look_over(FINDER, seen, WINDOWS), look_over(FINDER, image, WINDOWS, scale)):
        assert isinstance(one, Objects)
        large = [
            shape for shape in one.outlines if shape.area > 0.6 * np.median([other.area for other in one.outlines])
        ]
        centres.append(shapely.get_coordinates(shapely.centroid(large)))
    mean = centres[1].mean(0) / centres[0].mean(0)
    assert np.allclose(mean, scale, rtol=0.05)
