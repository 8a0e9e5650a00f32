"""A process with all that it started: what they hold and what they used."""

from __future__ import annotations

from collections.abc import Callable

import psutil


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started; none where it is gone."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_mb(processes: list[psutil.Process]) -> float:
    """What they hold together; memory that several share counts once (PSS)."""
    return _sum(processes, lambda one: one.memory_full_info().pss) / 1e6


def cpu_s(processes: list[psutil.Process]) -> float:
    """Seconds of cores that they used."""
    return _sum(processes, lambda one: sum(one.cpu_times()[:2]))


def _sum(processes: list[psutil.Process], of: Callable[[psutil.Process], float]) -> float:
    """Over those that have not ended meanwhile."""
    total = 0.0
    for one in processes:
        try:
            total += of(one)
        except psutil.Error:
            continue
    return total
