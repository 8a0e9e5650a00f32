"""The command line: one function a command, loaded when it is asked for; errors in a sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

import tyro

from colocate import __version__
from colocate.base.errors import Interrupted, UserError, printable


class Command(NamedTuple):
    """A command that is not loaded yet: most need torch and timm, which take seconds."""

    place: str
    """module:function"""
    summary: str
    """The first line of the function's docstring."""

    def load(self) -> Callable[..., None]:
        module, _, function = self.place.partition(":")
        return getattr(import_module(module), function)


COMMANDS = {
    "pretrain": Command(
        "colocate.cli.pretrain:pretrain",
        "Tiles in, a backbone out: colocate pretrain RECIPE --data TILES --out RUN.",
    ),
    "evaluate": Command(
        "colocate.cli.evaluate:evaluate",
        "Judge backbones by segmentation: colocate evaluate instances|semantics|probe --data DATA --backbone RUN ...",
    ),
    "table": Command(
        "colocate.cli.evaluate:table",
        "Results of `colocate evaluate` as tables in Markdown: means, intervals, differences from a reference.",
    ),
    "tile": Command(
        "colocate.cli.tile:tile",
        "Cut slides into tiles where tissue is: shards and a manifest to pretrain on, a picture of each slide.",
    ),
    "features": Command(
        "colocate.cli.predict:features",
        "What a backbone sees in slides, as HDF5 for multiple-instance tools: a vector a tile, or a vector a cell.",
    ),
    "predict": Command(
        "colocate.cli.predict:predict",
        "What a fine-tuned model finds in slides, as GeoJSON for QuPath: objects, or a map of classes.",
    ),
    "recipes": Command(
        "colocate.cli.pretrain:recipes",
        "List the recipes that come with colocate: what their losses are made of, and what each is for.",
    ),
    "inspect": Command(
        "colocate.cli.tile:inspect",
        "Look at data before training: counts, sizes, colours, duplicates, unreadable files, a contact sheet.",
    ),
    "prepare": Command(
        "colocate.datasets.prepare:prepare",
        "Bring a labelled data set, as released, into the one form that `colocate evaluate` reads.",
    ),
    "export": Command("colocate.cli.runs:export", "Write a run's backbone for timm, torchvision or detectron2."),
    "report": Command(
        "colocate.cli.runs:report",
        "Draw a run as one page of pictures; of several runs print a table and draw their curves on one page.",
    ),
    "view": Command(
        "colocate.cli.view:view",
        "Look at slides, at what was made of them and at a run's views, in the browser of this machine.",
    ),
    "demo": Command(
        "colocate.cli.demo:demo",
        "Pretrain on made-up tissue and draw a page of pictures: three minutes on two cores.",
    ),
}

RETIRED = {
    "bench": "is gone: the progress line and the journal of a run say pairs per second and the share of waiting",
    "compare": "is now colocate report RUN RUN ...",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; errors end in one sentence on stderr and exit status 2 (`--debug`: with the traceback)."""
    # Threads that wait for each other sleep instead of spinning: on cores that others use too, spinning cost 16 of 17
    # parts of the speed. It must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    try:
        _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Interrupted as stop:
        print(printable(f"colocate: {stop}"), file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("colocate: left at once; what was written before is as it was", file=sys.stderr)
        os._exit(130)
    except (UserError, OSError) as error:
        if debug:
            raise
        sentence = (
            str(error) if isinstance(error, UserError) else f"{error.filename or 'a file'}: {error.strerror or error}"
        )
        print(printable(f"colocate: {sentence}"), file=sys.stderr)
        sys.exit(2)


def _run(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_usage())
        return
    if name == "--version":
        print(f"colocate {__version__}")
        return
    if name in RETIRED:
        raise UserError(f"colocate {name} {RETIRED[name]}")
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no command {name!r}: {hint}There are {', '.join(COMMANDS)}")
    command = COMMANDS[name].load()
    if name in ("pretrain", "evaluate"):  # their defaults depend on their first word
        command(arguments[1:])
    else:
        tyro.cli(command, prog=f"colocate {name}", args=arguments[1:])


def _usage() -> str:
    return "\n".join(
        [
            f"colocate {__version__}: self-supervised pretraining for dense prediction in digital pathology",
            "",
            "usage: colocate COMMAND ...    (colocate COMMAND --help; --debug shows tracebacks)",
            "",
            *(f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()),
        ]
    )
