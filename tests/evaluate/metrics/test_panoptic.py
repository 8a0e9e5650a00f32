"""Panoptic quality is torchmetrics' own, from records."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.detection import panoptic_quality

from colocate.evaluation.metrics import FAMILIES
from colocate.evaluation.metrics.objects import Objects, label_map
from colocate.evaluation.metrics.panoptic import record

from .scenes import classed, pair

PANOPTIC = FAMILIES["panoptic"]


def painted(found: Objects) -> Tensor:
    """(class, object) of each pixel; class 0 is the background, to torchmetrics a stuff like any other."""
    ids = label_map(found).long()
    return torch.stack([torch.tensor([0, *found.classes])[ids], ids], -1)


@pytest.mark.parametrize("seed", range(20))
def test_equals_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenes = [classed(rng, *pair(rng)) for _ in range(1 + seed % 4)]
    scores = PANOPTIC.scores(json.loads(json.dumps([record(*scene) for scene in scenes])))
    truth, found = (torch.stack([painted(scene[side]) for scene in scenes]) for side in (0, 1))
    present = sorted({*truth[..., 0].unique().tolist(), *found[..., 0].unique().tolist()} - {0})
    if not present:
        assert all(np.isnan(value) for value in scores.values())
        return
    each = panoptic_quality(found, truth, set(present), {0}, return_sq_and_rq=True, return_per_class=True)
    means = each[:-1].double().mean(0)  # the background stands last
    assert list(scores) == ["PQ", "SQ", "RQ"]
    assert list(scores.values()) == pytest.approx((100 * means).tolist(), abs=1e-4)


def test_hidden_and_unsure_objects_do_not_count() -> None:
    masks = torch.tensor([[[1, 1, 0, 0]], [[1, 0, 0, 0]], [[0, 0, 1, 1]]]).bool()
    found = Objects.of_masks((masks.shape[1], masks.shape[2]), masks, [1, 2, 1], [0.9, 0.8, 0.3])
    truth = Objects.of_ids(torch.tensor([[1, 1, 0, 0]], dtype=torch.int32))
    assert record(truth, found) == {"1": {"tp": 1, "fp": 0, "fn": 0, "iou": 1.0}}
    assert record(truth, found, 0.1) == {"1": {"tp": 1, "fp": 1, "fn": 0, "iou": 1.0}}
