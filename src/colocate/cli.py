"""The command line: one function a command, errors in a sentence."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Column, Table

from . import __version__, distributed, train
from .data import inspect as look
from .data import show
from .demo import demo as run_demo
from .errors import UserError
from .evaluate import table as results_table
from .evaluate.command import evaluate_command
from .evaluate.markdown import markdown
from .export import Library
from .export import export as write_for
from .figures import compare as lay_over
from .figures import report as draw
from .figures.scores import scores as draw_scores
from .predict.features_command import features
from .predict.predict_command import predict
from .prepare import prepare
from .recipe import Recipe, read_recipe
from .recipes import RECIPES, find_recipe, summary
from .tiling.command import tile

Flat = tyro.conf.arg(name="")
Place = tyro.conf.Positional


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; errors end in one sentence on stderr and exit status 2 (`--debug`: with the traceback)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    if arguments[0] == "--version":
        print(f"colocate {__version__}")
        return
    try:
        if arguments[0] not in COMMANDS:
            raise UserError(f"no command {arguments[0]!r}: there are {', '.join(COMMANDS)}")
        _run(arguments[0], arguments[1:])
    except train.Interrupted as stop:
        print(f"colocate: {stop}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("colocate: left at once; what was written before is as it was", file=sys.stderr)
        os._exit(130)
    except (UserError, OSError) as error:
        if debug:
            raise
        sentence = str(error) if isinstance(error, UserError) else f"{error.filename or 'a file'}: {error.strerror}"
        print(f"colocate: {sentence}", file=sys.stderr)
        sys.exit(2)


def _run(name: str, arguments: list[str]) -> None:
    if name in ("pretrain", "evaluate"):  # their defaults depend on their first word
        COMMANDS[name](arguments)
    else:
        tyro.cli(COMMANDS[name], prog=f"colocate {name}", args=arguments)


def _usage() -> str:
    lines = [f"  {name:<10}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"colocate {__version__}: self-supervised pretraining for dense prediction in digital pathology",
            "",
            "usage: colocate COMMAND ...    (colocate COMMAND --help; --debug shows tracebacks)",
            "",
            *lines,
        ]
    )


@dataclass
class Pretrain:
    """Pretrain a backbone on tiles."""

    recipe: Annotated[Recipe, Flat]
    resume: bool = False
    """Go on with the run in --out where it stopped (or start it, if it has not begun)."""


def pretrain(arguments: list[str]) -> None:
    """Tiles in, a backbone out: colocate pretrain RECIPE --data TILES --out RUN."""
    name, origin, rest = _recipe_words(arguments)
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


def _recipe_words(arguments: list[str]) -> tuple[str | None, Path | None, list[str]]:
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


def inspect(
    data: Place[str],
    root: Path | None = None,
    mpp: float | None = None,
    sample: int | None = None,
    out: Path = Path("contact-sheet.png"),
) -> None:
    """Look at data before training: counts, sizes, colours, duplicates, unreadable files, a contact sheet.

    Args:
        data: A folder, list, table, tar shard, folder of shards, or index of tiles.
        root: Folder that listed paths are relative to.
        mpp: Micrometres per pixel of tiles that do not say.
        sample: Open only so many tiles, evenly spaced (default: all).
        out: The contact sheet.
    """
    show(look(data, root=root, mpp=mpp, sample=sample, out=out))
    print(f"contact sheet: {out}")


def export(run: Place[Path], out: Place[Path], to: Library = "timm") -> None:
    """Write a run's backbone for timm, torchvision or detectron2.

    Args:
        run: The run folder.
        out: The file: .safetensors or .pth (timm, torchvision), .pkl (detectron2).
        to: The library.
    """
    print(write_for(run, to, out))


def demo(out: Path = Path("demo")) -> None:
    """Pretrain on made-up tissue and draw a page of pictures: two minutes on two cores.

    Args:
        out: Folder for the tiles, the run and the page; a demo that was stopped goes on in it.
    """
    print(f"done: look at {run_demo(out)}")


def report(run: Place[Path], out: Path | None = None) -> None:
    """Draw a run as one page of pictures: matched cells, features before and after, curves.

    Args:
        run: The run folder.
        out: The picture (default: RUN/report.png).
    """
    print(draw(run, out))


def evaluate(arguments: list[str]) -> None:
    """Judge backbones by segmentation: colocate evaluate instances|semantics|probe --data DATA --backbone RUN ..."""
    files = evaluate_command(arguments)
    print(f"done: {len(files)} results; look at them with: colocate table {shlex.quote(str(files[0].parent.parent))}")


def table(
    results: Place[list[Path]],
    against: str | None = None,
    by: results_table.Drawn = "cases",
    out: Path | None = None,
) -> None:
    """Results of `colocate evaluate` as tables in Markdown: means, intervals, differences from a reference.

    Args:
        results: Folders of results, or result.json files.
        against: The backbone that others are compared with (default: random, else the first).
        by: What intervals draw anew: whole cases, where five or more are known, or images one by one.
        out: Folder for table.md, table.csv, table.json and table.png.
    """
    tables = results_table.collect(results, against, by)
    text = markdown(tables) + "\n"
    print(text, end="")
    if out is not None:
        results_table.write(tables, text, out)
        draw_scores(tables, out / "table.png")
        print(f"\nwritten: {out}/table.md, .csv, .json and .png")


def compare(runs: Place[list[Path]], out: Path = Path("compare.png")) -> None:
    """Lay runs of any methods over each other: a table in Markdown, and one page of curves.

    Args:
        runs: The run folders, two or more.
        out: The picture.
    """
    print(lay_over(runs, out))
    print(f"\ncurves: {out}")


COMMANDS: dict[str, Callable[..., None]] = {
    "pretrain": pretrain,
    "evaluate": evaluate,
    "table": table,
    "tile": tile,
    "features": features,
    "predict": predict,
    "recipes": recipes,
    "inspect": inspect,
    "prepare": prepare,
    "export": export,
    "report": report,
    "compare": compare,
    "demo": demo,
}
