"""Worker processes that end with the process that started them."""

from __future__ import annotations

import os
import threading
import time
from multiprocessing import parent_process

EVERY_S = 0.2


def end_with_parent() -> None:
    """Let this worker end when the process that started it does; a killed one cannot end its workers itself."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()


def _watch(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY_S)
    os._exit(1)
