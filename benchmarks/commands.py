"""The command line of a folder of benchmarks: python benchmarks/NAME COMMAND ..."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import tyro

from colocate.base.errors import UserError


def dispatch(name: str, commands: Mapping[str, Callable[..., None]], argv: Sequence[str] | None) -> int:
    """Run a command; errors end in one sentence and status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] not in commands:
            *first, last = commands
            raise UserError(f"say {', '.join(first)} or {last} (and --help for their options)")
        tyro.cli(commands[words[0]], prog=f"python benchmarks/{name} {words[0]}", args=words[1:])
    except (UserError, OSError) as error:
        print(f"benchmarks/{name}: {error}", file=sys.stderr)
        return 2
    return 0
