"""What a bench found, as figures with units, as JSON and in words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..text import counted, grid
from .machine import Machine

PAPER_PAIRS = 20_000_000  # 200 epochs of 100,000 tiles
NAMES = {
    "waiting": "waiting for tiles",
    "views": "views",
    "network": "network",
    "losses": "losses, matching, queues",
    "optimizer": "optimiser",
    "rest": "the rest",
}


@dataclass(frozen=True)
class Report:
    """Measured of one recipe on one device; per step means per batch that goes through the networks."""

    date: str
    machine: Machine
    recipe: dict[str, Any]
    data: str
    tiles: int
    batch: int
    """With which parts and the whole step were measured."""
    asked_batch: int
    """The recipe's, on each device."""
    steps_measured: int
    decode_tiles_per_s: dict[int, float]
    """By the number of loader processes."""
    alone_ms: dict[str, float]
    """Parts of a step, each alone on tensors that lie ready (waiting: as in the whole step)."""
    step_ms: float
    step_share: dict[str, float]
    """Where a step's time goes; adds up to one."""
    step_pairs_per_s: float
    ceiling_pairs_per_s: float
    """The network alone."""
    ceiling_share: float
    peak_memory_bytes: int
    paper_pairs_minutes: float
    """For the paper's 20 million pairs."""
    batch_pairs_per_s: dict[int, float]
    """Steps without decoding, by the batch."""
    too_large_batch: int | None
    recommended_batch: int
    recommended_workers: int
    needed_workers: int
    """To decode as fast as training takes tiles; more than `recommended_workers` where the cores do not suffice."""
    notes: tuple[str, ...]


def write(report: Report, out: Path) -> None:
    """The report as JSON. Raises UserError if the disk is full or the folder cannot be written."""
    text = json.dumps(asdict(report), indent=2) + "\n"
    write_atomically(out, lambda file: file.write(text.encode()))


def words(report: Report) -> str:
    """The report as it is printed."""
    tiles = f"{counted(report.tiles, 'tile')} of {report.data}"
    lines = [f"{title(report)}, {report.date}", tiles, *report.notes, "", _table(report), ""]
    lines += [*_facts(report), "", *advice(report)]
    return "\n".join(lines)


def title(report: Report) -> str:
    """What was measured, and on what."""
    recipe = report.recipe
    method, network = recipe["name"] or recipe["method"]["kind"], recipe["encoder"]["backbone"]
    compiled = ", compiled" if recipe["compile"] else ""
    setting = f"{recipe['views']['size']} px, precision {recipe['precision']}{compiled}, batch {report.batch}"
    return f"{method} ({network}), {setting}, on {report.machine.words}"


def short(figure: float) -> str:
    """Three digits at the least, without an exponent.

    >>> short(12345.6), short(12.345), short(0.0)
    ('12,346', '12.3', '0')
    """
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def _table(report: Report) -> str:
    rows = [["part", "alone, ms", "pairs/s", "of a step, ms", "share"]]
    decode = report.decode_tiles_per_s[1]
    rows.append(["decode, by one process", short(1000 * report.batch / decode), short(decode), "beside it", ""])
    for part, name in NAMES.items():
        share, alone = report.step_share[part], report.alone_ms.get(part, 0.0)
        known = part not in ("waiting", "rest") and alone > 0
        own = [short(alone), short(1000 * report.batch / alone)] if known else ["", ""]
        rows.append([name, *own, short(share * report.step_ms), f"{share:.1%}"])
    rows.append(["whole step", "", short(report.step_pairs_per_s), short(report.step_ms), "100.0%"])
    return grid(rows, left=1)


def _facts(report: Report) -> list[str]:
    decoding = [
        f"{short(rate)} tiles/s by " + (f"{count} process{'es' * (count > 1)}" if count else "the training process")
        for count, rate in report.decode_tiles_per_s.items()
    ]
    where = "of the GPU" if report.machine.gpu else "resident"
    return [
        f"decode: {', '.join(decoding)}; training takes {short(report.step_pairs_per_s)}",
        f"ceiling (network alone): {short(report.ceiling_pairs_per_s)} pairs/s, of which a whole step reaches "
        f"{report.ceiling_share:.0%}",
        f"peak memory: {report.peak_memory_bytes / 1e9:.2f} GB {where}",
        f"the paper's 20 million pairs at this rate: {report.paper_pairs_minutes:,.0f} minutes",
        "pairs/s by batch, tiles decoded: "
        + ", ".join(f"{batch}: {short(rate)}" for batch, rate in report.batch_pairs_per_s.items())
        + (f" ({report.too_large_batch} does not fit in memory)" if report.too_large_batch else ""),
    ]


def advice(report: Report) -> list[str]:
    """The recommended batch and workers, in sentences."""
    tried = ", ".join(map(str, report.batch_pairs_per_s))
    of = f"the smallest of {tried} within 5 % of the fastest" if "," in tried else "no other was tried"
    speed = "this is about speed alone, a method's learning rate and queue go with its batch"
    batch = f"--batch {report.recommended_batch}: {of}; {speed}"
    workers = f"--workers {report.recommended_workers}: "
    if report.needed_workers <= report.recommended_workers:
        return [batch, workers + "so many decode as fast as a step takes tiles"]
    lack = f"{report.needed_workers} would be needed to decode as fast as a step takes tiles, more than there are cores"
    return [batch, f"{workers}{lack}; --cache memory (or a folder) decodes each tile once, smaller tiles decode faster"]
