"""Side by side with what a lab would pick instead: `python benchmarks/peers run` and `report`."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Literal

import tyro

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.commands import dispatch
from benchmarks.peers.environments import Peer, environment
from colocate.base.errors import UserError

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "docs" / "results" / "peers.jsonl"
PAGE = ROOT / "docs" / "results" / "peers.md"
Kind = Literal["pretraining", "slides", "evaluation"]
KINDS: tuple[Kind, ...] = ("pretraining", "slides", "evaluation")


def run(
    kind: tyro.conf.Positional[Kind],
    peers: tyro.conf.Positional[tuple[str, ...]] = (),
    data: Path = Path("../shared/data"),
    environments: Path = Path("carry/peers"),
    smoke: bool = False,
    rows: Path = ROWS,
) -> None:
    """Measure a kind of work with each peer, and append its rows.

    Args:
        kind: What is measured.
        peers: Which of them; all where none is named.
        data: Real tiles, labelled images and slides.
        environments: Where the virtual environments lie.
        smoke: As small as it runs: no figure of it is worth anything.
        rows: The file of rows.
    """
    module = import_module(f"benchmarks.peers.{kind}")
    known: dict[str, Peer] = {peer.name: peer for peer in module.PEERS}
    if wrong := sorted(set(peers) - known.keys()):
        raise UserError(f"{', '.join(wrong)}: no peer in {kind}; there are {', '.join(known)}")
    for name in peers or known:
        try:
            python = environment(known[name], environments)
            found = list(module.measure(known[name], python, data, smoke))
        except UserError as error:
            found = [{"error": str(error)}]
        for row in found:
            row = {"kind": kind, "peer": name, "smoke": smoke, **row, **_where()}
            rows.parent.mkdir(parents=True, exist_ok=True)
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print({key: value for key, value in row.items() if key not in _where()}, flush=True)


def _where() -> dict[str, object]:
    """Date and machine."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": machine}


def report(rows: Path = ROWS, page: Path = PAGE) -> None:
    """Renew the tables of the page: what stands between `<!-- KIND -->` and `<!-- /KIND -->` in it."""
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    text = page.read_text()
    for kind in KINDS:
        mine = [row for row in found if row["kind"] == kind and not row["smoke"]]
        before, _, rest = text.partition(f"<!-- {kind} -->\n")
        _, _, after = rest.partition(f"<!-- /{kind} -->")
        table = "\n".join(import_module(f"benchmarks.peers.{kind}").table(mine))
        text = f"{before}<!-- {kind} -->\n{table}\n<!-- /{kind} -->{after}"
    page.write_text(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the status of the process."""
    return dispatch("peers", {"run": run, "report": report}, argv)


if __name__ == "__main__":
    sys.exit(main())
