"""Pieces of objects put together on masks of the whole picture: every pair of pieces, every window."""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from skimage.measure import label

Mask = np.ndarray


class Piece(NamedTuple):
    window: int
    mask: Mask
    score: float


def stitched(pieces: list[Piece], views: dict[int, Mask], cores: dict[int, Mask]) -> list[tuple[Mask, float]]:
    """The mask and the score of each object.

    pieces: what was seen, as masks of the picture; views, cores: of each window that was looked at.
    """
    group = list(range(len(pieces)))
    for one, other in combinations(range(len(pieces)), 2):
        if pieces[one].window != pieces[other].window and _same(pieces[one], pieces[other], views):
            group = [group[one] if number == group[other] else number for number in group]
    objects = []
    for number in sorted(set(group)):
        members = [pieces[member] for member in range(len(pieces)) if group[member] == number]
        seen_by = {piece.window for piece in members}
        kept = [
            np.logical_and.reduce([piece.mask, *(~cores[window] for window in seen_by - {piece.window})])
            for piece in members
        ]
        whole = np.logical_or.reduce(kept)
        believed = np.logical_or.reduce([cores[window] for window in seen_by])
        if whole.any() and (share := (whole & believed).sum() / whole.sum()) >= 0.5:
            areas = [int(mask.sum()) for mask in kept]
            objects.append((share, whole, float(np.dot([piece.score for piece in members], areas)) / sum(areas)))
    free = [whole.copy() for _, whole, _ in objects]
    for one, other in combinations(range(len(objects)), 2):
        winner, loser = (one, other) if objects[one][0] >= objects[other][0] else (other, one)
        free[loser] &= ~objects[winner][1]
    return [(mask, score) for mask, (_, _, score) in zip(free, objects, strict=True) if mask.any()]


def _same(one: Piece, other: Piece, views: dict[int, Mask]) -> bool:
    both = views[one.window] & views[other.window]
    if not (one.mask & other.mask).any():  # nor do arms, which take their time to find
        return False
    whole = [(one.mask & both, other.mask & both)]
    arms = [(one.mask & both, arm) for arm in _arms(other.mask, both)]
    arms += [(arm, other.mask & both) for arm in _arms(one.mask, both)]
    return any((mine & its).sum() > 0.5 * (mine | its).sum() for mine, its in whole + arms)


def _arms(mask: Mask, both: Mask) -> list[Mask]:
    """What is apart where both windows saw, but joined by pixels that one of them saw."""
    arms: Any
    joined: Any
    arms, joined = label(mask & both, connectivity=1), label(mask, connectivity=1)
    each = [(arms == number, joined[arms == number][0]) for number in range(1, arms.max() + 1)]
    return [arm for arm, part in each if sum(part == other for _, other in each) > 1]
