"""Pieces of objects put together on masks of the whole picture: every pair of pieces, every window, nothing let go."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

Mask = np.ndarray


class Piece(NamedTuple):
    window: int
    mask: Mask
    score: float


def stitched(pieces: list[Piece], views: dict[int, Mask], cores: dict[int, Mask]) -> list[tuple[Mask, float]]:
    """The mask and the score of each object.

    pieces: what was seen, as masks of the picture; views, cores: of each window that was looked at.
    """
    partners = [
        (one, other)
        for one, other in combinations(range(len(pieces)), 2)
        if pieces[one].window != pieces[other].window and _same(pieces[one], pieces[other], views)
    ]
    group = list(range(len(pieces)))
    for one, other in partners:
        group = [group[one] if number == group[other] else number for number in group]
    objects = []
    for number in sorted(set(group)):
        members = [member for member in range(len(pieces)) if group[member] == number]
        seen_by = {pieces[member].window for member in members}
        strange = sum(
            int((pieces[member].mask & core).sum())
            for member in members
            for window, core in cores.items()
            if window not in seen_by
        )
        if 2 * strange > sum(int(pieces[member].mask.sum()) for member in members):
            continue
        kept = []
        for member in members:
            mask = pieces[member].mask
            for other in range(len(pieces)):
                if (member, other) in partners or (other, member) in partners:
                    mask = mask & ~(cores[pieces[other].window] & ~pieces[other].mask)
                elif pieces[other].window != pieces[member].window:
                    mask = mask & ~(pieces[other].mask & _before(other, member, pieces, cores))
            kept.append(mask)
        areas = [int(mask.sum()) for mask in kept]
        if any(areas):
            scores = [pieces[member].score for member in members]
            objects.append((np.logical_or.reduce(kept), float(np.dot(scores, areas)) / sum(areas)))
    return objects


def _before(one: int, other: int, pieces: list[Piece], cores: dict[int, Mask]) -> Mask:
    """Where a piece is believed rather than another."""
    core, other_core = cores[pieces[one].window], cores[pieces[other].window]
    shares = [
        (pieces[number].mask & cores[pieces[number].window]).sum() / pieces[number].mask.sum()
        for number in (one, other)
    ]
    if (shares[0] >= 0.5) != (shares[1] >= 0.5):
        return np.full(core.shape, shares[0] >= 0.5)
    return (core & ~other_core) | ((core == other_core) & (one < other))


def _same(one: Piece, other: Piece, views: dict[int, Mask]) -> bool:
    both = views[one.window] & views[other.window]
    return bool((one.mask & other.mask).sum() > 0.5 * ((one.mask | other.mask) & both).sum())
