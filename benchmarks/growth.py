"""How a step's cost grows with batch, views, cells and queue: `python benchmarks/growth.py` draws and prints it."""

from __future__ import annotations

import argparse
import datetime
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.run import machine_name  # noqa: E402
from benchmarks.timing import cpu_model, in_turns  # noqa: E402
from colocate.base.files import write_atomically  # noqa: E402
from colocate.base.text import grid  # noqa: E402
from colocate.core.matching import overlap  # noqa: E402
from colocate.core.objectives import info_nce  # noqa: E402
from colocate.core.views import (  # noqa: E402
    ViewConfig,
    sample_params,
    sample_views,
)
from colocate.pages.style import BLUE, heading, plot, png  # noqa: E402
from colocate.training.loop import build_method  # noqa: E402
from colocate.training.optim import build_optimizer  # noqa: E402
from colocate.training.recipes import plm  # noqa: E402

WIDTH = 128  # of a projected cell
ROUNDS = 5


@dataclass(frozen=True)
class Axis:
    """One quantity that grows, and the work that is timed at each of its values."""

    name: str
    work_is: str
    values: tuple[int, ...]
    work: Callable[[int], Callable[[], object]]
    expected: int
    """The power of it that the work should grow with."""


def step(batch: int, size: int) -> Callable[[], object]:
    """A whole PLM step, ResNet-18, from uint8 tiles to the optimiser."""
    recipe = plm()
    views = replace(recipe.views, size=size)
    method = build_method(replace(recipe, views=views, method=replace(recipe.method, norm_group=max(2, batch))))
    optimizer = build_optimizer(recipe.optim, method)
    tiles = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    epoch = iter(range(10**9))

    def work() -> None:
        method(sample_views(tiles, views, epoch=next(epoch))).total().backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def dense(tiles: int, cells: int, queue: int) -> Callable[[], object]:
    """Matching, pooling and contrast of all cells, both ways, forward and backward, on ready features."""
    sizes, index = torch.tensor([224, 224]).expand(tiles, 2), torch.arange(tiles)
    first, second = (sample_params(ViewConfig(), sizes, index, 0, 0, view).crop for view in (0, 1))
    query, key = (torch.randn(tiles, cells**2, WIDTH, requires_grad=grad) for grad in (True, False))
    negatives = torch.randn(queue, WIDTH)

    def work() -> None:
        there, back = overlap(first, second, cells), overlap(second, first, cells)
        rows = torch.cat([query, back.pool(query)]).flatten(0, 1), torch.cat([there.pool(key), key]).flatten(0, 1)
        weight = torch.cat([there.weight, back.weight]).flatten()
        seen = weight.nonzero().squeeze(1)
        loss = info_nce(rows[0][seen], rows[1][seen], negatives, weight[seen], count=len(weight))
        torch.autograd.grad(loss, query)

    return work


AXES = [
    Axis("tiles a batch", "whole step, 224 px", (4, 8, 16, 32), lambda b: step(b, 224), 1),
    Axis("px a side of views", "whole step, 16 tiles", (96, 128, 160, 192, 224), lambda s: step(16, s), 2),
    Axis("cells a side", "dense term, 8 tiles, 16,384 negatives", (7, 14, 28), lambda n: dense(8, n, 16_384), 2),
    Axis(
        "negatives",
        "dense term, 16 tiles, 7 x 7 cells",
        (4096, 8192, 16_384, 32_768, 65_536),
        lambda m: dense(16, 7, m),
        1,
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / f"growth-{machine_name()}.png")
    args = parser.parse_args()
    rows = [["what grows", "from", "to", "seconds", "times as long", "power fitted", "expected"]]
    figure = Figure(figsize=(12.5, 3.9), layout="constrained")
    where = f"{cpu_model()}, {args.threads} thread, torch {torch.__version__}, {datetime.date.today().isoformat()}"
    heading(figure, "How a step's cost grows", f"Seconds, both axes logarithmic; line: the power fitted. {where}")
    for axes, axis in zip(figure.subplots(1, len(AXES)), AXES, strict=True):
        times = in_turns([axis.work(value) for value in axis.values], threads=args.threads, rounds=ROUNDS)
        seconds = [statistics.median(column) for column in zip(*times, strict=True)]
        power = slope(axis.values, seconds)
        ends, more = f"{seconds[0]:.3g} to {seconds[-1]:.3g}", f"{seconds[-1] / seconds[0]:.1f}"
        sizes = (f"{axis.values[0]:,}", f"{axis.values[-1]:,}")
        rows.append([f"{axis.name} ({axis.work_is})", *sizes, ends, more, f"{power:.2f}", str(axis.expected)])
        draw(axes, axis, seconds, power)
    write_atomically(args.out, lambda file: file.write(png(figure)))
    print(f"{where}; made by `python benchmarks/growth.py`\n")
    print(grid(rows, left=1))


def slope(values: tuple[int, ...], seconds: list[float]) -> float:
    """The power p of seconds ~ value^p, by least squares of the logarithms."""
    x, y = [math.log(value) for value in values], [math.log(one) for one in seconds]
    return statistics.linear_regression(x, y).slope


def draw(axes: Axes, axis: Axis, seconds: list[float], power: float) -> None:
    """The measured seconds and the fitted line through their middle."""
    middle, centre = (math.exp(statistics.mean(map(math.log, some))) for some in (seconds, axis.values))
    plot(axes, f"power {power:.2f} (expected {axis.expected})", f"{axis.name}\n{axis.work_is}")
    axes.loglog(axis.values, [middle * (value / centre) ** power for value in axis.values], color=BLUE, alpha=0.4)
    axes.loglog(axis.values, seconds, "o", color=BLUE, markersize=4.5)
    axes.set_xticks(axis.values, [f"{value:,}" if value < 10_000 else f"{value >> 10}k" for value in axis.values])
    axes.minorticks_off()
    ticks = [10**power * lead for power in range(-3, 3) for lead in (1, 2, 5)]
    low, high = min(seconds) / 1.3, max(seconds) * 1.3
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axes.set_ylim(low, high)


if __name__ == "__main__":
    main()
