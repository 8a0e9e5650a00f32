"""Small random images of objects, and findings that are partly right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from colocate.evaluation.metrics.objects import Objects


def blobs(rng: np.random.Generator, size: tuple[int, int] = (9, 11), most: int = 5) -> Tensor:
    """A map of ids with gaps; objects are rectangles that hide one another, so of any shape and in several parts."""
    ids = np.zeros(size, np.int32)
    for number in rng.permutation(3 * most)[: rng.integers(0, most + 1)] + 1:
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        ids[top : top + rng.integers(1, 6), left : left + rng.integers(1, 6)] = number
    return torch.from_numpy(ids)


def disturbed(rng: np.random.Generator, ids: Tensor) -> Tensor:
    """Much the same objects: moved, some gone, some merged, some new."""
    found = ids.roll((int(rng.integers(-1, 2)), int(rng.integers(-1, 2))), (0, 1)).clone()
    for number in found.unique():
        luck = rng.random()
        if luck < 0.15:
            found[found == number] = 0
        elif luck < 0.3:
            found[found == number] = int(rng.choice(found.unique()))
    new = blobs(rng, (ids.shape[0], ids.shape[1]), 1)
    return torch.where(new > 0, new + 100, found)


def pair(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Truth and finding, either of them empty now and then."""
    truth = blobs(rng)
    found = blobs(rng) if rng.random() < 0.3 else disturbed(rng, truth)
    return truth, found


def judged(rng: np.random.Generator, ids: Tensor, classes: int, boxed: bool = False, step: float = 0.1) -> Objects:
    """The objects of a map with random classes, scores that are multiples of `step`, and boxes a bit off."""
    found = Objects.of_ids(ids)
    count = len(found.rles)
    scores = (rng.integers(1, int(1 / step) + 1, count) * step).tolist()
    boxes = (np.array(found.xywh).reshape(-1, 4) + rng.random((count, 4))).tolist() if boxed else None
    return found._replace(classes=rng.integers(1, classes + 1, count).tolist(), scores=scores, boxes=boxes)


def classed(rng: np.random.Generator, truth: Tensor, found: Tensor, classes: int = 3) -> tuple[Objects, Objects]:
    """Both as objects; an object keeps its class where the finding keeps its id, mostly."""
    of_id = rng.integers(1, classes + 1, 200)
    true = Objects.of_ids(truth, of_id[np.unique(truth[truth > 0])].tolist())
    of_id[rng.random(200) < 0.2] = 1
    return true, Objects.of_ids(found, of_id[np.unique(found[found > 0])].tolist())


def glas_truth(folder: Path) -> dict[str, Tensor]:
    """The maps of ids of every fourth of the 80 test images of GlaS."""
    paths = sorted((folder / "glas").glob("test*_anno.png"))[::4]
    return {
        path.name.removesuffix("_anno.png"): torch.from_numpy(np.array(Image.open(path), np.int32)) for path in paths
    }


def moved_and_merged(ids: Tensor, by: int = 6) -> Tensor:
    """Every gland `by` pixels down and right, the second made one with the first."""
    moved = torch.zeros_like(ids)
    moved[by:, by:] = ids[:-by, :-by]
    present = moved.unique()[1:]
    if len(present) > 1:
        moved[moved == present[1]] = present[0]
    return moved
