"""Objects of one image as run-length codes of the COCO library, in plain JSON values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

        Raises:
            ValueError: there are more or fewer classes than objects.
        """
        flat = ids.numpy().ravel("F")  # as the library counts: down the columns
        starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1) if flat.size else np.zeros(0, np.int64)
        lengths = np.diff(starts, append=flat.size)
        order = np.argsort(flat[starts], kind="stable")
        order = order[flat[starts][order] > 0]
        rles = _packed(starts[order], lengths[order], flat[starts][order], (ids.shape[0], ids.shape[1]))
        classes = [1] * len(rles) if classes is None else [int(value) for value in classes]
        if len(classes) != len(rles):
            raise ValueError(
                f"{len(classes)} classes for {len(rles)} objects: give one for each id of the map, ascending"
            )
        return cls((ids.shape[0], ids.shape[1]), rles, classes, [1.0] * len(rles))

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
            [_code(np.asfortranarray(mask.numpy())) for mask in masks],
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
    height, width = found.size
    ids = np.zeros(height * width, np.int32)
    order = [i for i in sorted(range(len(found.rles)), key=lambda i: -found.scores[i]) if found.scores[i] >= threshold]
    shown = order[::-1]
    starts, lengths, owners = _runs([found.rles[i]["counts"] for i in shown])
    numbers = np.array(shown, np.int64)[owners] + 1
    for start, end, number in zip(starts.tolist(), (starts + lengths).tolist(), numbers.tolist(), strict=True):
        ids[start:end] = number
    import torch

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


def _code(mask: np.ndarray) -> dict[str, Any]:
    """The run-length code of a mask whose columns lie together in memory."""
    rle = coco_mask.encode(mask.astype(np.uint8, order="K", copy=False))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def _packed(
    starts: Int64[np.ndarray, " r"],
    lengths: Int64[np.ndarray, " r"],
    owner: Int32[np.ndarray, " r"],
    size: tuple[int, int],
) -> list[dict[str, Any]]:
    """The run-length code of each owner's runs of pixels, counted down the columns; an owner's lie together."""
    begins = np.flatnonzero(np.diff(owner, prepend=0))
    gaps = np.diff(starts + lengths, prepend=0) - lengths
    gaps[begins] = starts[begins]
    plain = []
    for part in np.split(np.stack([gaps, lengths], 1), begins)[1:]:
        rest = size[0] * size[1] - int(part.sum())
        plain.append({"size": list(size), "counts": [*part.ravel().tolist(), *([rest] if rest else [])]})
    codes = coco_mask.frPyObjects(plain, *size) if plain else []
    return [{"size": list(size), "counts": code["counts"].decode()} for code in codes]


def _runs(codes: list[str]) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"], Int64[np.ndarray, " r"]]:
    """Where runs of pixels start, counted down the columns, how long they are, and whose: what `_packed` packed.

    The library itself decodes to whole masks only. Its code: numbers in groups of five bits, the lowest first, each a
    letter from "0" on, with a sixth bit where another follows; from the fourth number on the difference from the last
    but one.
    """
    letters = np.frombuffer("".join(codes).encode(), np.uint8).astype(np.int64) - ord("0")
    last = np.flatnonzero(letters < 32)
    first = np.append(0, last + 1)[:-1]
    place = np.arange(len(letters)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((letters & 31) << (5 * place), first)
    values -= np.where(letters[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    owner = np.repeat(np.arange(len(codes)), [len(code) for code in codes])[last]
    begins = np.searchsorted(owner, owner)  # where the numbers of each number's object begin
    nth = np.arange(len(owner)) - begins
    for side in (nth % 2 == 1, (nth % 2 == 0) & (nth > 0)):
        values[side] = _sums(values[side], owner[side])
    ends = _sums(values, owner)
    ones = np.flatnonzero(nth % 2 == 1)
    return ends[ones - 1], values[ones], owner[ones]


def _sums(values: Int64[np.ndarray, " v"], owner: Int64[np.ndarray, " v"]) -> Int64[np.ndarray, " v"]:
    """Cumulative sums that begin anew with each owner, whose values lie together."""
    so_far = np.append(0, values.cumsum())
    return so_far[1:] - so_far[np.searchsorted(owner, owner)]
