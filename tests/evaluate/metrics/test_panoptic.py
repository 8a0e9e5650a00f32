"""Panoptic quality (arXiv:1801.00868, equations 1 and 2) from records is that of pixels, counted pair by pair."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from colocate.evaluation.metrics import FAMILIES
from colocate.evaluation.metrics.objects import Objects, label_map
from colocate.evaluation.metrics.panoptic import record

from .scenes import classed, pair

PANOPTIC = FAMILIES["panoptic"]


def segments(found: Objects) -> dict[tuple[int, int], Tensor]:
    """The visible pixels of each object, by its class and number."""
    ids = label_map(found)
    return {(found.classes[n - 1], n): ids == n for n in ids.unique().tolist() if n}


def by_pairs(scenes: list[tuple[Objects, Objects]]) -> dict[int, tuple[float, float, float]]:
    """PQ, SQ and RQ of each class that is there in truth or found."""
    overlaps: dict[int, list[float]] = {}
    sizes: dict[int, int] = {}
    for scene in scenes:
        truth, found = map(segments, scene)
        for class_, _ in [*truth, *found]:
            sizes[class_] = sizes.get(class_, 0) + 1
        for (class_, _), one in truth.items():
            for (called, _), other in found.items():
                iou = float((one & other).sum() / (one | other).sum())
                if class_ == called and iou > 0.5:
                    overlaps.setdefault(class_, []).append(iou)
    each = {}
    for class_, size in sizes.items():
        ious = overlaps.get(class_, [])
        rq = len(ious) / (size / 2)  # TP + FP / 2 + FN / 2 is half of all segments
        each[class_] = (sum(ious) / (size / 2), sum(ious) / len(ious) if ious else 0.0, rq)
    return each


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_count_over_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenes = [classed(rng, *pair(rng)) for _ in range(1 + seed % 4)]
    scores = PANOPTIC.scores(json.loads(json.dumps([record(*scene) for scene in scenes])))
    assert list(scores) == ["PQ", "SQ", "RQ"]
    if not (each := by_pairs(scenes)):
        assert all(np.isnan(value) for value in scores.values())
        return
    means = 100 * np.mean(list(each.values()), axis=0)
    assert list(scores.values()) == pytest.approx(means.tolist(), abs=1e-4)


def test_hidden_and_unsure_objects_do_not_count() -> None:
    masks = torch.tensor([[[1, 1, 0, 0]], [[1, 0, 0, 0]], [[0, 0, 1, 1]]]).bool()
    found = Objects.of_masks((masks.shape[1], masks.shape[2]), masks, [1, 2, 1], [0.9, 0.8, 0.3])
    truth = Objects.of_ids(torch.tensor([[1, 1, 0, 0]], dtype=torch.int32))
    assert record(truth, found) == {"1": {"tp": 1, "fp": 0, "fn": 0, "iou": 1.0}}
    assert record(truth, found, 0.1) == {"1": {"tp": 1, "fp": 1, "fn": 0, "iou": 1.0}}
