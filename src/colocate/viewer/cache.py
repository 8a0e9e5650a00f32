"""What was made last is kept, and what several threads want at once is made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from threading import RLock
from typing import TypeVar

Made = TypeVar("Made")
Maker = Callable[..., Made]

READING = RLock()  # held by whoever reads slides: a slide's open file is moved to and fro in


def kept(most: int, lock: RLock | None = None) -> Callable[[Maker[Made]], Maker[Made]]:
    """Keep what a function made for the last `most` arguments; one thread at a time makes (those of one lock)."""

    def decorate(make: Maker[Made]) -> Maker[Made]:
        cached, own = lru_cache(most)(make), lock or RLock()

        @wraps(make)
        def get(*key: Hashable) -> Made:
            with own:
                return cached(*key)

        return get

    return decorate
