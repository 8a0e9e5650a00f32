"""colocate: records of each image, scores from the records."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from case import CASE, SCORE, class_maps, facts, maps, report

from colocate.evaluation.metrics import FAMILIES, coco
from colocate.evaluation.metrics.objects import Objects

Figures = dict[str, float]
Entry = dict[str, Any]


def ap() -> Callable[[], Figures]:
    truth, results = (json.loads((CASE / name).read_text()) for name in ("coco.json", "results.json"))
    cap = facts()["cap"]
    entries: dict[int, tuple[list[Entry], list[Entry]]] = {one["id"]: ([], []) for one in truth["images"]}
    for side, listed in enumerate((truth["annotations"], results)):
        for one in listed:
            if not one.get("iscrowd"):  # which `colocate prepare coco` leaves out
                entries[one["image_id"]][side].append(one)

    def objects(image: dict[str, int], side: int) -> Objects:
        mine = entries[image["id"]][side]
        columns = ([one.get(key, 1.0) for one in mine] for key in ("segmentation", "category_id", "score", "bbox"))
        return Objects((image["height"], image["width"]), *columns)

    def score() -> Figures:
        records = [coco.record(objects(image, 0), objects(image, 1), cap) for image in truth["images"]]
        return FAMILIES["coco"].scores(records)

    return score


def of_objects(family: str) -> Callable[[], Figures]:
    images, said = maps(), facts()

    def score() -> Figures:
        records = []
        for (truth, found), true_class, found_class in zip(
            images, said["true_class"], said["found_class"], strict=True
        ):
            both = (
                Objects.of_ids(torch.from_numpy(ids), classes)
                for ids, classes in ((truth, true_class), (found, found_class))
            )
            records.append(FAMILIES[family].record(*both))
        return FAMILIES[family].scores(records)

    return score


def semantic() -> Callable[[], Figures]:
    images = [(torch.from_numpy(truth), torch.from_numpy(found)) for truth, found in class_maps()]
    names = [str(number) for number in range(5)]
    return lambda: FAMILIES["semantic"].scores([FAMILIES["semantic"].record(*image, names) for image in images])


score = {"AP": ap, "PQ": lambda: of_objects("panoptic"), "GlaS": lambda: of_objects("glas"), "Dice": semantic}[SCORE]()
unit = {"object Hausdorff": 1.0}
report("colocate", lambda: {name: one * unit.get(name, 0.01) for name, one in score().items() if one == one})
