"""The GlaS challenge's scores: object F1, object-level Dice and object-level Hausdorff distance.

Sirinukunwattana et al., "Gland segmentation in colon histology images: The GlaS challenge contest", Medical Image
Analysis 35, 2017 (arXiv:1603.00275), section 4. Its words, and where it leaves a choice, ours:

- Objects of one image are disjoint sets of pixels: `label_map` decides who owns a pixel that two found objects claim.
  Classes play no part.
- The *match* of an object is the object of the other side that shares most pixels with it. (Of equals, the one whose
  first pixel comes first in reading order; the challenge's code takes the smaller id.)
- F1 = 2 TP / (found + true objects). A found object is a true positive if it covers at least 50 % of its match (the
  paper's words; the challenge's code asks for more than 50 %). One that covers several glands counts for its match
  alone. Only two that each cover exactly half of a gland could both claim it: it is found once, and one is false.
- Dice of an object is that with its match, 0 without one. Hausdorff distance is that to its match in Euclidean pixels,
  over all pixels of both; without one, that to the object of the other side where it is smallest. In an image with
  objects on one side only, where there is nothing to measure to, it is the image's diagonal, the largest distance two
  of its pixels can have: to find nothing is never better than to find something.
- Both are averaged over the objects of each side, weighted by area, and then over the two sides. Areas are those of
  all images together (the paper's sums run over all objects), so large glands of one image outweigh small ones of
  another. If one side has no object in any image, the mean is that of the other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64
from scipy.ndimage import distance_transform_edt, find_objects

from colocate.evaluation.metrics.family import Packed, Record, mean_of_defined, ratio
from colocate.evaluation.metrics.objects import Objects, check_size, label_map, shared_pixels

if TYPE_CHECKING:
    from torch import Tensor

Slices = tuple[slice, slice]


def record(truth: Objects, found: Objects, threshold: float = 0.5) -> Record:
    """Compare the objects of one image; found ones whose score is below `threshold` do not count.

    A record has the numbers of objects (`true`, `found`, `hits`) and for each side its objects' `area` in pixels and
    the sums of area x Dice and area x Hausdorff distance.

    Raises ValueError: as `check_size`.
    """
    check_size(truth.size, found.size)
    maps = [_in_reading_order(ids) for ids in (label_map(truth), label_map(found, threshold))]
    shared = shared_pixels(*maps)[1:, 1:]
    areas = [np.bincount(ids.numpy().ravel())[1:] for ids in maps]
    distances = _hausdorff(maps[0].numpy(), maps[1].numpy(), shared)
    sides = {}
    for name, table, own, other, far in zip(
        ("true", "found"), (shared, shared.T), areas, areas[::-1], distances, strict=True
    ):
        most = table.max(1, initial=0)
        against = other[table.argmax(1)] if len(other) else np.zeros_like(own)
        dice = 2 * most / (own + against)
        sides[name] = {
            "area": int(own.sum()),
            "dice": float((own * dice).sum()),
            "hausdorff": float((own * far).sum()),
        }
    hits = 0
    if shared.size:
        match = shared.argmax(0)
        covered = shared[match, np.arange(shared.shape[1])]
        hits = len(set(match[2 * covered >= areas[0][match]].tolist()))
    return {"objects": {"true": len(areas[0]), "found": len(areas[1]), "hits": hits}, **sides}


def pack(records: Sequence[Record]) -> Packed:
    """Scores: "object F1" and "object Dice" in percent, "object Hausdorff" in pixels (the lower the better)."""

    def column(part: str, name: str) -> Float64[np.ndarray, " n"]:
        return np.array([record[part][name] for record in records], np.float64)

    hits, objects = column("objects", "hits"), column("objects", "true") + column("objects", "found")
    areas = [column(side, "area") for side in ("true", "found")]
    sums = {name: [column(side, name) for side in ("true", "found")] for name in ("dice", "hausdorff")}

    def scores(counts: Int64[np.ndarray, "d n"]) -> dict[str, Float64[np.ndarray, " d"]]:
        mean = {
            name: mean_of_defined(
                np.stack([ratio(counts @ of_side, counts @ area) for of_side, area in zip(both, areas, strict=True)], 1)
            )
            for name, both in sums.items()
        }
        return {
            "object F1": 200 * ratio(counts @ hits, counts @ objects),
            "object Dice": 100 * mean["dice"],
            "object Hausdorff": mean["hausdorff"],
        }

    return scores


def _in_reading_order(ids: Int32[Tensor, "h w"]) -> Int32[Tensor, "h w"]:
    """Number the objects on a map 1, 2, ... by their first pixels; 0 stays 0."""
    present, first = np.unique(ids.numpy(), return_index=True)
    ordered = present[first.argsort()]
    number = np.zeros(int(present[-1]) + 1, np.int32)
    number[ordered[ordered > 0]] = np.arange(1, (present > 0).sum() + 1)
    return ids.new_tensor(number[ids.numpy()])


def _hausdorff(
    truth: Int32[np.ndarray, "h w"], found: Int32[np.ndarray, "h w"], shared: Int64[np.ndarray, "t f"]
) -> tuple[Float64[np.ndarray, " t"], Float64[np.ndarray, " f"]]:
    """The distance of every object of each side to its match, or else to the nearest object of the other side."""
    if not shared.size:
        diagonal = float(np.hypot(*(length - 1 for length in truth.shape)))
        return np.full(shared.shape[0], diagonal), np.full(shared.shape[1], diagonal)
    true_boxes, found_boxes = find_objects(truth), find_objects(found)

    @cache  # most pairs are each other's match
    def distance(true: int, other: int) -> float:
        window = _hull(true_boxes[true], found_boxes[other])
        here, there = truth[window] == true + 1, found[window] == other + 1
        return max(_farthest(here, there), _farthest(there, here))

    def nearest(pairs: Sequence[tuple[int, int]]) -> float:
        """The smallest distance among pairs; those that cannot be nearer, going by their boxes, are not measured."""
        bounds = [_apart(true_boxes[true], found_boxes[other]) for true, other in pairs]
        best = np.inf
        for place in np.argsort(bounds):
            if bounds[place] >= best:
                break
            best = min(best, distance(*pairs[place]))
        return best

    to_found = [nearest([(row, column) for column in _candidates(shares)]) for row, shares in enumerate(shared)]
    to_truth = [nearest([(row, column) for row in _candidates(shares)]) for column, shares in enumerate(shared.T)]
    return np.array(to_found), np.array(to_truth)


def _candidates(shares: Int64[np.ndarray, " n"]) -> Sequence[int]:
    """The match of an object that shares so many pixels with each of the other side; all of them if it has none."""
    return [int(shares.argmax())] if shares.any() else range(len(shares))


def _farthest(here: Bool[np.ndarray, "y x"], there: Bool[np.ndarray, "y x"]) -> float:
    """The largest distance, in pixels, from a pixel of `here` to the nearest one of `there`."""
    outside = here & ~there
    if not outside.any():
        return 0.0
    distance: Any = distance_transform_edt(~there)
    return float(distance[outside].max())


def _hull(a: Slices, b: Slices) -> Slices:
    rows, columns = (slice(min(x.start, y.start), max(x.stop, y.stop)) for x, y in zip(a, b, strict=True))
    return rows, columns


def _apart(a: Slices, b: Slices) -> int:
    """A bound on the distance from below: an edge of one box is reached by its object, and the other stays behind."""
    return max(max(abs(x.start - y.start), abs(x.stop - y.stop)) for x, y in zip(a, b, strict=True))
