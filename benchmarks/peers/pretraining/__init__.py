"""Pretraining: pairs a second, time to the first step, memory, and what is left of a run that was killed."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.peers.environments import OURS, Peer, size_gb
from benchmarks.peers.pretraining.commands import WAYS, Job, Way
from benchmarks.peers.pretraining.watch import Seen, watch
from colocate.base.errors import UserError
from colocate.base.text import grid

ROOT = Path(__file__).parents[3]
TORCH = ("torch==2.13.0", "torchvision==0.28.0")
SOLO = "solo-learn @ git+https://github.com/vturrisi/solo-learn@9187ea39c2c3f43c455ab06664d2b019a9802954"
PEERS = (
    Peer(OURS, (f"--editable={ROOT}", *TORCH), "Apache-2.0"),
    Peer("lightly", ("lightly==1.6.0", *TORCH), "MIT"),
    # Its DenseCL asks lightly 1.6 for a memory bank in a way that 1.6 refuses.
    Peer("lightly-train", ("lightly-train==0.18.0", "lightly==1.5.26", *TORCH), "AGPL-3.0: run as a program only"),
    # 1.0.2, the last on PyPI, wants torch 1.9, which Python 3.11 does not have. Its setup.py wants an older setuptools.
    Peer(
        "solo-learn",
        ("--build-constraints=benchmarks/peers/pretraining/solo_learn_build.txt", SOLO, "setuptools<81", *TORCH),
        "MIT",
    ),
)
WARM = 3
"""Steps before the pace is taken."""


def measure(peer: Peer, python: Path, data: Path, smoke: bool) -> Iterator[dict[str, Any]]:
    """The environment, the pace of each method on one core and two, and a run killed and resumed.

    On one core tiles are loaded in the process that trains, on two by another beside it; the first method also with two
    threads and none beside them, and in bfloat16.
    """
    way, tiles = WAYS[peer.name], data / "lc25000-colon"
    yield {"case": "environment", "licence": peer.licence, **_environment(python, peer.name)}
    jobs = [(method, threads, threads - 1, "32") for method in way.methods for threads in (1, 2)]
    jobs += [(way.methods[0], threads, threads - 1, "bf16-mixed") for threads in (1, 2)]
    jobs += [(way.methods[0], 2, 0, "32")]
    for method, threads, workers, precision in jobs[:1] if smoke else jobs:
        with tempfile.TemporaryDirectory() as folder:
            size, batch, steps = (64, 8, 5) if smoke else (96, 64, WARM + 8)
            job = Job(method, tiles, Path(folder) / "run", threads, workers, size, batch, steps, 1000, precision)
            row = {"case": "pace", "method": method, "threads": threads, "workers": workers, "precision": precision}
            row |= {"size_px": size}
            try:
                seen = _run(way, python, job)
                yield row | {"batch": batch, "steps": steps, **seen.pace(batch, WARM)}
            except UserError as error:
                yield row | {"error": str(error)}
    yield {"case": "resume", "method": way.methods[0], **resumed(way, python, tiles, smoke)}


def _environment(python: Path, package: str) -> dict[str, Any]:
    code = (
        "import importlib.metadata as m, json; print(json.dumps([len(list(m.distributions())), "
        f"m.version({package!r}), m.version('torch')]))"
    )
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    packages, version, torch_version = json.loads(said)
    return {"version": version, "torch": torch_version, "packages": packages, "size_gb": round(size_gb(python), 2)}


def _run(way: Way, python: Path, job: Job, kill_after: int | None = None) -> Seen:
    command = way.command(python, job)
    return watch(command, job.out / way.journal, way.read, job.threads, way.env, kill_after)


def resumed(way: Way, python: Path, tiles: Path, smoke: bool) -> dict[str, Any]:
    """What is left of a run that is killed (SIGKILL), and whether it goes on to the numbers of one that was not.

    One core and a process that loads tiles; a checkpoint every four steps where the peer has that, else (solo-learn)
    every epoch of the tiles. `exact_before` says whether two runs agree at all.
    """
    epochs = not smoke and way is WAYS["solo-learn"]
    kill, steps, size, batch = (36, 70, 32, 64) if epochs else (6, 12, 64, 32)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            Job(way.methods[0], tiles, Path(folder) / name, 1, 1, size, batch, steps, 4) for name in ("whole", "killed")
        ]
        row: dict[str, Any] = {"steps": steps, "killed_after": kill, "size_px": size, "batch": batch}
        try:
            whole = _run(way, python, jobs[0])
            before = _run(way, python, jobs[1], kill_after=kill)
            row |= {"orphans": before.orphans, "exact_before": _same(whole, before)}
            after = _run(way, python, Job(**{**vars(jobs[1]), "resume": True}))
        except UserError as error:
            return row | {"error": str(error)}
        weights = [_weights(job.out / way.weights) for job in jobs]
        kept = {_plain(path.relative_to(jobs[0].out)) for path in jobs[0].out.rglob("*")}
        stray = sorted({_plain(path.relative_to(jobs[1].out)) for path in jobs[1].out.rglob("*")} - kept)
        return row | {
            "resumed_at": min(after.steps, default=0),
            "exact_losses": _same(whole, after),
            "exact_weights": all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]),
            "largest_difference": max(
                float((weights[0][name].double() - weights[1][name].double()).abs().max()) for name in weights[0]
            ),
            "stray": stray,
        }


def _same(one: Seen, other: Seen) -> bool:
    """Whether the losses of the steps that both made are equal, to all digits that are written."""
    shared = one.steps.keys() & other.steps.keys()
    return bool(shared) and all(one.steps[step].loss == other.steps[step].loss for step in shared)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def _plain(path: Path) -> str:
    """A path without times, processes' numbers and versions in it."""
    return re.sub(r"\d{5,}\S*|offline-\w+", "*", str(path))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The latest rows as three tables: pace, environments, what a kill leaves."""
    names = ("peer", "case", "method", "threads", "workers", "precision")
    latest = {tuple(row.get(name) for name in names): row for row in rows}
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in latest.values():
        cases.setdefault(row.get("case", "none"), []).append(row)
    lines: list[str] = []
    for case, columns in COLUMNS.items():
        some = sorted(cases.get(case, []), key=lambda row: (row.get("threads", 0), row.get("method", "")))
        body = [[_cell(row, name) for name in columns] for row in some if "error" not in row]
        lines += [*grid([list(columns.values()), *body], left=2).splitlines(), ""] if body else []
    failed = [row for some in cases.values() for row in some if "error" in row]
    return lines + [f"- {row['peer']} {row.get('method', '')}: {row['error']}" for row in failed]


COLUMNS = {
    "pace": {
        "peer": "peer",
        "method": "method",
        "threads": "cores",
        "workers": "loaders",
        "precision": "precision",
        "pairs_per_s": "pairs/s",
        "core_ms_per_pair": "core ms a pair",
        "first_step_s": "first step, s",
        "waiting_percent": "waiting, %",
        "peak_mb": "memory, MB",
    },
    "environment": {
        "peer": "peer",
        "licence": "licence",
        "version": "version",
        "packages": "packages",
        "size_gb": "size, GB",
    },
    "resume": {
        "peer": "peer",
        "method": "method",
        "killed_after": "killed after step",
        "resumed_at": "next step",
        "exact_before": "two runs agree",
        "exact_losses": "same losses after",
        "exact_weights": "same weights",
        "largest_difference": "largest difference",
        "orphans": "processes left",
        "stray": "files left",
    },
}


def _cell(row: dict[str, Any], name: str) -> str:
    value = row.get(name, "")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return f"{value:.2g}" if name == "largest_difference" and value else str(value)
