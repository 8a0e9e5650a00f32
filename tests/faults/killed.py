"""Commands killed at random moments and started again at once: what a fault must never change.

A `Command` is all that another one needs: its words, and what of its folder must come out the same.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from colocate.cli.main import COMMANDS, main

KILLS = int(os.environ.get("COLOCATE_KILLS", "1"))  # of each command: `make faults` asks for 100
SERVER = multiprocessing.get_context("forkserver")
LOADED = [__name__, "colocate.training.loop"]  # torch and its like, which commands load when they need them
SERVER.set_forkserver_preload(LOADED + [command.place.partition(":")[0] for command in COMMANDS.values()])
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


def _main(words: list[str], said: Path) -> None:
    os.setsid()  # by which its workers are found, orphans too
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    main(words)


class Running:
    """A command in processes of its own, forked from one that has loaded all that commands need: loading takes longer
    than what is killed here."""

    def __init__(self, words: list[str]) -> None:
        self.place = tempfile.TemporaryDirectory()  # removed with this object
        self.said = Path(self.place.name) / "said"
        self.main = SERVER.Process(target=_main, args=(words, self.said))
        self.main.start()

    def end(self) -> str:
        """Wait until it has ended well; returns what it said."""
        self.main.join(PATIENCE_S)
        said = self.said.read_text()
        assert self.main.exitcode == 0, said
        return said

    def kill(self) -> None:
        """Kill the main process alone, as a scheduler or the kernel does that is out of memory."""
        self.main.kill()
        self.main.join()

    def left(self) -> list[int]:
        """Its processes that do not end, workers included, which look for their parent every fifth of a second."""
        for _ in range(50):
            found = [int(it.name) for it in Path("/proc").iterdir() if it.name.isdecimal()]
            found = [number for number in found if _session(number) == self.main.pid]
            if not found:
                break
            time.sleep(0.1)
        return found


def _session(number: int) -> int | None:
    try:
        return os.getsid(number)
    except ProcessLookupError:  # it has ended meanwhile
        return None


def undisturbed(command: Command, out: Path) -> tuple[float, float]:
    """Let a command run to its end; returns the seconds until its first file, and until the end."""
    idle = SERVER.Process()  # all is loaded when it has ended
    idle.start()
    idle.join()
    began = time.perf_counter()
    running = Running(command.words(out))
    while running.main.is_alive() and not (out.is_dir() and any(out.iterdir())):
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
        assert [running.left() for running in (*killed, last)] == [[]] * (len(killed) + 1)
