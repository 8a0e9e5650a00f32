"""Counted nouns, differences of settings, Markdown tables, and progress on a terminal."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

import pydantic
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from colocate.base.errors import printable

QUIET_S = 30.0
Shown = TypeVar("Shown", bound="Terminal")


def counted(number: int, noun: str) -> str:
    """A number and what is counted.

    >>> counted(1, "tile"), counted(4500, "tile")
    ('1 tile', '4,500 tiles')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def composed(text: str) -> str:
    """The same text with each accented letter as one character (NFC): names of files from macOS have two.

    >>> len("u\\u0308"), len(composed("u\\u0308"))
    (2, 1)
    """
    return unicodedata.normalize("NFC", text)


def say(sentence: str) -> None:
    """Print what may hold names of files or classes."""
    print(printable(sentence))


def changes(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What of two sets of settings differs, in words; empty where nothing does.

    >>> changes({"size": 64, "of": "tiles"}, {"size": 32, "of": "tiles"})
    'size 64, not 32'
    """
    names = sorted(stored.keys() | wanted.keys())
    differ = [name for name in names if stored.get(name) != wanted.get(name)]
    return "; ".join(f"{name} {stored.get(name)}, not {wanted.get(name)}" for name in differ)


def grid(rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table that can be read as it is: heads first; the first `left` columns at the left, others right.

    >>> print(grid([["run", "steps"], ["plm", "7"]], left=1))
    | run | steps |
    | --- | ----: |
    | plm |     7 |
    """
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = ["<" if place < left else ">" for place in range(len(widths))]
    lines = [[f"{t:{side}{w}}" for t, side, w in zip(row, sides, widths, strict=True)] for row in cells]
    lines.insert(1, ["-" * w if side == "<" else "-" * (w - 1) + ":" for side, w in zip(sides, widths, strict=True)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Terminal:
    """Lines that stay and, below them, progress bars, both on stderr or in a notebook.

    There are no bars in a file or a cluster's log, nor in a notebook without ipywidgets.
    """

    def __init__(self, *, before: str = "{task.description}", after: str = "", shown: bool = True) -> None:
        """before, after: what stands on either side of a bar, as rich formats it. shown: whether to print at all."""
        self.console = Console(stderr=True, quiet=not shown, highlight=False)
        notebook = self.console.is_jupyter and find_spec("ipywidgets") is not None  # with which rich draws its bars
        self.live = shown and (notebook or (self.console.is_terminal and sys.stderr.isatty()))
        columns: list[ProgressColumn] = [TextColumn(before), BarColumn(), MofNCompleteColumn()]
        if after:
            columns.append(TextColumn(after))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, disable=not self.live)

    def __enter__(self: Shown) -> Shown:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.refresh()  # rich's last is up to a tenth of a second old in a notebook
        self.bar.stop()

    def say(self, sentence: str) -> None:
        """Print one line that stays."""
        self.console.print(printable(sentence), soft_wrap=True, markup=False)


class Count(Terminal):
    """How many of some things are done: a bar or, where there are none, a line every half minute."""

    def __init__(self, things: int, noun: str) -> None:
        super().__init__()
        self.noun, self.things, self.done, self.said = noun, things, 0, time.monotonic()
        self.task = self.bar.add_task(f"{noun}s", total=things)

    def advance(self) -> None:
        self.done += 1
        self.bar.advance(self.task)
        if not self.live and time.monotonic() > self.said + QUIET_S:
            self.said = time.monotonic()
            self.say(f"{self.done} of {counted(self.things, self.noun)}")


def reason(error: Exception) -> str:
    """What an error says, in one line; of several validation errors the first, after its field.

    >>> reason(ValueError("no number  here"))
    'no number here'
    """
    if isinstance(error, pydantic.ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
    return " ".join(str(error).split())[:300]
