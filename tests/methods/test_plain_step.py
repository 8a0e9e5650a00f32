"""The fast step computes what the plain one does: losses, weights and queues, step after step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.models.resnet import BasicBlock

from colocate.core.settings import ViewConfig
from colocate.core.views import sample_views
from colocate.methods.moco import MoCo
from colocate.training.loop import build_method
from colocate.training.optim import OptimConfig, build_optimizer
from tests.reference.step import PlainStep
from tests.tiny import MOCO, each_view, tiny_recipe

BATCH, LR, STEPS = 8, 0.001, 3


def tiles() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (BATCH, 3, 6, 6), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, 72, mode="bicubic").clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fast_step_is_the_plain_one(dtype: torch.dtype) -> None:
    config = replace(MOCO, norm_group=BATCH, queue_length=64)
    recipe = tiny_recipe(Path(), Path(), method=config, optim=OptimConfig(lr=LR))
    method = build_method(recipe).to(dtype)
    assert isinstance(method, MoCo)
    # Batch norms over a handful of cells amplify rounding; residual branches that begin at zero keep it small.
    for part in method.modules():
        if isinstance(part, BasicBlock):
            part.zero_init_last()
    plain, optimizer = PlainStep(method, LR), build_optimizer(recipe.optim, method)
    before = torch.cat([p.detach().flatten().clone() for p in method.query.parameters()])
    for step in range(STEPS):
        views = sample_views(tiles(), ViewConfig(size=64, symmetries="all"), epoch=step)
        views = each_view(views, lambda view: view._replace(images=view.images.to(dtype)))
        loss = method(views).total()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wanted = plain(views.first.images, views.second.images, views.first.crop, views.second.crop)
        torch.testing.assert_close(loss.detach(), wanted, rtol=1e-5, atol=0)
    if dtype == torch.float32:
        return  # gradients of batch norms amplify rounding: where weights go is compared in float64
    ours, theirs = (torch.cat([p.detach().flatten() for p in e.parameters()]) for e in (method.query, plain.query))
    assert (ours - theirs).norm() < 1e-5 * (ours - before).norm()
    keys, their_keys = (torch.cat([p.flatten() for p in e.parameters()]) for e in (method.key.encoder, plain.key))
    assert (keys - their_keys).norm() < 1e-5 * (keys - before).norm()
    for ring, newest_first in ((method.past_wholes, plain.wholes), (method.past_cells, plain.cells)):
        assert ring is not None and ring.vectors.shape == newest_first.shape
        apart = torch.cdist(ring.vectors, newest_first)  # a ring holds the same vectors at other places
        assert apart.amin(0).max() < 1e-5 and apart.amin(1).max() < 1e-5
