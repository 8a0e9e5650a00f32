"""The recipes that come with colocate: functions that return a `Recipe`. A variant calls one and changes a field."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches

from colocate.base.errors import UserError
from colocate.base.plugins import call
from colocate.core.settings import ViewConfig
from colocate.methods.rules import MostSimilar, Overlap
from colocate.methods.settings import ConCLConfig, DistilConfig, MoCoConfig, PrototypesConfig, VICRegLConfig
from colocate.training.optim import OptimConfig
from colocate.training.recipe import EncoderConfig, Recipe


def plm() -> Recipe:
    """PLM on MoCo-v2, as in the paper: ResNet-18, 200 epochs, batch 256, SGD 0.03, horizontal flips."""
    return Recipe(name="plm", method=MoCoConfig(match=Overlap()))


def moco_v2() -> Recipe:
    """MoCo-v2: whole views only; the paper's baseline."""
    return replace(plm(), name="moco-v2", method=MoCoConfig(match=None, dense=0.0))


def densecl() -> Recipe:
    """DenseCL: cells matched by the backbone's own features, from the query's side."""
    return replace(plm(), name="densecl", method=MoCoConfig(match=MostSimilar(), both_ways=False, align=False))


def vicregl() -> Recipe:
    """VICRegL: no negatives; cells matched by nearest feature and nearest centre; LARS as published."""
    optim = OptimConfig(name="lars", lr=0.3, scale_lr=True, weight_decay=1e-6, warmup_epochs=10)
    return replace(plm(), name="vicregl", method=VICRegLConfig(), optim=optim)


def plm_vicregl() -> Recipe:
    """PLM on VICRegL: shared tissue in place of nearest centres."""
    return replace(vicregl(), name="plm-vicregl", method=VICRegLConfig(location=Overlap()))


def concl() -> Recipe:
    """ConCL: contrast of concepts, clusters of a tile's cells, after a warm-up of 10 epochs."""
    method = ConCLConfig(MoCoConfig(match=None, dense=0.0))
    return replace(plm(), name="concl", method=method, views=ViewConfig(reference=True))


def plm_concl() -> Recipe:
    """PLM on ConCL: concepts and matched cells, half each."""
    return replace(concl(), name="plm-concl", method=ConCLConfig(MoCoConfig(match=Overlap(), dense=0.5)))


def plm_tissue() -> Recipe:
    """PLM for tissue, which has no up: all eight symmetries and stain jitter."""
    return replace(plm(), name="plm-tissue", views=ViewConfig(symmetries="all", stain=0.05))


def colocate() -> Recipe:
    """Cells told from every other cell of the batch, along the overlap: from random weights, some thousand tiles."""
    method = MoCoConfig(
        match=Overlap(),
        dense=1.0,
        align=False,
        negatives="cells",
        norm=True,
        temperature=0.1,
        momentum=0.9,
    )
    return Recipe(
        name="colocate",
        method=method,
        encoder=EncoderConfig("resnet18", cell_stride=16),
        views=ViewConfig(size=96, area=(0.1, 1.0), symmetries="all", blur_px=(0.1, 1.0)),
        optim=OptimConfig("adamw", lr=1e-3, weight_decay=0.01, warmup_epochs=1),
        epochs=20,
        batch=64,
    )


def colocate_continue() -> Recipe:
    """Cells predict the prototypes of the tissue they share: from published weights, some thousand tiles."""
    encoder = EncoderConfig("resnet18", cell_stride=16, freeze_stride=4, freeze_norm=True, init="published")
    optim = OptimConfig("adamw", lr=5e-4, weight_decay=0.01, warmup_epochs=1)
    method = PrototypesConfig()
    return replace(colocate(), name="colocate-continue", method=method, encoder=encoder, optim=optim, epochs=40)


def distil() -> Recipe:
    """Cells learn what a frozen foundation model (any of timm's) says of the tissue they share; DINOv2 by default."""
    optim = OptimConfig("adamw", lr=1e-3, weight_decay=0.01, warmup_epochs=1)
    views = ViewConfig(area=(0.2, 1.0), symmetries="all")
    return Recipe(name="distil", method=DistilConfig(), views=views, optim=optim, epochs=50)


