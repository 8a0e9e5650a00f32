"""The parts of a step against the plain way of doing them: views, overlap pooling, dense contrast."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image

from benchmarks.timing import Row, compare
from colocate.core.geometry import Crop
from colocate.core.matching import overlap
from colocate.core.objectives import info_nce
from colocate.core.settings import ViewConfig
from colocate.core.views import sample_params, sample_views
from tests.reference import overlap as plain_overlap
from tests.reference.info_nce import info_nce as plain_info_nce
from tests.reference.views import batch_of, moco_v2_chain

WIDTH = 128  # of a projected cell
NEGATIVES = 16_384


def rows(threads: int) -> list[Row]:
    """Every part on this many threads."""
    return [
        *[views(threads, pillow_blur) for pillow_blur in (False, True)],
        *[pooling(threads, cells) for cells in (7, 14, 28)],
        *[contrast(threads, tiles) for tiles in (32, 256)],
    ]


def views(threads: int, pillow_blur: bool) -> Row:
    """32 tiles of 224 px to one view each, decoding excluded: tiles lie ready as tensors, or as PIL images.

    The chain runs image by image on one thread and is taken to scale perfectly over workers: on more threads, its time
    is divided by their number. Two views of 16 tiles, so that both draw and render as in training.
    """
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, (16, 3, 224, 224), generator=generator, dtype=torch.uint8)
    images = [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in tiles] * 2
    chain = moco_v2_chain(pillow_blur=pillow_blur)
    epoch = iter(range(10**9))

    def ours() -> object:
        torch.set_num_threads(threads)
        return sample_views(tiles, epoch=next(epoch))

    def theirs() -> object:
        torch.set_num_threads(1)
        return batch_of(chain, images)

    row = compare(
        "32 views of 224 px",
        ours,
        theirs,
        other_name=f"torchvision's PIL chain, {'Pillow' if pillow_blur else 'torchvision'}'s blur, per core",
        threads=threads,
        least_s=1.0,
        memory=False,
        goal_faster=2,
    )
    return replace(row, other_s=row.other_s / threads, faster=row.faster / threads)


def _crops(tiles: int) -> tuple[Crop, Crop]:
    """Pairs of crops as the paper's recipe draws them."""
    sizes, index = torch.tensor([224, 224]).expand(tiles, 2), torch.arange(tiles)
    first, second = (sample_params(ViewConfig(), sizes, index, 0, 0, view).crop for view in (0, 1))
    return first, second


def pooling(threads: int, cells: int) -> Row:
    """Match and pooled features of 32 pairs of views, and the gradient back to the features."""
    own, other = _crops(32)
    features = torch.randn(32, cells**2, WIDTH, requires_grad=True)
    upstream = torch.randn(32, cells**2, WIDTH)

    def ours() -> None:
        torch.autograd.grad(overlap(own, other, cells).pool(features), features, upstream)

    def theirs() -> None:
        shares = plain_overlap.overlap_matrix_batched(own, other, cells)
        torch.autograd.grad(plain_overlap.pooled_batched(shares, features)[1], features, upstream)

    return compare(
        f"overlap and pooling, 32 pairs, {cells} x {cells} cells, forward and backward",
        ours,
        theirs,
        other_name="every pair of cells",
        threads=threads,
        rounds=15,  # a millisecond's work, and large blocks of memory: times scatter
        goal_faster=20 if cells == 28 else 1,
        goal_memory=0.1 if cells == 28 else None,
    )


def contrast(threads: int, tiles: int) -> Row:
    """Both directions' 7 x 7 cells against the queue, forward and backward, weighted by the crops' overlap."""
    first, second = _crops(tiles)
    weight = torch.cat([overlap(first, second).weight, overlap(second, first).weight]).flatten().float()
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(len(weight), WIDTH, generator=generator, requires_grad=True)
    key = torch.randn(len(weight), WIDTH, generator=generator)
    negatives = torch.nn.functional.normalize(torch.randn(NEGATIVES, WIDTH, generator=generator), dim=1)

    def ours() -> None:
        seen = weight.nonzero().squeeze(1)  # rows of weight zero need no work
        loss = info_nce(query[seen], key[seen], negatives, weight[seen], count=len(weight))
        torch.autograd.grad(loss, query)

    def theirs() -> None:
        torch.autograd.grad(plain_info_nce(query, key, negatives, weight), query)

    return compare(
        f"dense InfoNCE, b = {tiles}, {len(weight):,} rows x {NEGATIVES:,} negatives, forward and backward",
        ours,
        theirs,
        other_name="logits materialised",
        threads=threads,
        rounds=7 if tiles < 100 else 3,
        goal_faster=4 if tiles >= 256 else 1,
        goal_memory=0.05,
    )
