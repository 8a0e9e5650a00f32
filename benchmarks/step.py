"""A whole PLM step, views to optimiser: against the plain step, and against its networks alone on ready tensors."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from PIL import Image

from benchmarks.timing import Row, apart, in_turns, peak_bytes, ratio
from colocate.base.processes import keep_freed_memory
from colocate.core.views import sample_views
from colocate.methods.moco import MoCo
from colocate.training.loop import build_method, compile_encoders
from colocate.training.optim import build_optimizer
from colocate.training.recipes import plm
from tests.reference.step import PlainStep
from tests.reference.views import moco_v2_chain

TILES = 32
ROUNDS = 5


def rows(threads: int) -> list[Row]:
    """ResNet-18, 32 tiles of 224 px that lie decoded, 7 x 7 cells, 16,384 negatives, float32; each in its process."""
    ways = [_whole, partial(_whole, compiled=True), _networks, partial(_plain, threads)]
    with apart(ways, threads) as (whole, compiled, networks, plain):
        times = in_turns([whole, compiled, networks, plain], threads=threads, rounds=ROUNDS)
    what = f"whole PLM step, ResNet-18, {TILES} tiles of 224 px"
    by_plain = "torchvision's PIL views, every pair of cells, logits written out, NCHW"
    against = replace(ratio(what, by_plain, threads, [(one[0], one[3]) for one in times]), goal_faster=1.6)
    alone = ratio(what, "its networks alone, on ready tensors", threads, [(one[0], one[2]) for one in times])
    return [
        replace(against, ours_bytes=peak_bytes(_whole()), other_bytes=peak_bytes(_plain(threads))),
        replace(ratio(f"{what}, compiled", by_plain, threads, [(one[1], one[3]) for one in times]), goal_faster=1.6),
        replace(alone, baseline=True),
    ]


def _tiles() -> torch.Tensor:
    return torch.randint(0, 256, (TILES, 3, 224, 224), dtype=torch.uint8)


def _method(compiled: bool) -> MoCo:
    recipe = plm()
    method = build_method(replace(recipe, method=replace(recipe.method, norm_group=TILES)))
    assert isinstance(method, MoCo)
    if compiled:
        images = torch.zeros(TILES, 3, 224, 224).contiguous(memory_format=torch.channels_last)
        failure = compile_encoders(method, images, nullcontext())
        assert failure is None, failure
    return method


def _whole(compiled: bool = False) -> Callable[[], object]:
    """The whole step, memory handled as `train.pretrain` does."""
    keep_freed_memory()
    method, config, images = _method(compiled), plm(), _tiles()
    optimizer = build_optimizer(config.optim, method)
    epoch = iter(range(10**9))

    def step() -> None:
        method(sample_views(images, config.views, epoch=next(epoch))).total().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _networks() -> Callable[[], object]:
    """What the step does in its networks, alone."""
    keep_freed_memory()
    method, views = _method(compiled=False), sample_views(_tiles(), plm().views)

    def networks() -> None:
        features = method.query(views.first.images)
        assert features.cells is not None
        (features.whole.sum() + features.cells.sum()).backward()
        method.key(views.second.images)
        method.zero_grad()

    return networks


def _plain(threads: int) -> Callable[[], object]:
    """The plain step; its views are made by as many threads, as loader processes would on these cores."""
    method, chain, images = _method(compiled=False), moco_v2_chain(), _tiles()
    step = PlainStep(method, plm().optim.lr)
    pictures = [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in images]
    known = sample_views(images, plm().views)  # crops like those that the chain draws, and does not tell

    def whole() -> None:
        with ThreadPoolExecutor(threads) as pool:
            first, second = (torch.stack(list(pool.map(chain, pictures))) for _ in range(2))
        step(first, second, known.first.crop, known.second.crop)

    return whole
