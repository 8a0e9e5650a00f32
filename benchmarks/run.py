"""Every benchmark here, written as one page to docs/benchmarks: `python benchmarks/run.py [--name MACHINE]`."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import methods, parts, slides, step  # noqa: E402
from benchmarks.timing import Row, cpu_model  # noqa: E402

MODULES = [parts, step, methods, slides]  # each has `rows(threads) -> list[Row]`


def machine_name() -> str:
    """The CPU model and the number of cores that this process may use, fit for a file's name."""
    model = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)|CPU|@.*", "", cpu_model()).lower()).strip("-")
    return f"{model}-{_cores()}-cores"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def line(row: Row) -> str:
    """One row of the table."""
    faster = f"{row.faster:.1f} x" + _verdict(row.goal_faster, row.faster)
    if row.baseline:
        faster = f"{1 / row.faster:.2f} x the time"
    memory = "" if row.memory is None else f"1 / {1 / row.memory:.0f}" if row.memory < 1 else f"{row.memory:.2f} x"
    if row.memory is not None and row.goal_memory is not None:
        memory += " ✓" if row.memory <= row.goal_memory else " ✗"
    goal = [] if row.goal_faster is None else [f"≥ {row.goal_faster:g} x"]
    goal += [] if row.goal_memory is None else [f"≤ 1 / {1 / row.goal_memory:.0f} of the memory"]
    cells = (row.what, row.other, row.threads, _time(row.ours_s), _time(row.other_s), ", ".join(goal), faster)
    sizes = (_size(row.ours_bytes), _size(row.other_bytes), memory)
    return "| " + " | ".join(str(cell) for cell in (*cells, *sizes)) + " |"


def _verdict(goal: float | None, measured: float) -> str:
    return "" if goal is None else " ✓" if measured >= goal else " ✗"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _size(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.0f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"


HEADER = """\
| work | against | threads | ours | theirs | goal | measured: faster | our memory | their memory | share |
|---|---|---|---|---|---|---|---|---|---|"""


def page(rows: list[Row], name: str, loads: tuple[float, float]) -> str:
    """The whole page."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "pillow", "numpy"))
    return f"""\
# Benchmarks on {name}

{datetime.date.today().isoformat()}, {cpu_model()}, {_cores()} cores, Python {platform.python_version()}, {versions}.
Made by `python benchmarks/run.py --name {name}`. Load average before {loads[0]:.1f}, after {loads[1]:.1f}.

Ours and the other way run in turns within one process; times are medians, "faster" the median of each turn's ratio.
Rows against moco-v2, which does less, say what a method costs instead: its time and memory over moco-v2's.
Memory is the most that torch's allocator held at once beyond the inputs.

{HEADER}
{chr(10).join(line(row) for row in rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default=machine_name(), help="of the machine: names the page (default: its CPU)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts to run everything on")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="folder of the page")
    args = parser.parse_args()
    before = os.getloadavg()[0]
    rows: list[Row] = []
    for module in MODULES:
        for threads in args.threads:
            rows += module.rows(threads)
    args.out.mkdir(parents=True, exist_ok=True)
    text = page(rows, args.name, (before, os.getloadavg()[0]))
    (args.out / f"{args.name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
