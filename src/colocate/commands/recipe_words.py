"""Commands whose first word is a recipe, which gives their options and defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tyro

from ..errors import UserError
from ..recipe import Recipe, read_recipe
from ..recipes import RECIPES, find_recipe

Asked = TypeVar("Asked")


def with_recipe(
    asks: Callable[[Recipe], Asked], usage: str, explanation: str, arguments: list[str]
) -> tuple[Asked, bool]:
    """What is asked of a command, and whether a recipe was named (else it is plm).

    `asks` makes the dataclass of its options from the named recipe; `usage` is its name and what stands for a recipe,
    `explanation` says what the recipe does in it.

    Raises:
        UserError: no such recipe, or one and --from as well.
    """
    name, origin, rest = _split(arguments)
    default = asks(read_recipe(origin) if origin else find_recipe(name or "plm"))
    asked = tyro.cli(
        type(default),
        prog=f"colocate {usage if name is None else f'{usage.split()[0]} {name}'}",
        description=f"RECIPE ({', '.join(RECIPES)}, my_module.py:my_recipe, or --from RUN/recipe.json) {explanation}",
        default=default,
        args=rest,
        config=(tyro.conf.AvoidSubcommands,),
    )
    return asked, bool(name or origin)


def _split(arguments: list[str]) -> tuple[str | None, Path | None, list[str]]:
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