def plm_vit() -> Recipe:
    """PLM for a ViT-S/16, whose 14 x 14 patch tokens are the cells: AdamW, warm-up, drop path, clipped gradients."""
    optim = OptimConfig(name="adamw", lr=1.5e-4, scale_lr=True, weight_decay=0.1, warmup_epochs=10, clip=1.0)
    encoder = EncoderConfig("vit_small_patch16_224", drop_path=0.1)
    return replace(plm(), name="plm-vit", encoder=encoder, optim=optim)


def plm_multicrop() -> Recipe:
    """PLM with four small local views of each tile beside the two whole ones."""
    return replace(plm(), name="plm-multicrop", views=ViewConfig(local_views=4))


def vicregl_convnext() -> Recipe:
    """VICRegL on ConvNeXt-T with multi-crop: two whole views and six local ones, AdamW."""
    optim = OptimConfig(name="adamw", lr=7.5e-4, scale_lr=True, weight_decay=0.05, warmup_epochs=10)
    views = ViewConfig(area=(0.25, 1.0), local_views=6, local_area=(0.05, 0.25))
    encoder = EncoderConfig("convnext_tiny")
    return replace(vicregl(), name="vicregl-convnext", encoder=encoder, views=views, optim=optim)


def small(recipe: Recipe) -> Recipe:
    """The recipe for a few thousand tiles or small batches: short queues, a key that follows sooner, all symmetries."""

    def sooner(moco: MoCoConfig) -> MoCoConfig:
        return replace(moco, queue_length=1024, momentum=0.99, norm_group=16)

    method = recipe.method
    if isinstance(method, MoCoConfig):
        method = sooner(method)
    elif isinstance(method, ConCLConfig):
        method = replace(method, moco=sooner(method.moco), warmup_epochs=2)
    # The paper's rate for a batch of 256, scaled: at 0.03 features drift faster than the queue is renewed.
    return replace(
        recipe,
        name=f"{recipe.name.removesuffix('-v2')}-small",
        method=method,
        views=replace(recipe.views, symmetries="all"),
        optim=replace(recipe.optim, scale_lr=True),
        batch=64,
    )


def colocate_demo() -> Recipe:
    """What `colocate demo` trains on its phantom tissue, for as many steps as fit into three minutes.

    A small network, and a key encoder that follows at once: in a few hundred steps a slow one is far behind.
    """
    recipe = colocate()
    return replace(
        recipe,
        name="colocate-demo",
        method=replace(recipe.method, momentum=0.5),
        encoder=EncoderConfig("resnet10t", cell_stride=16),
        views=replace(recipe.views, size=64, area=(0.15, 1.0)),
        batch=32,
    )


PAPER = (moco_v2, densecl, plm, vicregl, plm_vicregl, concl, plm_concl)


def _small(recipe: Callable[[], Recipe]) -> Callable[[], Recipe]:
    def made() -> Recipe:
        return small(recipe())

    made.__doc__ = f"{recipe().name} for a few thousand tiles or small batches, as plm-small."
    return made


_OTHERS = (colocate, colocate_continue, distil, plm_tissue, plm_vit, plm_multicrop, vicregl_convnext, colocate_demo)
RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe().name: recipe for recipe in (*PAPER, *_OTHERS, *(_small(recipe) for recipe in PAPER))
}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, or one of the user's own as `my_module.py:my_recipe`.

    Raises:
        UserError: no such recipe, file or function, or the function returns something else.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if ":" not in name:
        close = get_close_matches(name, RECIPES, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no recipe {name!r}: {hint}`colocate recipes` lists them; your own: my_module.py:my_recipe")
    recipe = call(name)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{name} returns {type(recipe).__name__}, not a colocate Recipe")
    return replace(recipe, name=recipe.name or name.rpartition(":")[2])


def summary(recipe: Callable[[], Recipe]) -> str:
    """The first line of a recipe's docstring."""
    return (inspect.getdoc(recipe) or "").splitlines()[0]
