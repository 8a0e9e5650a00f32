"""What the scripts here share; each runs in a peer's environment, with nothing of colocate: SCRIPT CASE SCORE [PEER].

It prints one line of JSON: `figures` (fractions, or pixels of a distance), `cpu_s`, `peak_mb`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

CASE = Path(sys.argv[1])
SCORE = sys.argv[2]


def facts() -> dict[str, Any]:
    """Each image's classes and scores, and `cap`."""
    return json.loads((CASE / "facts.json").read_text())


def maps() -> list[tuple[np.ndarray, np.ndarray]]:
    """The true and the found map of ids of each image."""
    with np.load(CASE / "maps.npz") as stored:
        return [(stored[f"truth{i}"], stored[f"found{i}"]) for i in range(len(stored.files) // 2)]


def class_maps() -> list[tuple[np.ndarray, np.ndarray]]:
    """The true and the found class of each pixel; 0 is the background."""
    said = facts()
    sides = zip(maps(), said["true_class"], said["found_class"], strict=True)
    return [(np.array([0, *true])[truth], np.array([0, *called])[found]) for (truth, found), true, called in sides]


def report(distribution: str, score: Callable[[], dict[str, float]]) -> None:
    """Call `score`, three times or for ten seconds, and print its figures, the least processor time (all run on one
    thread; other work on the machine shows less in it), and the most memory beyond what was held before."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, times, figures = _memory_mb("VmRSS"), [], {}
    while len(times) < 3 and sum(times) < 10:
        began = time.process_time()
        figures = score()
        times.append(time.process_time() - began)
    measured = {"cpu_s": min(times), "peak_mb": _memory_mb("VmHWM") - before, "version": version(distribution)}
    os.write(OUT, (json.dumps({"figures": figures} | measured) + "\n").encode())


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


OUT = os.dup(1)
os.dup2(2, 1)  # what libraries print is not ours
