"""`colocate bench`: the words of `colocate pretrain`, measured instead of trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from ..bench import bench as measure
from ..bench.measure import SECONDS
from ..bench.picture import draw
from ..bench.report import words, write
from ..errors import UserError
from ..files import check_writable
from ..recipe import Recipe
from .recipe_words import with_recipe

OUT = "bench.json"


@dataclass
class Bench:
    """Measure where the time of a pretraining goes."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    seconds: float = SECONDS
    """About how long to measure; a device too slow for the recipe's batch is measured with a smaller one."""


def bench(arguments: list[str]) -> None:
    """Where a pretraining's time goes on this machine: colocate bench [RECIPE] [--data TILES] [its options]."""
    explanation = (
        "is measured (default plm); options are those of colocate pretrain. Without --data tiles are made up; --out "
        "names the JSON file, the picture is written beside it; steps and epochs do not matter."
    )
    asked, _ = with_recipe(lambda recipe: Bench(replace(recipe, out=OUT)), "bench [RECIPE]", explanation, arguments)
    out = Path(asked.recipe.out)
    if out.suffix != ".json" or out.is_dir():
        raise UserError(f"--out {out} names no JSON file: give one, as --out {OUT}")
    check_writable(out.parent)
    report = measure(asked.recipe, asked.seconds)
    print(words(report))
    write(report, out)
    draw(report, out.with_suffix(".png"))
    print(f"\nwritten: {out} and {out.with_suffix('.png')}")
