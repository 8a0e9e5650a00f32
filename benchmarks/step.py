"""A whole PLM step, views to optimiser: against the plain step, and against its networks alone on ready tensors."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import torch
from PIL import Image

from benchmarks.timing import Row, in_turns, peak_bytes, ratio
from colocate.compiling import compile_encoders
from colocate.methods.moco import MoCo
from colocate.optim import build_optimizer
from colocate.recipes import plm
from colocate.train import build_method
from colocate.views import sample_views
from tests.reference.step import PlainStep
from tests.reference.views import moco_v2_chain

TILES = 32
ROUNDS = 5


def rows(threads: int) -> list[Row]:
    """ResNet-18, 32 tiles of 224 px that lie decoded, 7 x 7 cells, 16,384 negatives, float32."""
    images = torch.randint(0, 256, (TILES, 3, 224, 224), dtype=torch.uint8)
    step, networks = _ours(images)
    compiled, _ = _ours(images, compiled=True)
    plain = _plain(images, threads)
    times = in_turns([step, compiled, networks, plain], threads=threads, rounds=ROUNDS)
    what = f"whole PLM step, ResNet-18, {TILES} tiles of 224 px"
    by_plain = "torchvision's PIL views, every pair of cells, logits written out, NCHW"
    against = replace(ratio(what, by_plain, threads, [(one[0], one[3]) for one in times]), goal_faster=1.6)
    return [
        replace(against, ours_bytes=peak_bytes(step), other_bytes=peak_bytes(plain)),
        replace(ratio(f"{what}, compiled", by_plain, threads, [(one[1], one[3]) for one in times]), goal_faster=1.6),
        replace(
            ratio(what, "its networks alone, on ready tensors", threads, [(one[0], one[2]) for one in times]),
            baseline=True,
        ),
    ]


def _method(compiled: bool) -> MoCo:
    recipe = plm()
    method = build_method(replace(recipe, method=replace(recipe.method, norm_group=TILES)))
    assert isinstance(method, MoCo)
    if compiled:
        images = torch.zeros(TILES, 3, 224, 224).contiguous(memory_format=torch.channels_last)
        failure = compile_encoders(method, images, nullcontext())
        assert failure is None, failure
    return method


def _ours(images: torch.Tensor, compiled: bool = False) -> tuple[Callable[[], object], Callable[[], object]]:
    """The whole step, and its networks alone."""
    method, config = _method(compiled), plm()
    optimizer = build_optimizer(config.optim, method)
    epoch = iter(range(10**9))
    ready = sample_views(images, config.views)

    def step() -> None:
        method(sample_views(images, config.views, epoch=next(epoch))).total().backward()
        optimizer.step()
        optimizer.zero_grad()

    def networks() -> None:
        features = method.query(ready.first.images)
        assert features.cells is not None
        (features.whole.sum() + features.cells.sum()).backward()
        method.key(ready.second.images)
        optimizer.zero_grad()

    return step, networks


def _plain(images: torch.Tensor, threads: int) -> Callable[[], object]:
    """The plain step; its views are made by as many threads, as loader processes would on these cores."""
    method, chain = _method(compiled=False), moco_v2_chain()
    step = PlainStep(method, plm().optim.lr)
    pictures = [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in images]
    known = sample_views(images, plm().views)  # crops like those that the chain draws, and does not tell

    def whole() -> None:
        with ThreadPoolExecutor(threads) as pool:
            first, second = (torch.stack(list(pool.map(chain, pictures))) for _ in range(2))
        step(first, second, known.first.crop, known.second.crop)

    return whole
