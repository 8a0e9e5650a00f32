"""Files that are whole or not there, and pictures below a number of bytes."""

from __future__ import annotations

import errno
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from PIL import Image

from colocate.base.errors import UserError


def write_atomically(path: Path, write: Callable[[io.BufferedWriter], object]) -> None:
    """Write a file under a temporary name, flush it to disk and rename it: readers see all of it or nothing.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; make room" if full else f"{error.strerror or error}; mend this"
        again = "the same command goes on (pretrain: with --resume)"
        raise UserError(f"{path} was not written: {reason}, {again}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_json(path: Path, kind: str = "JSON") -> Any:
    """What a JSON file holds; `kind` stands in errors. Raises UserError as `parsed` does."""
    return parsed(path, kind, json.loads)


def parsed(path: Path, kind: str, parse: Callable[[bytes], Any]) -> Any:
    """What a file holds, by a function.

    Raises:
        UserError: it cannot be read, is not of its `kind`, or nested so deep that it was made to do harm.
    """
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): it should be {kind}") from error
    except (ValueError, RecursionError, SyntaxError) as error:  # of which XML's ParseError is one
        raise UserError(f"{path} is no {kind}, or is cut short ({error}): get it again") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a folder, which is made; what a killed one left unfinished is removed.

    The lock is the system's own (flock on FOLDER/.lock): it ends with the process that holds it.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    check_writable(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{folder} is being written by another process: let it end, or choose another folder"
        ) from error
    try:
        for unfinished in folder.rglob(".*.tmp"):
            unfinished.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def check_writable(folder: Path) -> None:
    """Make a folder for results, unless it is there, and see that it takes files: before hours of work, not after.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder} cannot be written ({reason}): choose another folder, or mend this one") from error


MOST_BYTES = 300_000


def light_png(versions: Iterable[Image.Image]) -> bytes:
    """The first version of a picture whose PNG is below 300 kB, the last one if none is; those after it are not made.

    >>> noise = Image.effect_noise((900, 900), 99)
    >>> light = light_png(noise.resize((side, side)) for side in (900, 700, 400, 1))
    >>> Image.open(io.BytesIO(light)).size
    (400, 400)
    """
    packed = b""
    for version in versions:
        file = io.BytesIO()
        version.save(file, "PNG", optimize=True)
        packed = file.getvalue()
        if len(packed) < MOST_BYTES:
            break
    return packed
