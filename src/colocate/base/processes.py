"""Processes: cores and memory, torch's defaults, how workers start, and that they end with who started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import parent_process
from typing import Any

EVERY_S = 0.2
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def cores() -> int:
    """The cores that this process may use, or all of the machine where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_method() -> str:
    """How workers start: "fork", at once and sharing memory, on Linux; "spawn" elsewhere, where forks can hang."""
    return "fork" if sys.platform.startswith("linux") else "spawn"


def start_worker() -> None:
    """Let this worker leave Ctrl-C to the process that started it, and end when that does, be it killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()


def _watch(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY_S)
    os._exit(1)


@contextmanager
def first_defaults() -> Iterator[None]:
    """Have torch make tensors in float32 on the host again, whatever a user's program has set; it is set back after."""
    torch: Any = sys.modules.get("torch")
    if torch is None:  # nobody has set anything
        yield
        return
    kind, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        with nullcontext() if device.type == "cpu" else torch.device("cpu"):  # which slows every call of torch
            yield
    finally:
        torch.set_default_dtype(kind)


def keep_freed_memory() -> None:
    """Have this process keep what it frees, instead of giving each large block back to the system.

    glibc maps every block above 32 MB anew, and the system clears its pages at first touch: a fifth of a training
    step on a CPU. The price is memory: holes between blocks stay the process's (a quarter more at its peak). Nothing
    happens where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)  # never
