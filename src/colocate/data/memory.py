"""How much memory may still be taken."""

from __future__ import annotations

import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that are free on the machine, or in the control group (of a container or a job) that this process is in.

    What only keeps files at hand (page cache) counts as free: it gives way.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        free = _figures(Path("/proc/meminfo"))["MemAvailable:"] * 1024
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except (OSError, KeyError, ValueError):
        return free
    for line in groups:
        _, controllers, path = line.split(":", 2)
        inside = path.lstrip("/")
        if not controllers:
            free = min(free, _left(GROUPS, inside, "memory.max", "memory.current"))
        elif "memory" in controllers.split(","):  # the older kind
            free = min(free, _left(GROUPS / "memory", inside, "memory.limit_in_bytes", "memory.usage_in_bytes"))
    return max(0, free)


def _left(top: Path, inside: str, most: str, used: str) -> int:
    """What the narrowest of the groups that lie around a process leaves."""
    left = 1 << 62
    here = top / inside
    for group in (here, *(parent for parent in here.parents if parent.is_relative_to(top))):
        try:
            yielding = _figures(group / "memory.stat")
            used_bytes = int((group / used).read_text()) - yielding.get("inactive_file", 0)
            left = min(left, int((group / most).read_text()) - used_bytes)
        except (OSError, ValueError):  # no such group (a container sees itself as the top), or no limit ("max")
            continue
    return left


def _figures(file: Path) -> dict[str, int]:
    """A file of lines `name number ...`."""
    return {words[0]: int(words[1]) for words in map(str.split, file.read_text().splitlines()) if len(words) > 1}
