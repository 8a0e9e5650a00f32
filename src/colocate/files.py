"""Files that are whole or not there."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from .errors import UserError


def write_atomically(path: Path, write: Callable[[io.BufferedWriter], object]) -> None:
    """Write a file under a temporary name, flush it to disk and rename it: readers see all of it or nothing.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        again = "make room; the same command goes on (pretrain: with --resume)"
        raise UserError(f"{path} was not written: {reason}; {again}") from error
    finally:
        temporary.unlink(missing_ok=True)
