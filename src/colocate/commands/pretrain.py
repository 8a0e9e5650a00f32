"""`colocate pretrain`: a recipe's fields as options."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .. import distributed, train
from ..errors import UserError
from ..recipe import Recipe, read_recipe
from ..recipes import RECIPES, find_recipe


@dataclass
class Pretrain:
    """Pretrain a backbone on tiles."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    resume: bool = False
    """Go on with the run in --out where it stopped (or start it, if it has not begun)."""


def pretrain(arguments: list[str]) -> None:
    """Tiles in, a backbone out: colocate pretrain RECIPE --data TILES --out RUN."""
    name, origin, rest = recipe_words(arguments)
    default = read_recipe(origin) if origin else find_recipe(name or "plm")
    asked = tyro.cli(
        Pretrain,
        prog=f"colocate pretrain {name or 'RECIPE'}",
        description=f"RECIPE ({', '.join(RECIPES)}, my_module.py:my_recipe, or --from RUN/recipe.json) sets the "
        "defaults shown here.",
        default=Pretrain(default),
        args=rest,
        config=(tyro.conf.AvoidSubcommands,),
    )
    if name is None and origin is None:
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


def recipe_words(arguments: list[str]) -> tuple[str | None, Path | None, list[str]]:
    """The recipe's name, the file after --from, and the rest."""
    rest = list(arguments)
    origin = None
    for place, word in enumerate(rest):
        if word == "--from" or word.startswith("--from="):
            value = word.partition("=")[2] or (rest[place + 1] if place + 1 < len(rest) else "")
            if not value:
                raise UserError("--from needs a file: --from RUN/recipe.json")
            origin = Path(value)
            del rest[place : place + (1 if "=" in word else 2)]
            break
    name = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if name and origin:
        raise UserError(f"give a recipe ({name}) or --from ({origin}), not both")
    return name, origin, rest
