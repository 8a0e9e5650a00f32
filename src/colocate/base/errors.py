"""Exceptions that end a command in one sentence."""

from __future__ import annotations


class UserError(Exception):
    r"""Something the user can mend: one sentence that names the file or setting, and the remedy.

    The command line prints it without a traceback (`--debug` shows one). What a terminal would obey instead of showing
    (a file's name may hold anything) is written out.

    >>> print(UserError("red\x1b[31m.png is damaged"))
    red\x1b[31m.png is damaged
    """

    def __str__(self) -> str:
        return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in super().__str__())


class TileError(UserError):
    """A tile that cannot be read: skipped and listed while training."""


class Interrupted(Exception):
    """The run was asked to stop and has saved itself; the message says how to go on."""
