"""Maps of classes: stitched as one big window sees them, read back from the TIFF, outlined as regions."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import torch
from lightning_fabric import Fabric
from scipy.ndimage import gaussian_filter
from skimage.measure import label

from colocate.base.errors import UserError
from colocate.evaluation.decoders import Segmenter
from colocate.evaluation.settings import SemanticsConfig
from colocate.models.backbones import Backbone
from colocate.prediction import outputs
from colocate.prediction.outputs import UNSEEN, class_colour
from colocate.prediction.predict import predict
from colocate.prediction.predictor import predictor
from colocate.prediction.settings import PredictConfig
from colocate.slides.listing import Listed, find_slides
from colocate.slides.runner import Tally
from colocate.slides.slide import Slide
from tests.phantom_slide import tissue_slide, write_pyramid
from tests.predict.seen import CONFIG, CPU, MAPPER, drawn_in, kept, masked, slide_of


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Ids 1 to 3 in patches that touch, half of it without any."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(2, height, width)), (0, 9, 9))
    return np.where(noise[0] > 0, 1 + (noise[1] > 0.01) + (noise[1] > 0.02), 0).astype(np.int32)


def classes_of(ids: np.ndarray) -> np.ndarray:
    return np.where(ids > 0, 1 + ids % 2, 0)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return blobs(390, 470)


def test_the_map_reads_back_and_its_regions_are_the_known_ones(
    ids: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "SMALLEST_PX", 100)
    monkeypatch.setattr(outputs, "TILE_PX", 128)
    slide, out = slide_of(tmp_path, ids), tmp_path / "out"
    assert predict(MAPPER, [slide], out, CONFIG) == Tally(1, 0, 0)
    truth = classes_of(ids)
    with tifffile.TiffFile(out / "slide.tif") as file:
        assert len(file.pages) == 4
        for level, page in enumerate(file.pages):
            assert np.array_equal(page.asarray(), truth[2**level // 2 :: 2**level, 2**level // 2 :: 2**level])
    map_slide = Slide.open(out / "slide.tif")
    assert map_slide.mpp == pytest.approx(1.0) and (map_slide.width, map_slide.height) == (470, 390)
    colours = np.array([class_colour(class_) for class_ in range(3)])
    assert np.array_equal(map_slide.read(30, 40, 100, 100), colours[truth[40:140, 30:130]])
    wanted = []
    for class_ in (1, 2):
        labelled, count = label(truth == class_, connectivity=1, return_num=True)
        wanted += [(class_, labelled == number) for number in range(1, count + 1)]
    items = drawn_in(out)
    assert len(items) == len(wanted) > 10
    for item, (class_, mask) in zip(items, wanted, strict=True):
        shape = shapely.geometry.shape(item["geometry"])
        assert item["properties"]["classification"]["name"] == ("even", "odd")[class_ - 1]
        assert item["properties"]["objectType"] == "annotation"
        assert item["properties"]["measurements"]["Score"] == pytest.approx((200 + class_) / 255, abs=1e-4)
        assert shapely.contains_xy(shape, *(np.argwhere(mask)[:, ::-1] + 0.5).T).all()
        rings = sum(1 + len(part.interiors) for part in shapely.get_parts(shape))
        assert abs(shape.area - mask.sum()) <= 0.51 * rings
    marker = json.loads((out / "slide.json").read_text())
    areas = {name: (truth == class_).sum() / 1e6 for class_, name in enumerate(("background", "even", "odd"))}
    assert marker["area_mm2"] == pytest.approx(areas, abs=1e-9)
    endings = (".csv", ".geojson", ".json", ".png", ".tif")
    assert sorted(path.name for path in out.iterdir()) == [f"slide{ending}" for ending in endings]
    assert [listed.name for listed in find_slides([tmp_path])] == ["slide"]  # the map is none
    assert predict(MAPPER, [slide], out, CONFIG) == Tally(0, 1, 0)


def test_small_regions_are_left_out_and_large_maps_outlined_coarsely(
    ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = classes_of(ids)
    seen, sure = truth.astype(np.uint8), np.full(truth.shape, 255, np.uint8)
    every = list(outputs.regions(seen, sure, [1, 2], 0, 2.0))
    some = list(outputs.regions(seen, sure, [1, 2], 300, 2.0))
    sizes = [np.bincount(label(truth == class_, connectivity=1).ravel())[1:] for class_ in (1, 2)]
    large = [one for one, pixels in zip(every, np.concatenate(sizes), strict=True) if pixels >= 300]
    assert 0 < len(some) < len(every)
    assert [one.shape for one in some] == [one.shape for one in large]
    monkeypatch.setattr(outputs, "LONGEST_PX", 200)
    coarse = list(outputs.regions(seen, sure, [1], 0, 2.0))
    rings = [1 + shapely.get_num_interior_rings(part) for one in coarse for part in shapely.get_parts(one.shape)]
    pixels = (truth[2::4, 2::4] == 1).sum()  # 470 px: every fourth is taken, eight level0 pixels
    assert abs(sum(one.shape.area for one in coarse) / 64 - pixels) <= 0.51 * sum(rings)
    assert all((np.array(one.shape.bounds) % 4 == 0).all() for one in coarse)


def test_coarse_outlines_lie_where_the_regions_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On average over regions that begin anywhere; and a map lower than a step is not lost."""
    monkeypatch.setattr(outputs, "LONGEST_PX", 64)
    edges = []
    for left in range(300, 316):
        seen = np.zeros((6, 1000), np.uint8)
        seen[:, left : left + 400] = 1
        (found,) = outputs.regions(seen, np.full_like(seen, 255), [1], 0, 1.0)
        edges.append((found.shape.bounds[0] - left, found.shape.bounds[2] - left - 400))
    assert np.abs(np.mean(edges, 0)).max() <= 0.5


