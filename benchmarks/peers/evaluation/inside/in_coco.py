"""pycocotools, and the two that take its place: the third word says which."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import numpy as np
from case import CASE, SCORE, class_maps, facts, report

NAME = sys.argv[3].replace("-", "_")
library = import_module(NAME)
COCO: Any = import_module("pycocotools.coco").COCO if NAME == "pycocotools" else library.COCO
judging = import_module("pycocotools.cocoeval") if NAME == "pycocotools" else library
COCOeval: Any = judging.COCOeval_faster if NAME == "faster_coco_eval" else judging.COCOeval


def ap() -> dict[str, float]:
    """Average precision of objects of all sizes under one cap, the work that colocate does: by default these libraries
    also give three sizes and three caps."""
    coco = COCO(str(CASE / "coco.json"))
    found = coco.loadRes(str(CASE / "results.json"))
    figures = {}
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        judge = COCOeval(coco, found, iou_type)
        judge.params.maxDets = [facts()["cap"]]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
        precision = np.asarray(judge.eval["precision"])[:, :, :, 0, 0]  # thresholds, recalls, classes
        for name, part in (("AP", precision), ("AP50", precision[0]), ("AP75", precision[5])):
            figures[f"{kind} {name}"] = float(part[part > -1].mean())
    return figures


def pq() -> dict[str, float]:
    from hotcoco.panoptic import pq_compute  # pyright: ignore[reportMissingImports]

    found = pq_compute(str(CASE / "truth.json"), str(CASE / "found.json"))["Things"]
    return {name.upper(): found[name] for name in ("pq", "sq", "rq")}


def semantic() -> dict[str, float]:
    from hotcoco.semantic import SemanticEval  # pyright: ignore[reportMissingImports]

    judge = SemanticEval(5)
    for truth, found in images:
        judge.update(truth, found)
    results = judge.results()
    there = {one["name"][-1]: one for one in results["per_class"] if one["IoU"] >= 0}
    jaccard = {f"Jaccard {number}": one["IoU"] for number, one in there.items()}
    dice = {f"Dice {number}": 2 * one["tp"] / (one["gt_area"] + one["pred_area"]) for number, one in there.items()}
    return jaccard | dice | {"macro Jaccard": results["mIoU"], "micro Dice": results["aAcc"]}


images = class_maps() if SCORE == "Dice" else []
report(NAME.replace("_", "-"), {"AP": ap, "PQ": pq, "Dice": semantic}[SCORE])
