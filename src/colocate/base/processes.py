"""Worker processes: how many, how they start, and that they end with the process that started them."""

from __future__ import annotations

import os
import sys
import threading
import time
from multiprocessing import parent_process

EVERY_S = 0.2


def cores() -> int:
    """The cores that this process may use, or all of the machine where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_method() -> str:
    """How workers start: "fork", at once and sharing memory, on Linux; "spawn" elsewhere, where forks can hang."""
    return "fork" if sys.platform.startswith("linux") else "spawn"


def end_with_parent() -> None:
    """Let this worker end when the process that started it does; a killed one cannot end its workers itself."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()


def _watch(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY_S)
    os._exit(1)
