"""Files that are whole or not there, work that one process does at a time, and pictures below a number of bytes."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout, lock_descriptor
from PIL import Image

from colocate.base.errors import UserError
from colocate.base.text import Terminal

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")  # which nobody else has


class _Raw(io.FileIO):
    """Remembers why a write failed: libraries above it, such as torch's writer of zip files, tell of something else."""

    failure: OSError | None = None

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


@contextmanager
def whole(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a file to be written under a temporary name, at the end flush it to disk and rename it.

    Readers see all of it or nothing; after an error nothing is left. While it is written it is locked (flock), so that
    `remove_unfinished` can tell it from what a killed process left.

    Raises UserError: the disk is full or the folder cannot be written.
    """
    raw: _Raw | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = _unfinished(path)
        file: io.BufferedWriter = io.BufferedWriter(raw)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            Path(raw.name).replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except Exception as error:
        failure = (raw and raw.failure) or error
        if not isinstance(failure, OSError):
            raise
        full = failure.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; make room" if full else f"{failure.strerror or failure}; mend this"
        again = "and the same command continues (pretrain: with --resume)"
        raise UserError(f"{path} was not written: {reason}, {again}") from error
    finally:
        if raw:
            with suppress(OSError):
                Path(raw.name).unlink(missing_ok=True)


def _unfinished(path: Path) -> _Raw:
    """A locked file of a new temporary name."""
    while True:
        raw = _Raw(str(path.with_name(f".{path.name}.{uuid4().hex}.tmp")), "w")
        with suppress(OSError):  # of a file system without locks
            if not (lock_descriptor(raw.fileno(), blocking=False) and os.fstat(raw.fileno()).st_nlink):
                raw.close()  # `remove_unfinished` came in between
                continue
        return raw


def reserve(file: Any, size: int) -> None:
    """Take room on the disk for an open file, which is longer then; where a system cannot (macOS), make it longer only.

    Raises OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def write_atomically(path: Path, content: bytes | str | Callable[[io.BufferedWriter], object]) -> None:
    """Write bytes, a text (UTF-8) or what a function writes, whole or not at all. Raises UserError as `whole` does."""
    with whole(path) as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left in a folder and below: temporary names and locks; what is held is in use.

    Best done before the work, to have the room, and after it: processes may take a moment to die.
    """
    for path in folder.rglob(".*"):
        with suppress(OSError):
            if UNFINISHED.fullmatch(path.name) or (path.name.endswith(".lock") and not path.stat().st_size):
                with path.open("r+b") as file:
                    mine = lock_descriptor(file.fileno(), blocking=False)
                    if mine and os.path.samestat(os.fstat(file.fileno()), path.stat()):  # not another's by now
                        path.unlink()


@contextmanager
def claimed(lock: Path, wait: bool) -> Iterator[bool]:
    """Be the only process at work on what a lock file stands for: it is there meanwhile, and ends with the process.

    Gives False, if not told to `wait`, where another process is. Raises OSError where no file can be made.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    with suppress(Timeout):
        held.acquire(-1 if wait else 0, poll_interval=0.2)
    try:
        yield held.is_locked
    finally:
        if held.is_locked:
            lock.unlink(missing_ok=True)  # before it is let go: whoever waits for it takes a new one
            held.release()


def check_utf8(path: str | Path) -> None:
    """Raises UserError for a file name that is not UTF-8: no table could hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise not_utf8(error) from None


def not_utf8(error: UnicodeEncodeError) -> UserError:
    """The error to raise for a file name that could not be encoded."""
    return UserError(f"The file name {error.object!r} is not UTF-8: rename the file")


def absolute(path: Path) -> Path:
    """The path from the root on, without "..": that leads through links as the system goes; other links are kept."""
    parts = path.absolute().parts
    after = max((number for number, part in enumerate(parts, 1) if part == ".."), default=0)
    return Path("/", *parts[:after]).resolve().joinpath(*parts[after:])


def files_below(top: Path, endings: tuple[str, ...]) -> Iterator[str]:
    """Iterate over the paths from `top` to all files with these endings, those of a folder by name and before those of
    its subfolders; none that are hidden. Follows links, but reads no folder twice.

    Raises UserError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed ({error.strerror}): check its permissions")

    home, linked = top.resolve(), set[Path]()

    def again(folder: Path) -> bool:
        real = folder.resolve()
        if real == home / folder.relative_to(top):  # there is no link on the way
            return False
        hidden = real.is_relative_to(home) and any(part.startswith(".") for part in real.relative_to(home).parts)
        if real in linked or home.is_relative_to(real) or (real.is_relative_to(home) and not hidden):
            return True
        linked.add(real)
        return False

    for folder, inside, files in os.walk(top, onerror=refuse, followlinks=True):
        here = Path(folder)
        inside[:] = sorted(name for name in inside if not name.startswith(".") and not again(here / name))
        above = "" if here == top else f"{here.relative_to(top)}/"
        for name in sorted(files):
            if name.lower().endswith(endings) and not name.startswith("."):
                yield above + name


def read_json(path: Path, kind: str = "JSON") -> Any:
    """What a JSON file holds; `kind` stands in errors. Raises UserError as `parsed` does."""
    return parsed(path, kind, json.loads)


def parsed(path: Path, kind: str, parse: Callable[[bytes], Any]) -> Any:
    """What a file holds, by a function.

    Raises UserError: it cannot be read, is not of its `kind`, or nested so deep that it was made to do harm.
    """
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): expected a {kind}") from error
    except (ValueError, RecursionError, SyntaxError) as error:  # of which XML's ParseError is one
        raise UserError(f"{path} is no {kind}, or is cut short ({error}): get it again") from error


@contextmanager
def alone(folder: Path, wait: bool = False) -> Iterator[None]:
    """Be the only process that writes into a folder, which is made; what a killed one left unfinished is removed.

    wait: until another process that is at work in it ends, which is said.

    Raises UserError: another process is at work in it (unless told to wait), or the folder cannot be written.
    """
    there = folder.exists()
    check_writable(folder)
    try:
        with ExitStack() as held:
            if not held.enter_context(claimed(folder / ".lock", wait=False)):
                said = f"{folder} is being written by another process"
                if not wait:
                    raise UserError(f"{said}: let it end, or choose another folder")
                Terminal().say(f"{said}: waiting for it")
                held.enter_context(claimed(folder / ".lock", wait=True))
            remove_unfinished(folder)
            yield
    finally:
        if not there:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def check_writable(folder: Path) -> None:
    """Make a folder for results, unless it is there, and see that it takes files: before hours of work, not after.

    Raises UserError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder} cannot be written ({reason}): choose another folder, or mend this one") from error


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    """An image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


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
        packed = encoded(version, "PNG", optimize=True)
        if len(packed) < MOST_BYTES:
            break
    return packed
