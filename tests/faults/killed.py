"""Commands killed at random moments and started again at once: what a fault must never change.

A `Command` is all that another one needs: its words, and what of its folder must come out the same.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

KILLS = int(os.environ.get("COLOCATE_KILLS", "1"))  # of each command: `make faults` asks for 100
MARK = "COLOCATE_FAULT"  # in the environment of a command's processes, so that orphans are found
PATIENCE_S = 300


def contents(out: Path) -> dict[str, object]:
    """All files of a folder, by their paths in it."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Command:
    """A command that goes on where it was killed."""

    words: Callable[[Path], list[str]]
    """Of the command line, with the folder for its results."""
    compared: Callable[[Path], dict[str, object]] = contents
    """What of each file must be as in a run that nobody disturbed; every file is named."""

    def run(self, out: Path) -> None:
        """Let it end."""
        Running(self.words(out)).end()


class Running:
    """A command in processes of its own, all of which bear a mark."""

    def __init__(self, words: list[str]) -> None:
        self.mark = uuid4().hex
        environment = os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1"}
        self.main = subprocess.Popen(
            [sys.executable, "-m", "colocate", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> str:
        """Wait until it has ended well; returns what it said."""
        said, _ = self.main.communicate(timeout=PATIENCE_S)
        assert self.main.returncode == 0, said
        return said

    def kill(self) -> None:
        """Kill the main process alone, as a scheduler or the kernel does that is out of memory."""
        self.main.send_signal(signal.SIGKILL)
        self.main.wait()
        assert self.main.stdout is not None
        self.main.stdout.close()

    def alive(self) -> list[int]:
        """The processes that bear the mark."""
        found = []
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdecimal() and f"{MARK}={self.mark}".encode() in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except OSError:  # it has ended meanwhile, or is another user's
                continue
        return found


def undisturbed(command: Command, out: Path) -> tuple[float, float]:
    """Let a command run to its end; returns the seconds until its first file, and until the end."""
    began = time.perf_counter()
    running = Running(command.words(out))
    while running.main.poll() is None and not (out.is_dir() and any(out.iterdir())):
        time.sleep(0.01)
    first = time.perf_counter() - began
    running.end()
    return first, time.perf_counter() - began


def survive(command: Command, folder: Path, kills: int = KILLS, seed: int = 0, chain: int = 3) -> None:
    """Kill a command so many times, in chains of several starts on one folder, and compare what comes out at last.

    There are the same files with the same contents as without a kill, none besides, and no process is left.
    """
    first, end = undisturbed(command, folder / "undisturbed")
    expected = command.compared(folder / "undisturbed")
    moments = random.Random(seed)
    while kills > 0:
        out = folder / f"killed-{kills}"
        killed = []
        for _ in range(min(chain, kills)):
            running = Running(command.words(out))
            time.sleep(moments.uniform(0.9 * first, end))
            running.kill()
            killed.append(running)
            kills -= 1
        last = Running(command.words(out))
        said = last.end()
        found = command.compared(out)
        assert found.keys() == expected.keys(), said
        assert [name for name in expected if found[name] != expected[name]] == [], said
        time.sleep(0.5)  # workers look for their parent every fifth of a second
        assert [running.alive() for running in (*killed, last)] == [[]] * (len(killed) + 1)
