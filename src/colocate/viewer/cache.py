"""What was made last is kept, and what several threads want at once is made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache, wraps
from pathlib import Path
from threading import RLock
from typing import TypeVar

Made = TypeVar("Made")
Maker = Callable[..., Made]

READING = RLock()  # held by whoever reads slides: a slide's open file is moved to and fro in


def kept(
    most: int, lock: RLock | None = None, *, files: Callable[..., Iterable[Path | None]]
) -> Callable[[Maker[Made]], Maker[Made]]:
    """Keep what a function made for the last `most` arguments; one thread at a time makes (those of one lock).

    It is made anew where one of the `files` that it is made of, by the same arguments, was written since.
    """

    def decorate(make: Maker[Made]) -> Maker[Made]:
        cached, own = lru_cache(most)(lambda _, *key: make(*key)), lock or RLock()

        @wraps(make)
        def get(*key: Hashable) -> Made:
            with own:
                return cached(tuple(map(_written, files(*key))), *key)

        return get

    return decorate


def _written(file: Path | None) -> tuple[int, int] | None:
    """When a file was written, and how long it is; None where it is not there: who reads it says so."""
    try:
        status = file and file.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size) if status else None
