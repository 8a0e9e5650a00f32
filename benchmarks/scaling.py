"""An estimate of a run on many GPUs, by the formula in docs/explanation/scaling.md; `--help` says its options."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from colocate.base.text import grid

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Setting:
    """What a PLM run of ResNet-18 is, and what the machines are."""

    rate: float
    """Pairs a second of one GPU alone."""
    network: float
    """Bytes a second that a GPU sends to others, and receives at the same time."""
    latency: float
    """Seconds of one collective, a doubling of the processes."""
    batch: int = 64
    """Tiles a GPU."""
    size: int = 224
    """Side of a view, px."""
    cells: int = 7
    """A side."""
    channels: int = 512
    """Of the backbone's cells."""
    width: int = 128
    """Of projected ones."""
    parameters: int = 11_900_000


def to_device(setting: Setting, gpus: int) -> dict[str, float]:
    """Bytes that each GPU sends in a step, by what for."""
    mixed = math.gcd(setting.batch, gpus)  # GPUs that keys are shuffled among
    others = (mixed - 1) / mixed
    cells = setting.cells**2
    features = setting.width + cells * (setting.width + setting.channels)
    return {
        "gradients": 2 * (gpus - 1) / gpus * setting.parameters * FLOAT,
        "views": others * setting.batch * 3 * setting.size**2 * FLOAT,
        "features": others * setting.batch * features * FLOAT,
        "queues": (gpus - 1) * setting.batch * 2 * setting.width * FLOAT,
    }


def pairs_per_second(setting: Setting, gpus: int) -> float:
    """Gradients travel beside the backward pass (two thirds of a step); all else is waited for."""
    step = setting.batch / setting.rate
    parts = to_device(setting, gpus)
    hops = 8 * math.log2(gpus) * setting.latency  # collectives a step: gradients, views, 3 features, 2 queues, rest
    exposed = max(0.0, parts["gradients"] / setting.network - 2 / 3 * step)
    waited = sum(parts[name] for name in ("views", "features", "queues")) / setting.network
    return gpus * setting.batch / (step + exposed + waited + hops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, required=True, help="pairs_per_s of a run on one GPU")
    parser.add_argument("--batch", type=int, default=64, help="tiles a GPU")
    parser.add_argument("--network", type=float, default=40, help="GB/s a GPU sends to others")
    parser.add_argument("--latency", type=float, default=15, help="microseconds of a collective, each doubling")
    args = parser.parse_args()
    setting = Setting(args.rate, args.network * 1e9, args.latency * 1e-6, args.batch)
    rows = [["GPUs", "sent a step", "of it views", "pairs/s", "of linear", "20 million pairs in"]]
    for gpus in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        parts, rate = to_device(setting, gpus), pairs_per_second(setting, gpus)
        minutes = 20e6 / rate / 60
        share = rate / gpus / args.rate
        sizes = (f"{sum(parts.values()) / 1e6:,.0f} MB", f"{parts['views'] / 1e6:,.0f} MB")
        rows.append([str(gpus), *sizes, f"{rate:,.0f}", f"{share:.0%}", f"{minutes:,.1f} min"])
    print(grid(rows, left=0))


if __name__ == "__main__":
    main()
