"""Ratios within one run: two ways of the same work, timed in turns, and the most memory that each holds at once."""

from __future__ import annotations

import json
import multiprocessing
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def cpu_model() -> str:
    """As the system names it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Row:
    """One line of the table: ours against the other way, on some threads, and what was hoped for."""

    what: str
    other: str
    threads: int
    ours_s: float
    other_s: float
    faster: float
    """Median over rounds of (the other's time / ours)."""
    ours_bytes: int | None = None
    other_bytes: int | None = None
    goal_faster: float | None = None
    goal_memory: float | None = None
    """Largest share of the other's memory that ours may take."""
    baseline: bool = False
    """The other does less: the table says how many times its time and memory ours takes."""

    @property
    def memory(self) -> float | None:
        return self.ours_bytes / self.other_bytes if self.ours_bytes and self.other_bytes else None


def compare(
    what: str,
    ours: Callable[[], object],
    other: Callable[[], object],
    *,
    other_name: str,
    threads: int,
    rounds: int = 7,
    least_s: float = 0.1,
    memory: bool = True,
    goal_faster: float | None = None,
    goal_memory: float | None = None,
) -> Row:
    """Time both in turns, `rounds` times, each time long enough to measure.

    Whatever else the machine does then falls on both alike, and the median of the rounds' ratios forgets the rounds
    that were disturbed.
    """
    times = in_turns([ours, other], threads=threads, rounds=rounds, least_s=least_s)
    row = ratio(what, other_name, threads, [(mine, theirs) for mine, theirs in times])
    sizes = (peak_bytes(ours), peak_bytes(other)) if memory else (None, None)
    return replace(row, ours_bytes=sizes[0], other_bytes=sizes[1], goal_faster=goal_faster, goal_memory=goal_memory)


def ratio(what: str, other_name: str, threads: int, times: list[tuple[float, float]]) -> Row:
    """The row of rounds of (our seconds, the other's)."""
    return Row(
        what,
        other_name,
        threads,
        ours_s=statistics.median(mine for mine, _ in times),
        other_s=statistics.median(theirs for _, theirs in times),
        faster=statistics.median(theirs / mine for mine, theirs in times),
    )


def in_turns(
    ways: Sequence[Callable[[], object]], *, threads: int, rounds: int, least_s: float = 0.1
) -> list[tuple[float, ...]]:
    """Each round's seconds of every way, one way after the other."""
    torch.set_num_threads(threads)
    first = [_seconds(way, 1) for way in ways]  # allocates, plans and caches: tells only that a way is slow
    once = [s if s > 10 * least_s else _seconds(way, 1) for way, s in zip(ways, first, strict=True)]
    repeats = [max(1, round(least_s / s)) for s in once]
    return [tuple(_seconds(way, n) for way, n in zip(ways, repeats, strict=True)) for _ in range(rounds)]


@contextmanager
def apart(builds: Sequence[Callable[[], Callable[[], object]]], threads: int) -> Iterator[list[Callable[[], object]]]:
    """Ways that each live in a process of their own, which builds one and does it when it is called here.

    For ways that would tread on each other's memory: what the C library does with a large block depends on those that
    were freed before it.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for build in builds:
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, build, threads), daemon=True)
        process.start()
        pipes.append(here)
        processes.append(process)
    try:
        yield [partial(_asked, pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.terminate()


def _serve(pipe: Connection, build: Callable[[], Callable[[], object]], threads: int) -> None:
    torch.set_num_threads(threads)
    way = build()
    while True:
        pipe.recv()
        way()
        pipe.send(None)


def _asked(pipe: Connection) -> None:
    pipe.send(None)
    pipe.recv()


def _seconds(way: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        way()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def peak_bytes(way: Callable[[], object]) -> int:
    """The most that torch's allocator holds at one time beyond what it held before; on the GPU, where one is in use.

    On a CPU it is counted allocation by allocation from the profiler's trace: the same in every run, where resident
    memory depends on what the C library keeps. What numpy and the matrix library take for themselves is not in it.
    """
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        way()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        held += change
        most = max(most, held)
    return most
