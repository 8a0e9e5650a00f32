"""An image in memory is seen as a slide of the same pixels is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import shapely
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from colocate.base.errors import UserError
from colocate.evaluation.decoders import Segmenter
from colocate.prediction.image import ClassMap, Model, Objects, look_over
from colocate.prediction.predict import predict
from tests.predict.seen import CONFIG, FINDER, MAPPER, discs, drawn_in, ids_as_tissue, kept, slide_of
from tests.predict.test_predict_classes import network as network

WINDOWS = (CONFIG.window or 0, CONFIG.overlap or 0)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return discs(300, 270)


@pytest.fixture(scope="module")
def found(ids: np.ndarray) -> Objects:
    found = look_over(FINDER, ids_as_tissue(ids), WINDOWS)
    assert isinstance(found, Objects)
    return found


def test_objects_are_those_of_a_slide(ids: np.ndarray, found: Objects, tmp_path: Path) -> None:
    predict(FINDER, [slide_of(tmp_path, ids)], tmp_path / "out", CONFIG)
    features = drawn_in(tmp_path / "out")
    assert len(features) == len(found.outlines) > 20
    for feature, outline, name, score in zip(features, *found, strict=True):
        assert shapely.geometry.shape(feature["geometry"]).normalize().equals_exact(outline.normalize(), 0.01)
        assert feature["properties"]["classification"]["name"] == name
        assert feature["properties"]["measurements"]["Score"] == pytest.approx(score, abs=1e-4)


def test_labels_number_the_pixels_of_each_object(ids: np.ndarray, found: Objects) -> None:
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
def test_an_image_of_another_resolution_is_seen_at_the_models(ids: np.ndarray, found: Objects, scale: float) -> None:
    """The image's pixels are half as large as the model's, or twice: outlines are in the image's own."""
    seen = ids_as_tissue(ids)
    scaled = look_over(FINDER, seen.repeat(2, 0).repeat(2, 1) if scale == 2 else seen[::2, ::2], WINDOWS, scale)
    assert isinstance(scaled, Objects)
    means = []
    for one in (found, scaled):
        areas = shapely.area(one.outlines)
        large = np.array(one.outlines, dtype=object)[areas > 0.6 * np.median(areas)]
        means.append(shapely.get_coordinates(shapely.centroid(large)).mean(0))
    assert np.allclose(means[1] / means[0], scale, rtol=0.05)


def test_what_is_no_array_is_named(ids: np.ndarray, network: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of Pillow, a path: an AttributeError."""
    model, image = Model(kept(network), Fabric(accelerator="cpu", devices=1)), ids_as_tissue(ids[:64, :96])
    for other in (Image.fromarray(image), "image.png", Path("image.png"), image.tolist()):
        with pytest.raises(UserError, match=r"an image is a numpy array, not .*: give numpy\.asarray of it, in RGB"):
            inspect.unwrap(Model.predict)(model, other)
    plain = model.predict(image)
    for same in (image[:, ::-1][:, ::-1], np.asfortranarray(image), np.asarray(Image.fromarray(image))):
        found = model.predict(same)
        assert all(map(np.array_equal, plain[:2], found[:2]))
    for wrong in (image / 255, image.astype(np.uint16), image[:, :, 0], image.transpose(2, 0, 1), image[:0]):
        with pytest.raises(UserError, match="an image is a uint8 array of height x width x 3, not"):
            model.predict(wrong)
    with pytest.raises(UserError, match="batch must be 1 or more, not 0"):
        model.predict(image, batch=0)
    monkeypatch.setattr("colocate.prediction.image.look_over", lambda model, image, *rest: image)
    with h5py.File.in_memory() as file:  # which is no array of numpy either, and may be large
        stored = file.create_dataset("image", data=image)
        assert inspect.unwrap(Model.predict)(model, stored) is stored
