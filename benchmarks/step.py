"""A whole PLM step: views, both networks, matching, both losses, backward, optimiser; against the plain losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from benchmarks.timing import Row, compare
from colocate.methods.moco import MoCo, Pairs
from colocate.networks import Features
from colocate.optim import build_optimizer
from colocate.recipes import plm
from colocate.train import build_method
from colocate.views import View, sample_views
from tests.reference.info_nce import info_nce as plain_info_nce
from tests.reference.overlap import overlap_matrix_batched, pooled_batched

TILES = 32


def plain_pair(method: MoCo, _: object, own: View, other: View, q: Features, k: Features) -> Pairs:
    """What `MoCo.pair` does, with every pair of cells intersected."""
    assert q.cells is not None and k.cells is not None
    assert method.query.align is not None and method.key.encoder.align is not None
    seen, matched_keys = pooled_batched(overlap_matrix_batched(own.crop, other.crop, q.grid[0]), k.cells)
    seen_back, matched_queries = pooled_batched(overlap_matrix_batched(other.crop, own.crop, q.grid[0]), q.cells)
    with torch.no_grad():
        matched_keys = method.key.encoder.align(matched_keys)
    queries = torch.cat([q.cells, method.query.align(matched_queries)]).flatten(0, 1)
    keys = torch.cat([matched_keys, k.cells]).flatten(0, 1)
    return Pairs(queries, keys, torch.cat([seen, seen_back]).flatten())


def plain_contrast_cells(method: MoCo, pairs: list[Pairs], negatives: torch.Tensor) -> torch.Tensor:
    """What `MoCo.contrast_cells` does, with every logit written out."""
    queries, keys, weight = Pairs.stacked(*pairs)
    return plain_info_nce(queries, keys, negatives, weight, temperature=method.temperature)


def rows(threads: int) -> list[Row]:
    """ResNet-18, 32 tiles of 224 px, 7 x 7 cells, 16,384 negatives, float32."""
    recipe = plm()
    recipe = replace(recipe, batch=TILES, method=replace(recipe.method, norm_group=TILES // 2))
    method = build_method(recipe)
    assert isinstance(method, MoCo)
    ours = (method.pair, method.contrast_cells)
    plain = (partial(plain_pair, method), partial(plain_contrast_cells, method))
    optimizer = build_optimizer(recipe.optim, method)
    tiles = torch.randint(0, 256, (TILES, 3, 224, 224), dtype=torch.uint8)
    epoch = iter(range(10**9))

    def step(parts: tuple[Callable[..., Pairs], Callable[..., torch.Tensor]]) -> None:
        method.pair, method.contrast_cells = parts
        method(sample_views(tiles, recipe.views, epoch=next(epoch))).total().backward()
        optimizer.step()
        optimizer.zero_grad()

    return [
        compare(
            f"whole PLM step, ResNet-18, {TILES} tiles of 224 px",
            lambda: step(ours),
            lambda: step(plain),
            other_name="logits materialised, every pair of cells",
            threads=threads,
            rounds=3,
            goal_faster=1,
        )
    ]
