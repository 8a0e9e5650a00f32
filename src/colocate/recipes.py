"""Recipes: functions that return a whole, typed description of a run. A variant calls one and changes a field."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from .errors import UserError
from .methods.moco import MoCoConfig, Overlap
from .optim import OptimConfig
from .recipe import EncoderConfig, Recipe
from .views import ViewConfig


def plm() -> Recipe:
    """PLM on MoCo-v2, as in the paper: ResNet-18, 200 epochs, batch 256, SGD 0.03, horizontal flips."""
    return Recipe(name="plm", method=MoCoConfig(match=Overlap()))


def moco_v2() -> Recipe:
    """MoCo-v2: whole views only; the paper's baseline."""
    return replace(plm(), name="moco-v2", method=MoCoConfig(match=None, dense=0.0))


def plm_tissue() -> Recipe:
    """PLM for tissue, which has no up: all eight symmetries and stain jitter."""
    return replace(plm(), name="plm-tissue", views=ViewConfig(symmetries="all", stain=0.05))


def plm_small() -> Recipe:
    """PLM for a few thousand tiles or small batches: a queue that fills within an epoch, a key that follows sooner."""
    method = MoCoConfig(match=Overlap(), queue_length=1024, momentum=0.99, norm_group=16)
    # The paper's rate for a batch of 256, scaled: at 0.03 features drift faster than the queue is renewed.
    optim = OptimConfig(lr=0.03, scale_lr=True)
    return replace(plm(), name="plm-small", batch=64, method=method, optim=optim, views=ViewConfig(symmetries="all"))


def moco_small() -> Recipe:
    """MoCo-v2 with plm-small's settings."""
    small = plm_small()
    return replace(small, name="moco-small", method=replace(small.method, match=None, dense=0.0))


def plm_demo() -> Recipe:
    """What `colocate demo` trains on its phantom tissue: minutes on two cores.

    A queue of one batch: in so short a run the keys move fast, and telling past keys from new ones by their age alone
    would pay. Milder colours and Adam, for there are but a few hundred steps.
    """
    small = plm_small()
    return replace(
        small,
        name="plm-demo",
        epochs=24,
        batch=32,
        encoder=EncoderConfig("resnet10t", output_stride=16),
        method=replace(small.method, queue_length=32, temperature=0.1),
        views=replace(small.views, size=96, jitter=(0.2, 0.2, 0.2, 0.05), grey_p=0.05, blur_px=(0.1, 1.0)),
        optim=OptimConfig(name="adamw", lr=0.001, weight_decay=0.01, warmup_epochs=2),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe().name: recipe for recipe in (plm, moco_v2, plm_tissue, plm_small, moco_small, plm_demo)
}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, or one of the user's own as `my_module.py:my_recipe`.

    Raises:
        UserError: no such recipe, file or function, or the function returns something else.
    """
    if name in RECIPES:
        return RECIPES[name]()
    path, colon, function = name.rpartition(":")
    if not colon:
        close = get_close_matches(name, RECIPES, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no recipe {name!r}: {hint}`colocate recipes` lists them; your own: my_module.py:my_recipe")
    spec = importlib.util.spec_from_file_location("recipe_of_the_user", path) if Path(path).is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file that a recipe could be taken from")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = getattr(module, function, None)
    if not callable(made):
        raise UserError(f"{path} has no function {function!r}")
    recipe = made()
    if not isinstance(recipe, Recipe):
        raise UserError(f"{name} returns {type(recipe).__name__}, not a colocate Recipe")
    return replace(recipe, name=recipe.name or function)


def summary(recipe: Callable[[], Recipe]) -> str:
    """The first line of a recipe's docstring."""
    return (inspect.getdoc(recipe) or "").splitlines()[0]
