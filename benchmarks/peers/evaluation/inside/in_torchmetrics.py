"""torchmetrics: panoptic quality, Dice and Jaccard."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from case import SCORE, class_maps, facts, maps, report
from torchmetrics.classification import MulticlassJaccardIndex  # pyright: ignore[reportMissingImports]
from torchmetrics.detection import PanopticQuality  # pyright: ignore[reportMissingImports]
from torchmetrics.segmentation import DiceScore  # pyright: ignore[reportMissingImports]


def pq() -> Callable[[], dict[str, float]]:
    said, images = facts(), []
    for (truth, found), *classes in zip(maps(), said["true_class"], said["found_class"], strict=True):
        sides = ((truth, classes[0]), (found, classes[1]))
        images.append([torch.from_numpy(np.stack([np.array([0, *of])[ids], ids], -1))[None] for ids, of in sides])
    present = {one for side in ("true_class", "found_class") for image in said[side] for one in image}

    def score() -> dict[str, float]:
        judge = PanopticQuality(present, {0}, return_sq_and_rq=True, return_per_class=True)
        for truth, found in images:
            judge.update(found, truth)
        means = judge.compute()[:-1].mean(0)  # the background stands last
        return dict(zip(("PQ", "SQ", "RQ"), means.tolist(), strict=True))

    return score


def semantic() -> Callable[[], dict[str, float]]:
    images = [[torch.from_numpy(side)[None] for side in pair] for pair in class_maps()]

    def score() -> dict[str, float]:
        dice = DiceScore(5, average=None, aggregation_level="global", input_format="index")
        jaccard = MulticlassJaccardIndex(5, average=None)
        for truth, found in images:
            dice.update(found, truth)
            jaccard.update(found, truth)
        each = dice.compute()
        there = ~each.isnan()  # classes on neither side: nan of Dice, 0 of Jaccard
        figures = {}
        for name, of in (("Dice", each), ("Jaccard", jaccard.compute())):
            figures |= {f"{name} {number}": float(of[number]) for number in range(5) if there[number]}
            figures[f"macro {name}"] = float(of[there].mean())
        return figures

    return score


report("torchmetrics", {"PQ": pq, "Dice": semantic}[SCORE]())
