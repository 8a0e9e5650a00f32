"""Pictures of known objects, and detectors that see them window by window."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import pytest
import shapely
import torch
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.measure import label

from colocate.base.shapes import rasterise
from colocate.evaluation.metrics.objects import Found
from colocate.prediction.outputs import Outlined
from colocate.prediction.stitch import Piece, Window, Windows, merge, pieces

Detector = Callable[[np.ndarray, Window], dict[int, np.ndarray]]
"""The objects of a window as masks, by the ids that they truly have."""


def perfect(ids: np.ndarray, window: Window) -> dict[int, np.ndarray]:
    """Each object of the picture, cut to the window."""
    cut = np.zeros((window.side, window.side), int)
    part = ids[window.top : window.top + window.side, window.left : window.left + window.side]
    cut[: part.shape[0], : part.shape[1]] = part
    return {int(id): cut == id for id in np.unique(cut) if id}


def found(masks: dict[int, np.ndarray], side: int, shuffle: int = 0) -> Found:
    """Masks as a detector gives them: numbered anyhow."""
    order = list(np.random.default_rng(shuffle).permutation(sorted(masks)).tolist())
    ids = np.zeros((side, side), np.int32)
    for number, id in enumerate(order, start=1):
        ids[masks[id]] = number
    return Found(torch.from_numpy(ids), [1 + id % 3 for id in order], [1 / (1 + id) for id in order])


def stitched(
    ids: np.ndarray, side: int, overlap: int, detector: Detector = perfect, skipped: Collection[int] = ()
) -> list[Outlined]:
    seen: list[Piece] = []
    for number, window in enumerate(Windows(ids.shape[1], ids.shape[0], side, overlap)):
        if number not in skipped:
            seen += pieces(window, found(detector(ids, window), side, number))
    return merge(seen)


def drawn(merged: Outlined, like: np.ndarray) -> np.ndarray:
    patch = rasterise(merged.shape, *like.shape)
    whole = np.zeros(like.shape, bool)
    whole[patch.place] = patch.mask
    return whole


def as_sets(masks: Iterable[np.ndarray]) -> set[bytes]:
    return {np.packbits(mask).tobytes() for mask in masks}


def assert_apart(merged: list[Outlined], like: np.ndarray) -> None:
    """Valid shapes, together as large as each alone; and no pixel drawn twice."""
    shapes = [one.shape for one in merged]
    assert shapely.is_valid(shapes).all() and not shapely.is_empty(shapes).any()
    assert shapely.union_all(shapes).area == pytest.approx(sum(shape.area for shape in shapes), abs=1e-9)
    assert sum((drawn(one, like).astype(int) for one in merged), np.zeros(like.shape, int)).max() <= 1


LENGTHS = [48, 31, 60, 17, 1]


@st.composite
def pictures(draw: st.DrawFn) -> np.ndarray:
    """Ids of connected objects: dust, blobs, some larger than windows, apart or side by side with no gap."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    height, width = draw(st.sampled_from(LENGTHS)), draw(st.sampled_from(LENGTHS))
    there = gaussian_filter(rng.normal(size=(height, width)), draw(st.sampled_from([0, 1, 3, 6]))) > 0
    seeds = np.full((height, width), True)
    seeds[rng.integers(0, height, 12), rng.integers(0, width, 12)] = False
    nearest = distance_transform_edt(seeds, return_distances=False, return_indices=True)
    regions = 1 + nearest[0] * width + nearest[1] if draw(st.booleans()) else np.ones((height, width), int)
    return label(np.where(there, regions, 0), connectivity=1)


@st.composite
def rasters(draw: st.DrawFn) -> tuple[int, int]:
    """Side and overlap of windows."""
    side = draw(st.sampled_from([16, 9, 12, 21, 30]))
    return side, draw(st.sampled_from([side // 2, side // 3, side // 4, 1]))
