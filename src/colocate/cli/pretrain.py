"""`colocate pretrain` and `colocate recipes`."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Column, Table

from colocate.base import distributed
from colocate.base.errors import UserError
from colocate.base.text import say
from colocate.training import loop
from colocate.training.recipe import Recipe, StoredMethod, read_recipe
from colocate.training.recipes import RECIPES, find_recipe, summary


def _split(arguments: list[str]) -> tuple[str | None, Path | None, list[str]]:
    """The recipe's name, the file after --from (or in the run after it), and the rest."""
    rest = list(arguments)
    origin = None
    for place, word in enumerate(rest):
        if word == "--from" or word.startswith("--from="):
            value = word.partition("=")[2] or (rest[place + 1] if place + 1 < len(rest) else "")
            if not value:
                raise UserError("--from needs a run, or a recipe.json: --from RUN")
            origin = Path(value) / "recipe.json" if Path(value).is_dir() else Path(value)
            del rest[place : place + (1 if "=" in word else 2)]
            break
    name = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if name and origin:
        raise UserError(f"give a recipe ({name}) or --from ({origin}), not both")
    return name, origin, rest


@dataclass
class Pretrain:
    """Pretrain a backbone on tiles."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    resume: bool = False
    """Go on with the run in --out where it stopped (or start it, if it has not begun)."""


def pretrain(arguments: list[str]) -> None:
    """Tiles in, a backbone out: colocate pretrain RECIPE --data TILES --out RUN.

    The recipe, named or stored, gives the options and their defaults; without one --help shows those of plm.

    Raises:
        UserError: no such recipe, one and --from as well, a file that names code without --trust, an option that is
            gone, or as `loop.pretrain`.
    """
    name, origin, rest = _split(arguments)
    if any(word.startswith("--cache") for word in rest):
        raise UserError("--cache and --cache-gb are gone, as a run gained 1 to 3 % by them: leave them out")
    if origin is None:
        recipe = find_recipe(name or "plm")
    else:
        recipe = read_recipe(origin, trust="--trust" in rest)
        rest = [word for word in rest if word != "--trust"]
        if isinstance(recipe.method, StoredMethod):
            kind = recipe.method.kind
            raise UserError(f"{origin} names code, which would be run: {kind}. Look at it, then add --trust")
    asked = tyro.cli(
        Pretrain,
        prog=f"colocate pretrain {name or 'RECIPE'}",
        description="RECIPE sets the defaults shown here: one that `colocate recipes` lists, my_module.py:my_recipe, "
        "or --from RUN [--trust].",
        default=Pretrain(recipe),
        args=rest,
        config=(tyro.conf.AvoidSubcommands,),
    )
    if not (name or origin):
        raise UserError(f"which recipe? colocate pretrain RECIPE ...; there are {', '.join(RECIPES)}")
    for field, example in (("data", "TILES"), ("out", "RUN")):
        if not getattr(asked.recipe, field):
            raise UserError(f"give --{field} {example}")
    try:
        folder = loop.pretrain(asked.recipe, asked.resume)
    finally:
        distributed.leave()
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:
        say(f"done: {folder}/backbone.safetensors; look at it with: colocate report {shlex.quote(str(folder))}")


def recipes() -> None:
    """List the recipes that come with colocate: what their losses are made of, and what each is for."""
    columns = (Column(name, no_wrap=True) for name in ("recipe", "whole views", "cells", "matching", "backbone"))
    table = Table(*columns, box=None, pad_edge=False)
    made = {name: recipe() for name, recipe in RECIPES.items()}
    for name, recipe in made.items():
        if not name.endswith("-small"):
            table.add_row(name, *recipe.method.terms, recipe.encoder.backbone)
    console = Console(highlight=False, soft_wrap=True, width=180)  # rows stay whole; the terminal may wrap them
    console.print(table)
    console.print()
    for name, recipe in RECIPES.items():
        console.print(f"{name}: {summary(recipe)}")
