"""Average precision is the COCO library's own, of random images and of real glands."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from colocate.evaluation.metrics import FAMILIES, coco
from colocate.evaluation.metrics.coco import pack, record
from colocate.evaluation.metrics.objects import Objects

from .scenes import glas_truth, judged, moved_and_merged, pair

Scene = tuple[Objects, Objects]


def library(scenes: Sequence[Scene]) -> dict[str, float]:
    """pycocotools as everybody runs it: one data set, one list of results, its own summary; nan for its -1."""
    truth: Any = {"images": [], "annotations": [], "categories": [{"id": number} for number in range(1, 8)]}
    results: list[dict[str, Any]] = []
    for image, (true, found) in enumerate(scenes):
        truth["images"].append({"id": image, "height": true.size[0], "width": true.size[1]})
        for rle, category, box in zip(true.rles, true.classes, true.xywh, strict=True):
            number = len(truth["annotations"]) + 1
            one = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0}
            truth["annotations"].append(one | {"segmentation": rle, "bbox": box, "area": int(coco_mask.area(rle))})
        results += found.to_coco(image)
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    scores = {}
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        judge = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), iou_type)  # type: ignore[arg-type]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        for name, value in zip(("AP", "AP50", "AP75"), judge.stats, strict=False):
            scores[f"{kind} {name}"] = float("nan") if value == -1 else 100 * value
    return scores


def random_scenes(seed: int, count: int = 12, classes: int = 3, step: float = 0.1) -> list[Scene]:
    """Images some of which have no objects or no detections, all detections with boxes of their own for odd seeds."""
    rng = np.random.default_rng(seed)
    scenes = []
    for _ in range(count):
        truth, found = pair(rng)
        true = judged(rng, truth, classes)
        scenes.append((true._replace(scores=[1.0] * len(true.rles)), judged(rng, found, classes, seed % 2 == 1, step)))
    return scenes


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_library(seed: int) -> None:
    scenes = random_scenes(seed, 30, classes=1 + seed % 4)
    records = json.loads(json.dumps([record(*scene) for scene in scenes]))
    scores = FAMILIES["coco"].scores(records)
    assert scores == pytest.approx(library(scenes), abs=1e-12, nan_ok=True)
    assert 0 < scores["mask AP50"] < 100


@pytest.mark.parametrize("at_once", [1, 1000])
def test_equals_the_library_on_images_drawn_more_than_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "AT_ONCE", at_once)
    scenes = random_scenes(3, step=1e-6)  # no ties within an image
    counts = np.random.default_rng(0).multinomial(12, [1 / 12] * 12, size=5)
    drawn = pack([record(*scene) for scene in scenes])(counts)
    for row, count in enumerate(counts):
        again = [scene for scene, times in zip(scenes, count, strict=True) for _ in range(times)]
        assert {name: values[row] for name, values in drawn.items()} == pytest.approx(library(again), abs=1e-12)


def test_more_than_a_hundred_detections_of_a_class() -> None:
    rng = np.random.default_rng(0)
    truth, found = pair(rng)
    one = judged(rng, truth, 1), judged(rng, found, 1, step=1e-6)
    noise = judged(rng, found, 1)
    many = [noise._replace(scores=[0.5 + k / 1000] * len(noise.rles)) for k in range(50)]
    crowd = one[1]._replace(
        rles=[*one[1].rles, *(rle for part in many for rle in part.rles)],
        classes=[1] * (len(one[1].rles) + sum(len(part.rles) for part in many)),
        scores=[*one[1].scores, *(score for part in many for score in part.scores)],
    )
    assert len(crowd.rles) > 100
    assert len(record(one[0], crowd)["1"]["scores"]) == 100
    scores = FAMILIES["coco"].scores([record(one[0], crowd)])
    assert scores == pytest.approx(library([(one[0], crowd)]), abs=1e-12)


@pytest.mark.parametrize("most", [100, 400])
@pytest.mark.parametrize("count", [1, 100, 101, 255, 300, 400])
def test_what_is_perfect_has_100_where_all_count(count: int, most: int) -> None:
    """Else recall, and with it AP, ends at the share that counts."""
    ids = torch.zeros(12 * 20, 12 * 20, dtype=torch.int32)
    for place in range(count):
        top, left = 12 * (place // 20), 12 * (place % 20)
        ids[top : top + 9, left : left + 9] = place + 1
    truth = Objects.of_ids(ids)
    found = truth._replace(scores=[1 - place / 1000 for place in range(count)])
    scores = FAMILIES["coco"].scores([record(truth, found, most)])
    reached = math.floor(100 * min(count, most) / count) + 1  # of the library's 101 points of recall
    assert all(score == pytest.approx(100 * reached / 101) for score in scores.values())


def test_nothing_to_find_is_undefined_and_nothing_found_is_zero(capsys: pytest.CaptureFixture[str]) -> None:
    (some, _), empty = random_scenes(0, 4)[1], Objects((9, 11), [], [], [])
    assert some.rles
    assert record(empty, empty) == {}
    assert all(np.isnan(value) for value in FAMILIES["coco"].scores([record(empty, empty)]).values())
    assert all(np.isnan(value) for value in FAMILIES["coco"].scores([record(empty, some)]).values())
    assert set(FAMILIES["coco"].scores([record(some, empty)]).values()) == {0.0}
    assert all(value == pytest.approx(100) for value in FAMILIES["coco"].scores([record(some, some)]).values())
    assert capsys.readouterr().out == ""  # the library prints much


@pytest.mark.slow
def test_real_glands_against_themselves_and_disturbed(shared_data: Path) -> None:
    rng = np.random.default_rng(0)
    maps = glas_truth(shared_data).values()
    truth = [Objects.of_ids(ids) for ids in maps]
    assert len(truth) == 20
    scores = FAMILIES["coco"].scores([record(one, one) for one in truth])
    assert all(value == pytest.approx(100, abs=1e-12) for value in scores.values())

    scenes = [
        (true, judged(rng, moved_and_merged(ids), 1, boxed=True, step=0.01))
        for true, ids in zip(truth, maps, strict=True)
    ]
    scores = FAMILIES["coco"].scores([record(*scene) for scene in scenes])
    assert scores == pytest.approx(library(scenes), abs=1e-12)
    assert 10 < scores["mask AP"] < 70 < scores["mask AP50"] < 95
