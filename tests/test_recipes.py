"""The recipes that come with colocate: each trains as it stands, and says what it is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from colocate.core.views import sample_views
from colocate.methods.settings import ConCLConfig, DistilConfig, MoCoConfig, VICRegLConfig
from colocate.training.loop import build_method
from colocate.training.optim import build_optimizer
from colocate.training.recipe import Recipe, differences
from colocate.training.recipes import PAPER, RECIPES, find_recipe, summary


def shortened(recipe: Recipe) -> Recipe:
    """Its own networks and settings, with queues, expanders and views that fit a test, and nothing downloaded."""
    method = recipe.method
    if isinstance(method, MoCoConfig):
        method = replace(method, queue_length=64)
    elif isinstance(method, ConCLConfig):
        method = replace(method, moco=replace(method.moco, queue_length=64))
    elif isinstance(method, VICRegLConfig):
        method = replace(method, width=64)
    elif isinstance(method, DistilConfig):
        method = replace(method, teacher="test_vit", weights="random")
    encoder = replace(recipe.encoder, init="random")
    return replace(recipe, method=method, encoder=encoder, views=replace(recipe.views, size=64, local_size=32))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith("-small")])
def test_every_recipe_takes_steps(name: str) -> None:
    """On one batch, with its own optimiser."""
    recipe = shortened(find_recipe(name))
    method = build_method(recipe)
    optimizer = build_optimizer(replace(recipe.optim, lr=recipe.optim.lr / 10), method)
    batch = sample_views(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8), recipe.views, epoch=20)
    before = {name: p.clone() for name, p in method.named_parameters() if p.requires_grad}
    for _ in range(2):
        loss = method(batch).total()
        assert math.isfinite(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [name for name, p in method.named_parameters() if name in before and torch.equal(p, before[name])]
    assert still == []


def test_paper_recipes_stand_on_one_footing() -> None:
    """They differ in the method, in the reference view that ConCL needs, and in VICRegL's optimiser: nothing else."""
    plm = find_recipe("plm")
    for recipe in PAPER:
        parts = {name.split(".")[0] for name in differences(recipe(), plm)}
        allowed = {"method"} | ({"optim"} if "vicregl" in recipe().name else set())
        allowed |= {"views"} if "concl" in recipe().name else set()
        assert parts <= allowed, recipe().name


def test_each_method_has_a_small_recipe() -> None:
    """The numbers that docs/reference/run.md names, whatever the method."""
    for recipe in PAPER:
        name = recipe().name.removesuffix("-v2") + "-small"
        made = find_recipe(name)
        assert (made.batch, made.views.symmetries, made.optim.scale_lr) == (64, "all", True)
        moco = made.method.moco if isinstance(made.method, ConCLConfig) else made.method
        if isinstance(moco, MoCoConfig):
            assert (moco.queue_length, moco.momentum, moco.norm_group) == (1024, 0.99, 16)
        assert type(made.method) is type(recipe().method) and recipe().name in summary(RECIPES[name])


def test_what_plm_adds_is_the_match() -> None:
    for plain, matched, field in (("moco-v2", "plm", "match"), ("vicregl", "plm-vicregl", "location")):
        changed = differences(find_recipe(matched), find_recipe(plain))
        assert {name.split(".")[1] for name in changed} <= {field, "dense"}
