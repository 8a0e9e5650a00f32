"""`colocate pretrain`: a recipe's fields as options."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import tyro

from .. import distributed, train
from ..errors import UserError
from ..recipe import Recipe
from ..recipes import RECIPES
from .recipe_words import with_recipe


@dataclass
class Pretrain:
    """Pretrain a backbone on tiles."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    resume: bool = False
    """Go on with the run in --out where it stopped (or start it, if it has not begun)."""


def pretrain(arguments: list[str]) -> None:
    """Tiles in, a backbone out: colocate pretrain RECIPE --data TILES --out RUN."""
    asked, named = with_recipe(Pretrain, "pretrain RECIPE", "sets the defaults shown here.", arguments)
    if not named:
        raise UserError(f"which recipe? colocate pretrain RECIPE ...; there are {', '.join(RECIPES)}")
    for field, example in (("data", "TILES"), ("out", "RUN")):
        if not getattr(asked.recipe, field):
            raise UserError(f"give --{field} {example}")
    try:
        folder = train.pretrain(asked.recipe, asked.resume)
    finally:
        distributed.leave()
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:
        print(f"done: {folder}/backbone.safetensors; look at it with: colocate report {folder}")
