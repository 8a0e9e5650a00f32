"""Exceptions that end a command in one sentence."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: one sentence that names the file or setting, and the remedy.

    The command line prints it without a traceback (`--debug` shows one).
    """


class TileError(UserError):
    """A tile that cannot be read: skipped and listed while training."""


class Interrupted(Exception):
    """The run was asked to stop and has saved itself; the message says how to go on."""
