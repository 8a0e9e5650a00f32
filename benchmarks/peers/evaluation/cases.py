"""What is scored: made anew from a seed, and written in the form that each library takes.

A case is a folder: `maps.npz` (for each image the true and the found map of ids, 1 to n, 0 = none), `facts.json` (each
object's class and score, `cap`, the most detections an image), `coco.json` and `results.json` (COCO's truth and
results), `truth.json`, `found.json` and the folders `truth` and `found` (COCO's panoptic form).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from colocate.base.errors import UserError
from colocate.evaluation.metrics.objects import Objects

Ids = np.ndarray[Any, np.dtype[np.int32]]
BACKGROUND = 100
"""The category of panoptic background, a stuff: pixels of no category at all would not count."""


class Scene(NamedTuple):
    """One image: maps of ids, and the class and score of each object in the order of ids."""

    truth: Ids
    found: Ids
    true_class: list[int]
    found_class: list[int]
    score: list[float]


def glands(data: Path, smoke: bool) -> Iterator[Scene]:
    """GlaS's 80 test images; findings are its glands moved by 5 px, some left out, some joined, with equal scores."""
    paths = sorted((data / "glas").glob("test*_anno.png"))[:: 20 if smoke else 1]
    if not paths:
        raise UserError(f"{data / 'glas'} has no masks of GlaS (test*_anno.png): say with --data where they are")
    rng = np.random.default_rng(0)
    for path in paths:
        truth, found = np.array(Image.open(path), np.int32), np.zeros(0, np.int32)
        found = np.roll(truth, (3, 4), (0, 1))
        found[:3], found[:, :4] = 0, 0
        for number in np.unique(found[found > 0]):
            luck = rng.random()
            if luck < 0.2:
                found[found == number] = 0 if luck < 0.1 else rng.choice(found[found > 0])
        found[:12, :12] = found.max() + 1  # what is not there
        yield _scene(truth, found, rng, classes=1, step=0.05)


def nuclei(data: Path, smoke: bool) -> Iterator[Scene]:
    """14 images of 1,000 px with 500 ellipses of four classes; one of ten is missed, one of twenty misnamed."""
    rng = np.random.default_rng(1)
    for _ in range(1 if smoke else 14):
        truth, found = np.zeros((2, 1000, 1000), np.int32)
        places = [(44 * row + 22, 44 * column + 22) for row in range(22) for column in range(22)]
        for number, place in enumerate([*places, *((44 * row, 44 * row) for row in range(1, 17))], 1):
            centre, radii, turn = place + rng.uniform(-8, 8, 2), rng.uniform(6, 14, 2), rng.uniform(0, np.pi)
            _ellipse(truth, number, centre, radii, turn)
            if rng.random() < 0.9:
                _ellipse(found, number, centre + rng.normal(0, 2, 2), radii * rng.uniform(0.85, 1.15, 2), turn)
        yield _scene(truth, found, rng, classes=4, step=1e-6, misnamed=0.05)


def awkward(data: Path, smoke: bool) -> Iterator[Scene]:
    """40 small images: empty ones, nothing found, nothing there, equal scores, and classes that one side lacks."""
    rng = np.random.default_rng(2)
    for number in range(40):
        truth, found = np.zeros((2, 48, 60), np.int32)
        for ids, empty in ((truth, number % 7 == 0), (found, number % 5 == 0)):
            for place in range(0 if empty else rng.integers(1, 12)):
                top, left = rng.integers(0, 40), rng.integers(0, 50)
                ids[top : top + rng.integers(2, 15), left : left + rng.integers(2, 15)] = place + 1
        if number % 3 == 0:
            found = np.roll(truth, 1, 0)
        scene = _scene(truth, found, rng, classes=3, step=0.25)
        true_class = [3 if one == 1 else one for one in scene.true_class]  # nobody has a 1, and 4 is found only
        yield scene._replace(true_class=true_class, found_class=[4 if one == 2 else one for one in scene.found_class])


CASES = {"glands": glands, "nuclei": nuclei, "awkward": awkward, "crowds": awkward}
CAPS = {"glands": 100, "nuclei": 600, "awkward": 5, "crowds": 5}
"""The most detections of a class that count in an image; `awkward` has more."""


def _scene(truth: Ids, found: Ids, rng: np.random.Generator, classes: int, step: float, misnamed: float = 0) -> Scene:
    kept = np.unique(found[found > 0])
    class_of = rng.integers(1, classes + 1, int(max(truth.max(), found.max())) + 1)
    true_class = class_of[np.unique(truth[truth > 0])].tolist()
    wrong = rng.random(len(kept)) < misnamed
    found_class = np.where(wrong, 1 + class_of[kept] % classes, class_of[kept]).tolist()
    score = (step * rng.integers(1, round(1 / step) + 1, len(kept))).tolist()
    return Scene(_dense(truth), _dense(found), true_class, found_class, score)


