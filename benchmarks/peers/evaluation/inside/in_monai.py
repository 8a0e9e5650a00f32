"""MONAI: panoptic quality (HoVer-Net's way of counting, summed over all images)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from case import SCORE, facts, maps, report
from monai.metrics.panoptic_quality import PanopticQualityMetric  # pyright: ignore[reportMissingImports]


def pq() -> Callable[[], dict[str, float]]:
    said, images = facts(), []
    for (truth, found), *classes in zip(maps(), said["true_class"], said["found_class"], strict=True):
        sides = ((truth, classes[0]), (found, classes[1]))
        images.append([torch.from_numpy(np.stack([ids, np.array([0, *of])[ids]]))[None] for ids, of in sides])

    def score() -> dict[str, float]:
        judge = PanopticQualityMetric(
            4, metric_name=["pq", "sq", "rq"], reduction="sum_batch", return_confusion_matrix=True
        )
        for truth, found in images:
            judge(found, truth)
        counted = judge.aggregate()
        assert isinstance(counted, torch.Tensor)
        tp, fp, fn, iou = counted.double().T
        half = tp + (fp + fn) / 2
        there = half > 0
        each = {"PQ": iou / half, "SQ": iou / tp.clamp(min=1), "RQ": tp / half}
        return {name: float(of[there].mean()) for name, of in each.items()}

    return score


report("monai", {"PQ": pq}[SCORE]())
