"""The command line: one function a command, loaded when it is asked for; errors in a sentence."""

from __future__ import annotations

import inspect
import io
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from colocate import __version__
from colocate.base.errors import EXTRAS, Interrupted, UserError, not_installed, printable

with suppress(ImportError, AttributeError):  # no part of tyro's interface: without it help is less well wrapped
    from tyro import _docstrings

    _as_in_source = _docstrings.parse_docstring_from_object
    # tyro breaks the lines of an option's help where the source does, too: of classes here, of functions in `_run`.
    _docstrings.parse_docstring_from_object = lambda source: {
        name: " ".join(text.split()) for name, text in _as_in_source(source).items()
    }


VALUES = ConstructorRegistry()
"""How options are read that hold a number, or None in place of a number, a word or a path."""


@VALUES.primitive_rule
def _values(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """tyro's own, but for what is said of wrong values: one plain sentence, where tyro names the types it tried."""
    asked: Any = info.type
    kinds: Any = get_args(asked) if get_origin(asked) in (Union, UnionType) else (asked,)
    optional = NoneType in kinds
    plain = [kind for kind in kinds if kind is not NoneType]
    if len(plain) != 1 or plain[0] not in ((int, float, str, Path) if optional else (int, float)):
        return None
    kind = plain[0]
    fit = (*kinds, int) if kind is float else kinds
    read = partial(_value, kind, optional)
    return PrimitiveConstructorSpec(1, kind.__name__.upper(), read, lambda x: isinstance(x, fit), lambda x: [str(x)])


def _value(kind: type[Any], optional: bool, words: list[str]) -> Any:
    word = words[0]
    if optional and word == "None":
        return None
    if kind in (str, Path):
        return kind(word)
    try:
        number = kind(word)
    except ValueError:
        comma = kind is float and re.fullmatch(r"[+-]?\d*,\d+", word)
        remedy = f": write {word.replace(',', '.')}" if comma else ""
        raise ValueError(f"{word} is not a {'whole ' * (kind is int)}number{remedy}") from None
    if not math.isfinite(number):
        raise ValueError(f"{word} is not valid: give a finite number")
    return number


class Command(NamedTuple):
    """A command that is not loaded yet: most need torch and timm, which take seconds."""

    place: str
    """module:function"""
    summary: str
    """The first line of the function's docstring."""
    extras: tuple[str, ...] = ()
    """What brings all it needs, where the core is not enough."""

    def load(self) -> Callable[..., None]:
        module, _, function = self.place.partition(":")
        return getattr(import_module(module), function)


COMMANDS = {
    "start": Command(
        "colocate.cli.start:start",
        "From slides and a few annotated regions to objects on all slides: tile, pretrain, fine-tune, predict.",
        ("slides", "evaluation"),
    ),
    "pretrain": Command(
        "colocate.cli.pretrain:pretrain",
        "Pretrain a backbone on tiles: colocate pretrain RECIPE --data TILES --out RUN.",
    ),
    "evaluate": Command(
        "colocate.cli.evaluate:evaluate",
        "Judge backbones by segmentation: colocate evaluate TASK --data DATA --backbone RUN ...",
        ("evaluation",),
    ),
    "table": Command(
        "colocate.cli.runs:table",
        "Tabulate results of `colocate evaluate` in Markdown: means, intervals, differences from a reference.",
        ("evaluation",),
    ),
    "tile": Command(
        "colocate.cli.tile:tile",
        "Cut the tissue of slides into tiles: shards and a manifest to pretrain on, and a page of pictures.",
        ("slides",),
    ),
    "features": Command(
        "colocate.cli.predict:features",
        "Extract a backbone's features of slides, as HDF5 for multiple-instance tools: a vector per tile or per cell.",
        ("features",),
    ),
    "predict": Command(
        "colocate.cli.predict:predict",
        "Apply a fine-tuned model to slides: objects, or a map of classes, as GeoJSON for QuPath.",
        ("slides", "evaluation"),
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
        "Convert a labelled data set, as released, to the one form that `colocate evaluate` reads.",
        ("evaluation",),
    ),
    "export": Command(
        "colocate.cli.runs:export", "Write a run's backbone for timm, Hugging Face, torchvision or detectron2."
    ),
    "report": Command(
        "colocate.cli.runs:report",
        "Write a page about a run: pictures, curves, warnings, next steps; for several runs, a table and their curves.",
    ),
    "view": Command(
        "colocate.cli.view:view",
        "View slides, what was made from them, and a run's views, in the browser of this machine.",
        ("viewer", "features"),
    ),
    "demo": Command(
        "colocate.cli.demo:demo",
        "Pretrain on made-up tissue and write a page about it: three minutes on two cores.",
    ),
}

RETIRED = {
    "bench": "is gone: a run's progress line and journal show pairs per second and the share of time spent waiting",
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
        if os.name != "posix":  # a file that is open cannot be renamed there, and more
            raise UserError("colocate runs on Linux and macOS: on Windows, install it within WSL 2")
        _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Interrupted as stop:
        print(printable(f"colocate: {stop}"), file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("colocate: stopped at once; what was written before is unchanged", file=sys.stderr)
        os._exit(130)
    except (MemoryError, RuntimeError) as error:  # torch's are of the second kind
        full = isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", str(error))
        if debug or not full:
            raise
        print("colocate: there is not enough memory: take a smaller batch, view or window", file=sys.stderr)
        sys.exit(2)
    except (UserError, OSError, ModuleNotFoundError) as error:
        if debug or (isinstance(error, ModuleNotFoundError) and _package(error) not in EXTRAS):
            raise
        if isinstance(error, ModuleNotFoundError):
            sentence = not_installed(_package(error), COMMANDS[arguments[0]].extras)
        elif isinstance(error, UserError):
            sentence = str(error)
        else:
            sentence = f"{error.filename or 'a file'}: {error.strerror or error}"
        print(printable(f"colocate: {sentence}"), file=sys.stderr)
        sys.exit(2)


def _package(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]


SEVERAL = ("--backbone", "--classes", "--hold-out")
"""Options whose values would seem to add up; of others the last one counts, as is usual."""


def _run(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_usage())
        return
    if name == "--version":
        print(f"colocate {__version__}")
        return
    if name == COMPLETION:
        _print_completion(arguments[1:])
        return
    if name in RETIRED:
        raise UserError(f"colocate {name} {RETIRED[name]}")
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no command {name!r}: {hint}There are {', '.join(COMMANDS)}")
    options = [word.partition("=")[0].replace("_", "-") for word in arguments[1:]]
    if twice := [option for option in SEVERAL if options.count(option) > 1]:
        raise UserError(f"{twice[0]} is given twice, and only the last would count: give all of its values after one")
    command = COMMANDS[name].load()
    with VALUES:
        if name in ("pretrain", "evaluate"):  # their defaults depend on their first word
            command(arguments[1:])
        else:
            _check_words(name, command, options)
            command.__doc__ = re.sub(r"\n {8}(?=\S)", " ", inspect.getdoc(command) or "")
            tyro.cli(command, prog=f"colocate {name}", args=arguments[1:])


def _check_words(name: str, command: Callable[..., None], options: Sequence[str]) -> None:
    """Refuse a word that is given as an option, such as --out of `tile`: tyro would say that its value is missing."""
    words: dict[str, str] = {}
    for word, kind in get_type_hints(command, include_extras=True).items():
        said = getattr(kind, "__metadata__", ())
        if tyro.conf.Positional in said:
            words[word] = next((part.metavar for part in said if hasattr(part, "metavar")), word.upper())
    if wrong := [option for option in options if option.startswith("--") and option[2:].replace("-", "_") in words]:
        usage = " ".join(words.values())
        raise UserError(f"colocate {name} has no option {wrong[0]}: give its value alone: colocate {name} {usage}")


COMPLETION = "--tyro-print-completion"


def _print_completion(words: list[str]) -> None:
    """Print a script that completes commands and options in a shell (docs/index.md says where it goes)."""
    from colocate.cli import evaluate, pretrain
    from colocate.evaluation.settings import InstancesConfig

    if words not in (["bash"], ["zsh"]):
        raise UserError(f"for which shell? colocate {COMPLETION} bash (or zsh)")
    commands: dict[str, Callable[..., Any]] = {name: command.load() for name, command in COMMANDS.items()}
    commands |= {"pretrain": pretrain.Pretrain, "evaluate": evaluate.Asked[InstancesConfig]}
    script = io.StringIO()
    with redirect_stdout(script), suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="colocate", args=[COMPLETION, *words], config=(tyro.conf.AvoidSubcommands,)
        )
    # A help of two lines would be two words to choose from.
    print(re.sub(r"^COMPLETION_SPEC = .*$", lambda line: line[0].replace("\\n", " "), script.getvalue(), flags=re.M))


def _usage() -> str:
    return "\n".join(
        [
            f"colocate {__version__}: self-supervised pretraining for dense prediction in digital pathology",
            "",
            "usage: colocate COMMAND ...    (colocate COMMAND --help; --debug shows tracebacks)",
            "",
            *(f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()),
            "",
            f'To have bash complete commands and options: eval "$(colocate {COMPLETION} bash)"',
        ]
    )