def _dense(ids: Ids) -> Ids:
    """Number the objects 1 to n."""
    present = np.unique(ids[ids > 0])
    return np.where(ids > 0, np.searchsorted(present, ids) + 1, 0).astype(np.int32)


def _ellipse(ids: Ids, number: int, centre: np.ndarray, radii: np.ndarray, turn: float) -> None:
    top, left = np.maximum(0, centre.astype(int) - 20)
    window = ids[top : top + 40, left : left + 40]
    y, x = np.mgrid[: window.shape[0], : window.shape[1]]
    y, x = y + top - centre[0], x + left - centre[1]
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    window[(along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1] = number


def write(name: str, folder: Path, data: Path, smoke: bool) -> None:
    """Write a case.

    Raises:
        UserError: the masks of GlaS are not there.
    """
    scenes = list(CASES[name](data, smoke))
    folder.mkdir(parents=True)
    maps = {f"{side}{i}": getattr(scene, side) for i, scene in enumerate(scenes) for side in ("truth", "found")}
    np.savez(folder / "maps.npz", **maps)  # pyright: ignore[reportArgumentType]
    facts = {side: [getattr(scene, side) for scene in scenes] for side in ("true_class", "found_class", "score")}
    (folder / "facts.json").write_text(json.dumps(facts | {"cap": CAPS[name]}))
    _write_coco(folder, scenes, crowds=name == "crowds")
    for side, classes in (("truth", "true_class"), ("found", "found_class")):
        _write_panoptic(folder / side, [(getattr(scene, side), getattr(scene, classes)) for scene in scenes])


def _write_coco(folder: Path, scenes: list[Scene], crowds: bool) -> None:
    """COCO's form; of `crowds` every fourth true object is one, within which finding something is no fault."""
    numbers = sorted({one for scene in scenes for one in (*scene.true_class, *scene.found_class)})
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": n, "name": str(n)} for n in numbers],
    }
    results: list[dict[str, Any]] = []
    for image, scene in enumerate(scenes, 1):
        true = Objects.of_ids(torch.from_numpy(scene.truth), scene.true_class)
        found = Objects.of_ids(torch.from_numpy(scene.found), scene.found_class)
        truth["images"].append({"id": image, "height": true.size[0], "width": true.size[1]})
        for rle, category, box in zip(true.rles, true.classes, true.xywh, strict=True):
            number = len(truth["annotations"]) + 1
            crowd = int(crowds and number % 4 == 0)
            one = {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd}
            area = int(coco_mask.area(cast(Any, rle)))
            truth["annotations"].append(one | {"segmentation": rle, "bbox": box, "area": area})
        results += found._replace(scores=scene.score, boxes=found.xywh).to_coco(image)
    (folder / "coco.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))


def _write_panoptic(folder: Path, images: list[tuple[Ids, list[int]]]) -> None:
    """COCO's panoptic form: a PNG whose colour is the segment's number, and the segments' categories."""
    folder.mkdir()
    annotations = []
    for image, (ids, classes) in enumerate(images, 1):
        name = f"{image}.png"
        numbers = np.where(ids > 0, ids, len(classes) + 1)
        Image.fromarray(np.stack([numbers % 256, numbers // 256, 0 * numbers], -1).astype(np.uint8)).save(folder / name)
        segments = [{"id": number, "category_id": one} for number, one in enumerate(classes, 1)]
        if (ids == 0).any():
            segments.append({"id": len(classes) + 1, "category_id": BACKGROUND})
        areas = np.bincount(numbers.ravel(), minlength=len(classes) + 2)
        segments = [one | {"iscrowd": 0, "area": int(areas[one["id"]])} for one in segments]
        annotations.append({"image_id": image, "file_name": name, "segments_info": segments})
    categories = [{"id": n, "name": str(n), "isthing": 1, "color": [n, 0, 0]} for n in range(1, 5)]
    categories.append({"id": BACKGROUND, "name": "background", "isthing": 0, "color": [0, 0, 0]})
    shapes = [{"id": i, "height": ids.shape[0], "width": ids.shape[1]} for i, (ids, _) in enumerate(images, 1)]
    document = {"images": shapes, "annotations": annotations, "categories": categories}
    folder.with_suffix(".json").write_text(json.dumps(document))
