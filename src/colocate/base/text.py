"""Words and tables as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic


def counted(number: int, noun: str) -> str:
    """A number and what is counted.

    >>> counted(1, "tile"), counted(4500, "tile")
    ('1 tile', '4,500 tiles')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def escaped(cell: str) -> str:
    """A cell of a Markdown table."""
    return cell.replace("|", "\\|")


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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if place < left else ">" for place in range(len(widths))]
    lines = [[f"{t:{side}{w}}" for t, side, w in zip(row, sides, widths, strict=True)] for row in rows]
    lines.insert(1, ["-" * w if side == "<" else "-" * (w - 1) + ":" for side, w in zip(sides, widths, strict=True)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
