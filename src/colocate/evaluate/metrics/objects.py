"""Objects of one image as run-length codes of the COCO library, in plain JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64
from pycocotools import mask as _mask
from torch import Tensor

coco_mask: Any = _mask  # whose stubs want bytes where the library takes a str as well


@final
class Objects(NamedTuple):
    """The objects of one image, true or found by a detector; masks may overlap."""

    size: tuple[int, int]
    """Height and width of the image in pixels."""
    rles: list[dict[str, Any]]
    """Each object's mask, as pycocotools codes it, `counts` a str."""
    classes: list[int]
    """1, 2, ..."""
    scores: list[float]
    """The detector's confidence; 1 for true objects."""
    boxes: list[list[float]] | None = None
    """The detector's own boxes in pixels (left, top, width, height); None: the masks' tight ones."""

    @classmethod
    def of_ids(cls, ids: Int32[Tensor, "h w"], classes: Sequence[int] | None = None) -> Objects:
        """Take the objects of a map of ids (0 = none), in ascending order of their ids.

        `classes` are those of the objects in that order; all 1 if None.
        """
        columns = np.asfortranarray(ids.numpy())
        present = np.unique(columns)
        rles = [_code(columns == number) for number in present[present > 0]]
        classes = [1] * len(rles) if classes is None else [int(value) for value in classes]
        return cls((ids.shape[0], ids.shape[1]), rles, classes, [1.0] * len(rles))

    @classmethod
    def of_masks(
        cls,
        masks: Bool[Tensor, "n h w"],
        classes: Sequence[int],
        scores: Sequence[float],
        boxes: Float[Tensor, "n 4"] | None = None,
    ) -> Objects:
        """Take a detector's masks; `boxes` in pixels as left, top, width, height."""
        rles = [_code(np.asfortranarray(mask.numpy())) for mask in masks]
        return cls(
            (masks.shape[1], masks.shape[2]),
            rles,
            [int(value) for value in classes],
            [float(value) for value in scores],
            None if boxes is None else boxes.tolist(),
        )

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO's form of results; without boxes if they are the tight ones, which the library finds itself."""
        results = [
            {"image_id": image_id, "category_id": category, "segmentation": rle, "score": score}
            for rle, category, score in zip(self.rles, self.classes, self.scores, strict=True)
        ]
        if self.boxes is not None:
            results = [result | {"bbox": box} for result, box in zip(results, self.boxes, strict=True)]
        return results

    @property
    def xywh(self) -> list[list[float]]:
        """Each object's box in pixels (left, top, width, height): its own, else its mask's tight one."""
        if self.boxes is not None:
            return self.boxes
        return coco_mask.toBbox(self.rles).tolist() if self.rles else []

    @property
    def areas(self) -> list[int]:
        """Each mask's pixels."""
        return [int(coco_mask.area(rle)) for rle in self.rles]  # one by one: the library fails on more than 255


def label_map(found: Objects, threshold: float = 0.5) -> Int32[Tensor, "h w"]:
    """One map of the objects whose score is at least `threshold`: i + 1 where object i lies, 0 where none does.

    No pixel belongs to two: the higher score is on top, of equal scores the earlier. An object that others hide wholly
    is not on the map.
    """
    ids = np.zeros(found.size, np.int32)
    order = sorted(range(len(found.rles)), key=lambda i: -found.scores[i])
    for i in reversed(order):
        if found.scores[i] >= threshold:
            ids[coco_mask.decode(found.rles[i]).astype(bool)] = i + 1
    return torch.from_numpy(ids)


def shared_pixels(truth: Int32[Tensor, "h w"], found: Int32[Tensor, "h w"]) -> Int64[np.ndarray, "t f"]:
    """Count the pixels that each id of one map shares with each id of the other, from 0 up to the largest.

    >>> shared_pixels(torch.tensor([[0, 1, 1]], dtype=torch.int32), torch.tensor([[2, 2, 0]], dtype=torch.int32))
    array([[0, 0, 1],
           [1, 0, 1]])
    """
    rows, columns = int(truth.max()) + 1, int(found.max()) + 1
    pairs = truth.numpy().astype(np.int64).ravel() * columns + found.numpy().ravel()
    return np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)


def _code(mask: np.ndarray) -> dict[str, Any]:
    """The run-length code of a mask whose columns lie together in memory."""
    rle = coco_mask.encode(mask.astype(np.uint8, order="K", copy=False))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}
