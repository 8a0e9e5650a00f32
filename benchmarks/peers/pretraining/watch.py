"""Start a training on so many cores, and see from outside how it goes: when each step ends, what it holds and uses."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.peers.processes import cpu_s, family, memory_mb
from colocate.base.errors import UserError

EVERY_S = 0.02
MEMORY_EVERY = 15  # looks at the steps


class Step(NamedTuple):
    """One line of a training's journal."""

    number: int
    loss: float
    waiting: float
    """Share of the step's time before its batch was there."""


@dataclass
class Seen:
    """What was seen of a training. Times are seconds since its process started."""

    steps: dict[int, Step] = field(default_factory=dict)
    ended_s: dict[int, float] = field(default_factory=dict)
    """When each step's line was written."""
    cpu_s: dict[int, float] = field(default_factory=dict)
    """Seconds of cores used until then, by all processes."""
    peak_mb: float = 0.0
    """Most memory at once, of all processes; pages that several share count once."""
    orphans: int = 0
    """Processes that outlived the first by five seconds."""

    def pace(self, batch: int, warm: int) -> dict[str, float]:
        """The figures of the steps after the first `warm`."""
        last = max(self.ended_s)
        count = last - warm
        seconds = self.ended_s[last] - self.ended_s[warm]
        waiting = statistics.mean(step.waiting for number, step in self.steps.items() if number > warm)
        return {
            "pairs_per_s": round(batch * count / seconds, 2),
            "core_ms_per_pair": round(1000 * (self.cpu_s[last] - self.cpu_s[warm]) / (batch * count), 2),
            "first_step_s": round(self.ended_s[min(self.ended_s)], 1),
            "waiting_percent": round(100 * waiting, 1),
            "peak_mb": round(self.peak_mb),
        }


def watch(
    command: Sequence[str | Path],
    journal: Path,
    read: Callable[[Path], list[Step]],
    threads: int,
    env: Mapping[str, str],
    kill_after: int | None = None,
) -> Seen:
    """Run a command on `threads` cores to its end, or kill all at once (SIGKILL of its first process) after a step.

    Raises:
        UserError: it fails; with the end of what it said.
    """
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores)), *map(str, command)]
    seen, known, turn = Seen(), set[psutil.Process](), 0
    lines = dict(enumerate(read(journal) if journal.is_file() else []))  # of the run that this one goes on with
    with tempfile.TemporaryFile() as said:
        began = time.time()
        process = subprocess.Popen(
            pinned, stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": str(threads), **env}
        )
        while True:
            code = process.poll()
            if journal.is_file():
                written = journal.stat().st_mtime
                for place, step in enumerate(read(journal)):
                    if lines.get(place) != step:
                        lines[place] = seen.steps[step.number] = step
                        seen.ended_s[step.number] = written - began
                        seen.cpu_s[step.number] = cpu_s(family(process.pid))
            if code is not None:
                break
            if turn % MEMORY_EVERY == 0:
                alive = family(process.pid)
                known |= set(alive)
                seen.peak_mb = max(seen.peak_mb, memory_mb(alive))
            turn += 1
            if kill_after is not None and kill_after in seen.steps:
                known |= set(family(process.pid))
                process.send_signal(signal.SIGKILL)
                process.wait()
                time.sleep(5)
                left = [one for one in known if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
                seen.orphans = len(left)
                for one in left:
                    one.kill()
                return seen
            time.sleep(EVERY_S)
        if code:
            said.seek(0)
            words = said.read().decode(errors="replace").split()
            raise UserError(f"{Path(command[0]).name} ended with {code}: {' '.join(words)[-600:]}")
    return seen
