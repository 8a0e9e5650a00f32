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

from colocate.base.errors import UserError

EVERY_S = 0.02
MEMORY_EVERY = 15  # looks at the steps
TICKS = os.sysconf("SC_CLK_TCK")


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
    seen, known, turn = Seen(), set[int](), 0
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
                        seen.cpu_s[step.number] = _cpu_s(family(process.pid))
            if code is not None:
                break
            if turn % MEMORY_EVERY == 0:
                alive = family(process.pid)
                known |= set(alive)
                seen.peak_mb = max(seen.peak_mb, sum(map(_memory_mb, alive)))
            turn += 1
            if kill_after is not None and kill_after in seen.steps:
                known |= set(family(process.pid))
                process.send_signal(signal.SIGKILL)
                process.wait()
                time.sleep(5)
                left = [pid for pid in known if _runs(pid)]
                seen.orphans = len(left)
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                return seen
            time.sleep(EVERY_S)
        if code:
            said.seek(0)
            words = said.read().decode(errors="replace").split()
            raise UserError(f"{Path(command[0]).name} ended with {code}: {' '.join(words)[-600:]}")
    return seen


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, from the state on; none where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def _runs(pid: int) -> bool:
    return bool(fields := _stat(pid)) and fields[0] != "Z"


def _cpu_s(pids: list[int]) -> float:
    """Seconds of cores that processes used."""
    return sum(int(fields[11]) + int(fields[12]) for pid in pids if (fields := _stat(pid))) / TICKS


def _memory_mb(pid: int) -> float:
    """Memory of a process; what n processes share counts one n-th (PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000
