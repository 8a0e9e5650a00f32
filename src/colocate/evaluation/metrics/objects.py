"""Objects of one image as run-length codes of the COCO library, in plain JSON values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64
from pycocotools import mask as _mask

if TYPE_CHECKING:
    from torch import Tensor

coco_mask: Any = _mask  # whose stubs want bytes where the library takes a str as well


class Found(NamedTuple):
    """What a network found in an image, no pixel in two objects."""

    ids: Int32[Tensor, "h w"]
    """i + 1 where object i lies, 0 where none does."""
    classes: list[int]
    """1, 2, ..."""
    scores: list[float]


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

        Raises ValueError: there are more or fewer classes than objects.
        """
        flat = ids.numpy().ravel("F")  # as the library counts: down the columns
        edges = [*np.flatnonzero(np.diff(flat, prepend=-1)).tolist(), flat.size]
        counts: dict[int, list[int]] = {}
        ends: dict[int, int] = {}
        for (start, end), number in zip(pairwise(edges), flat[edges[:-1]].tolist(), strict=True):
            counts.setdefault(number, []).extend((start - ends.get(number, 0), end - start))
            ends[number] = end
        size = (ids.shape[0], ids.shape[1])
        plain = []
        for number in sorted(number for number in counts if number > 0):
            rest = flat.size - ends[number]
            plain.append({"size": list(size), "counts": counts[number] + ([rest] if rest else [])})
        rles = [_plain(code) for code in coco_mask.frPyObjects(plain, *size)] if plain else []
        classes = [1] * len(rles) if classes is None else [int(value) for value in classes]
        if len(classes) != len(rles):
            raise ValueError(
                f"{len(classes)} classes for {len(rles)} objects: give one for each id of the map, ascending"
            )
        return cls(size, rles, classes, [1.0] * len(rles))

    @classmethod
    def of_masks(
        cls,
        size: tuple[int, int],
        masks: Iterable[Bool[Tensor, "h w"]],
        classes: Sequence[int],
        scores: Sequence[float],
        boxes: Float[Tensor, "n 4"] | None = None,
    ) -> Objects:
        """Take a detector's masks, one at a time; `boxes` in pixels as left, top, width, height."""
        return cls(
            size,
            [_plain(coco_mask.encode(np.asfortranarray(mask.numpy(), np.uint8))) for mask in masks],
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


def label_map(found: Objects, threshold: float = 0.5) -> Int32[Tensor, "h w"]:
    """One map of the objects whose score is at least `threshold`: i + 1 where object i lies, 0 where none does.

    No pixel belongs to two: the higher score is on top, of equal scores the earlier. An object that others hide wholly
    is not on the map.
    """
    import torch

    height, width = found.size
    ids = np.zeros(height * width, np.int32)
    for i in sorted(range(len(found.rles)), key=lambda i: -found.scores[i])[::-1]:
        if found.scores[i] >= threshold:
            edges = list(accumulate(_counts(found.rles[i]["counts"])))
            for start, end in zip(edges[::2], edges[1::2], strict=False):  # background may come last
                ids[start:end] = i + 1
    return torch.from_numpy(np.ascontiguousarray(ids.reshape(width, height).T))


def shared_pixels(truth: Int32[Tensor, "h w"], found: Int32[Tensor, "h w"]) -> Int64[np.ndarray, "t f"]:
    """Count the pixels that each id of one map shares with each id of the other, from 0 up to the largest.

    >>> import torch
    >>> shared_pixels(torch.tensor([[0, 1, 1]], dtype=torch.int32), torch.tensor([[2, 2, 0]], dtype=torch.int32))
    array([[0, 0, 1],
           [1, 0, 1]])
    """
    rows, columns = int(truth.max()) + 1, int(found.max()) + 1
    pairs = truth.numpy().astype(np.int64).ravel() * columns + found.numpy().ravel()
    return np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)


def check_size(truth: Sequence[int], found: Sequence[int]) -> None:
    """Raises ValueError for a finding of another height or width: turned, it would have as many pixels."""
    if tuple(truth) != tuple(found):
        raise ValueError(f"the finding is {tuple(found)} pixels and the truth {tuple(truth)}: give both of one image")


def _plain(rle: dict[str, Any]) -> dict[str, Any]:
    """A run-length code of the library in plain JSON values."""
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def _counts(code: str) -> list[int]:
    """The lengths of the runs of a code, in turn of background and of the object, down the columns.

    The library itself decodes to whole masks only. Its code: numbers in groups of five bits, the lowest first, each a
    letter from "0" on, with a sixth bit where another follows; from the fourth number on the difference from the last
    but one.
    """
    counts: list[int] = []
    value = bits = 0
    for letter in code.encode():
        group = letter - ord("0")
        value |= (group & 31) << bits
        bits += 5
        if group & 32:
            continue
        if group & 16:  # negative
            value -= 1 << bits
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = bits = 0
    return counts
