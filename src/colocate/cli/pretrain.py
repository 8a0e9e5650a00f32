"""`colocate pretrain` and `colocate recipes`."""

from __future__ import annotations

import io
import re
import shlex
import textwrap
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from colocate.base.errors import UserError
from colocate.base.files import absolute
from colocate.base.text import say
from colocate.data.sources import check_is_there
from colocate.training.journal import begun
from colocate.training.recipe import Recipe, StoredMethod, leaves, read_recipe
from colocate.training.recipes import RECIPES, find_recipe, summary


def taken(option: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of an option (None: it is not given), and the arguments without it."""
    for place, word in enumerate(arguments):
        if word == option:
            return "".join(arguments[place + 1 : place + 2]), arguments[:place] + arguments[place + 2 :]
        if word.startswith(f"{option}="):
            return word.partition("=")[2], arguments[:place] + arguments[place + 1 :]
    return None, list(arguments)


def check_first(arguments: list[str], what: str) -> None:
    """Refuse data that are given without --data, as `inspect` and `tile` take them; `what` they are, in words."""
    if arguments and not arguments[0].startswith("-"):
        word = arguments[0]
        raise UserError(f"{word} stands where an option should: {what} given by --data {shlex.quote(word)}")


def _split(arguments: list[str]) -> tuple[str | None, Path | None, list[str]]:
    """The recipe's name, the file after --from (or in the run after it), and the rest."""
    place, rest = taken("--from", arguments)
    if place == "":
        raise UserError("--from needs a run, or a recipe.json: --from RUN")
    origin = None if place is None else Path(place)
    if origin and origin.is_dir():
        origin /= "recipe.json"
    name = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if name and origin:
        raise UserError(f"give a recipe ({name}) or --from ({origin}), not both")
    return name, origin, rest


ABOUT = (
    "RECIPE sets the defaults shown here: one that `colocate recipes` lists, my_module.py:my_recipe, or\n"
    "--from RUN [--trust]."
)
COMMON = {
    "data": "tiles: a folder, list or table of them, tar shards, or what `colocate tile` wrote; or slides",
    "out": "the run folder",
    "resume": "continue the run in --out where it stopped",
    "backbone": "any timm network with a feature grid: resnet18, resnet50, convnext_tiny, vit_small_patch16_224",
    "init": "its initial weights: random, published, a file or a run",
    "epochs": "how many times each tile is seen",
    "steps": "optimiser steps, in place of --epochs",
    "batch": "tiles per forward pass, over all devices",
    "optim.lr": "peak learning rate",
    "views.size": "height and width of a view, in pixels",
    "views.mpp": "draw views at one physical scale, in micrometres per pixel",
    "tile-mpp": "micrometres per pixel of tiles or slides that do not state it",
    "precision": "32, bf16-mixed or 16-mixed",
    "devices": "GPUs (on a CPU: processes) per machine; all GPUs by default",
    "workers": "processes per device that read tiles",
    "probe": "a labelled data set on which the backbone is probed at intervals",
    "seed": "seed of all random choices",
}
"""The options that most runs are started with; all others are under --help-all."""


@dataclass
class Pretrain:
    """Pretrain a backbone on tiles."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=RECIPES["plm"])
    resume: bool = False
    """Continue the run in --out where it stopped (or start it, if it has not begun)."""


def pretrain(arguments: list[str]) -> None:
    """Pretrain a backbone on tiles: colocate pretrain RECIPE --data TILES --out RUN.

    The recipe, named or stored, gives the options and their defaults; without one --help shows those of plm. What can
    be refused without torch is refused before it is loaded.

    Raises UserError: no such recipe, one and --from as well, a file that names code without --trust, an option that is
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
        if "--resume" in rest and origin.name == "recipe.json" and begun(origin.parent, resume=True):  # moved or not
            recipe = replace(recipe, out=str(absolute(origin.parent)))
        if isinstance(recipe.method, StoredMethod):
            kind = recipe.method.kind
            raise UserError(f"{origin} names code, which would be run: {kind}. Look at it, then add --trust")
    if "--help" in rest or "-h" in rest:
        print(_short_help(name or "RECIPE", recipe))
        raise SystemExit(0)  # as tyro does
    check_first(rest, "tiles are")
    asked = _read(name or "RECIPE", recipe, ["--help" if word == "--help-all" else word for word in rest])
    if not (name or origin):
        raise UserError(f"which recipe? colocate pretrain RECIPE ...; there are {', '.join(RECIPES)}")
    for option, example in (("data", "TILES"), ("out", "RUN")):
        if not getattr(asked.recipe, option):
            raise UserError(f"give --{option} {example}")
    data = Path(asked.recipe.data).expanduser()
    told = f"{origin} names it from the folder where it ran, which may be another than {Path.cwd()}"
    stored = origin and asked.recipe.data == recipe.data and not data.is_absolute()
    remedy = [f"{told}: go there, or give --data"] if stored else []
    check_is_there(data, *remedy)  # now, before what takes seconds to load
    begun(Path(asked.recipe.out).expanduser(), asked.resume)

    from colocate.base import distributed
    from colocate.training import loop

    try:
        folder = loop.pretrain(asked.recipe, asked.resume)
        if distributed.world()[0] == 0:
            say(f"done: {folder}/backbone.safetensors; look at it with: colocate report {shlex.quote(str(folder))}")
    finally:
        distributed.leave()


def _read(name: str, recipe: Recipe, arguments: list[str]) -> Pretrain:
    return tyro.cli(
        Pretrain,
        prog=f"colocate pretrain {name}",
        description=ABOUT,
        default=Pretrain(recipe),
        args=arguments,
        config=(tyro.conf.AvoidSubcommands,),
    )


def _short_help(name: str, recipe: Recipe) -> str:
    """The common options, explained; all others by name, a group in a paragraph. Defaults are the recipe's."""
    said = io.StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        _read(name, recipe, ["--help"])
    names = [word for word in re.findall(r"^\W{1,3}--([a-z][\w.-]*)", said.getvalue(), re.M) if word not in COMMON]
    groups: dict[str, list[str]] = {}
    for word in names:
        group, dot, rest = word.partition(".")
        groups.setdefault(f"--{group}.NAME" if dot else "--NAME", []).append(rest if dot else word)
    lines = [f"usage: colocate pretrain {name} --data TILES --out RUN [options]", "", ABOUT, ""]
    defaults = leaves(asdict(recipe) | asdict(recipe.encoder) | asdict(recipe.machine))
    for option, words in COMMON.items():
        default = defaults.get(option.replace("-", "_"))
        words = words if default in (None, "", False) else f"{words} ({default})"
        lines += _paragraph(f"--{option}", words)
    lines += ["", "more, explained by --help-all:", ""]
    for group, words in groups.items():
        lines += _paragraph(group, ", ".join(words))
    return "\n".join(lines)


def _paragraph(head: str, words: str) -> list[str]:
    return textwrap.wrap(words, 100, initial_indent=f"  {head:<16}", subsequent_indent=" " * 18, break_on_hyphens=False)


def recipes() -> None:
    """List the recipes that come with colocate: what their losses are made of, and what each is for."""
    for name, recipe in RECIPES.items():
        say(f"{name}: {summary(recipe)}")
        if not name.endswith("-small"):  # these are as those they are named after
            made = recipe()
            views, cells, matching = made.method.terms
            say(f"  views: {views} | cells: {cells} | matching: {matching} | {made.encoder.backbone}")