def test_coarse_levels_show_classes_in_their_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On average over classes that begin anywhere, to half a pixel of the whole map at every level."""
    monkeypatch.setattr(outputs, "SMALLEST_PX", 64)
    edges = []
    for left in range(300, 316):
        seen = np.zeros((40, 1000), np.uint8)
        seen[:, left:] = 1
        outputs.write_class_map(tmp_path / "map.tif", seen, 1.0)
        with tifffile.TiffFile(tmp_path / "map.tif") as file:
            edges.append([page.asarray()[0].argmax() * 2**level - left for level, page in enumerate(file.pages)])
    assert np.shape(edges) == (16, 5) and np.abs(np.mean(edges, 0)).max() <= 0.5


@pytest.fixture(scope="module")
def network() -> Segmenter:
    torch.manual_seed(3)  # of which each class is seen often
    segmenter = Segmenter(SemanticsConfig(), Backbone("test_resnet"), 3, None, (0.7, 0.5, 0.6), (0.2, 0.25, 0.3))
    for part in segmenter.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)
    return segmenter.eval()


@torch.no_grad()
def reach(network: Segmenter, side: int = 512) -> int:
    """How many pixels away a network sees anything, measured: its answer at the middle, to pixels at the edges."""
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    changed = images.clone()
    changed[:, :, :, : side // 2] += 0.5
    different = (network.logits(images) != network.logits(changed))[0].any(0).any(0)
    return int(different.nonzero().max()) + 1 - side // 2


@pytest.mark.slow
def test_stitched_as_one_big_window_sees_it(network: Segmenter, tmp_path: Path) -> None:
    """Exactly: the overlap is twice as far as this network sees, and the margin at the picture's border too."""
    sees = reach(network)
    overlap = -(-2 * sees // 32) * 32
    side = max(2 * overlap, 256)
    pixels = np.tile(tissue_slide(512)[0][128:384, 128:384], (5, 4, 1))[: side + overlap, : side + overlap + 40]
    slide = Slide.open(write_pyramid(tmp_path / "slide.tif", pixels, 1.0))
    model = predictor(kept(network), Fabric(accelerator="cpu", devices=1), 0.5)
    big = -(-max(pixels.shape[:2]) // 32) * 32
    whole = torch.from_numpy(slide.read(0, 0, big, big).copy()).permute(2, 0, 1)[None]
    wanted = network.label(whole)[0][0].numpy()[: pixels.shape[0], : pixels.shape[1]]
    inside = np.s_[sees:-sees, sees:-sees]
    config = PredictConfig(side, overlap, min_area=1e9, device=replace(CPU, workers=2))  # no outlines
    predict(model, [Listed("slide", slide.path)], tmp_path / "out", config)
    stitched = tifffile.imread(tmp_path / "out" / "slide.tif")
    assert len(np.unique(wanted[inside])) > 1 and UNSEEN not in stitched[inside]
    assert (stitched[inside] == wanted[inside]).mean() > 0.9999  # equal but for ties that rounding decides


def test_what_is_not_tissue_has_no_class(ids: np.ndarray, tmp_path: Path) -> None:
    mask = np.zeros((39, 47), bool)
    mask[4:6, 4:6] = True
    predict(MAPPER, [masked(slide_of(tmp_path, ids), mask)], tmp_path / "out", CONFIG)
    found = tifffile.imread(tmp_path / "out" / "slide.tif")
    wanted = np.where(np.kron(mask, np.ones((10, 10))), classes_of(ids), UNSEEN)
    corners = np.hypot(*(abs(np.indices(found.shape) - 49.5) - 10)) < 5  # which are rounded off
    assert np.array_equal(found[~corners], wanted[~corners]) and corners.any()
    items = drawn_in(tmp_path / "out")
    assert items and all(shapely.box(40, 40, 60, 60).covers(shapely.geometry.shape(item["geometry"])) for item in items)


def test_no_room_for_the_map_ends_the_run(ids: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room for a map of .* GiB; make room, and the same command continues"):
        predict(MAPPER, [slide_of(tmp_path, ids)], tmp_path / "out", CONFIG)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_of_unknown_resolution_is_refused(network: Segmenter) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    with pytest.raises(UserError, match=r"discs.*give --model-mpp"):
        predictor(kept(network, mpp=None), fabric, 0.5)
    assert predictor(kept(network, mpp=None), fabric, 0.5, 0.7).mpp == 0.7
    model = predictor(kept(network), fabric, 0.5)
    assert model.mpp == 1.0 and model.shown == {1: "a", 2: "b"}
    with pytest.raises(UserError, match=r"learned at 1 micrometres per pixel, not at 0.5: leave --model-mpp out"):
        predictor(kept(network), fabric, 0.5, 0.5)
