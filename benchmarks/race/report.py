"""Rows into a table: means over pretraining seeds, and differences from one arm with intervals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.race.arms import NETWORKS
from colocate.base.errors import UserError

Row = dict[str, Any]
Difference = tuple[float, float, float]
"""Mean, low and high."""
DRAWS = 2000


def report(
    rows: Path = Path("docs/results/race.jsonl"),
    *,
    judged: str = "valid",
    init: str = "random",
    network: str | None = None,
    budget: str = "cpu",
    against: str = "moco-v2",
    picture: Path | None = None,
) -> None:
    """Print the table of one race, and draw its differences.

    Args:
        rows: The file of rows.
        judged: valid (folds of the training patients) or test.
        init: Arms that started from random weights, or from imagenet's.
        network: That of the arms: ResNet-18 from random weights, EfficientNet-Lite0 from ImageNet's.
        budget: The budget of the arms; those that are judged as they are stand beside them.
        against: The arm that others are compared with.
        picture: A PNG of the differences and their intervals.
    """
    network = network or NETWORKS[init]
    asked = {"judged": judged, "init": init, "network": network, "budget": budget}
    wanted = [row for row in map(json.loads, rows.read_text().splitlines()) if asked.items() <= row.items()]
    arms: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in wanted:  # a later row of the same arm and seed counts, and of a --quick one the scores that it has
        before = arms[row["arm"]].get(row["seed"], {"scores": {}})
        arms[row["arm"]][row["seed"]] = row | {"scores": before["scores"] | row["scores"]}
    if against not in arms:
        raise UserError(f"{rows} has no row of {against} among those: {', '.join(arms) or 'there are none'}")
    scores = list(dict.fromkeys(name for row in wanted for name in row["scores"]))
    print(f"| arm | seeds | pairs | {' | '.join(scores)} | displaced (chance) | rank | within tile |")
    print("|---" * (len(scores) + 6) + "|")
    for arm, seeds in arms.items():
        some = list(seeds.values())
        cells = [_mean(some, name) for name in scores]
        health = {name: np.mean([row["health"][name] for row in some]) for name in some[0]["health"]}
        print(
            f"| {arm} | {len(some)} | {some[0]['pairs']:,} | {' | '.join(cells)} | {health['displaced']:.2f} "
            f"({health['displaced_chance']:.2f}) | {health['effective_rank']:.0f} | {health['within_tile']:.2f} |"
        )
    print(f"\nLess {against}, the same seeds [95 %: seeds and cases drawn]:\n")
    print(f"| arm | seeds | {' | '.join(scores)} |\n" + "|---" * (len(scores) + 2) + "|")
    compared: dict[str, dict[str, Difference]] = {}
    for arm, seeds in arms.items():
        if arm != against and (shared := sorted(seeds.keys() & arms[against].keys())):
            pairs = [(seeds[seed], arms[against][seed]) for seed in shared]
            print(f"| {arm} | {len(shared)} | {' | '.join(_told(pairs, name) for name in scores)} |")
            compared[arm] = {name: found for name in scores if (found := difference(pairs, name)) is not None}
    if picture is not None:
        draw(compared, against, picture)


def mean(cases: dict[str, Sequence[float]]) -> float:
    """The mean of all images, of each case's mean and number."""
    means, images = zip(*cases.values(), strict=True)
    return float(np.average(means, weights=images))


def _mean(rows: Sequence[Row], score: str) -> str:
    means = [mean(row["scores"][score]) for row in rows if score in row["scores"]]
    if not means:
        return ""
    return f"{np.mean(means):.1f}" + (f" ± {np.std(means, ddof=1):.1f}" if len(means) > 1 else "")


def difference(pairs: Sequence[tuple[Row, Row]], score: str) -> Difference | None:
    """Mean difference of image Dice in percent and its 95 % interval: seeds and cases are drawn anew together.

    None where a row lacks the score.
    """
    if not all(score in row["scores"] for pair in pairs for row in pair):
        return None
    tables = [[row["scores"][score] for row in pair] for pair in pairs]
    names = sorted(tables[0][0])
    sizes = np.array([tables[0][0][name][1] for name in names])
    means = np.array([[[table[name][0] for name in names] for table in pair] for pair in tables])  # seeds x 2 x cases
    sums = (means[:, 0] - means[:, 1]) * sizes
    rng = np.random.default_rng(0)
    drawn_cases = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
    drawn_seeds = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), DRAWS) / len(pairs)
    drawn = np.einsum("ds,sc,dc->d", drawn_seeds, sums, drawn_cases) / (drawn_cases @ sizes)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(sums.mean(0).sum() / sizes.sum()), float(low), float(high)


def _told(pairs: Sequence[tuple[Row, Row]], score: str) -> str:
    if (found := difference(pairs, score)) is None:
        return ""
    mean, low, high = found
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def draw(compared: dict[str, dict[str, Difference]], against: str, out: Path) -> None:
    """One row a score, one colour an arm: the mean difference and its interval."""
    scores = list(dict.fromkeys(name for found in compared.values() for name in found))
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.45 * len(scores)), layout="constrained")
    axes.axvline(0, color="0.6", linewidth=1)
    for turn, (arm, found) in enumerate(compared.items()):
        shift = 0.5 * ((turn + 0.5) / len(compared) - 0.5)
        places = [scores.index(name) + shift for name in found]
        means, lows, highs = (np.array(part) for part in zip(*found.values(), strict=True))
        axes.errorbar(means, places, xerr=[means - lows, highs - means], fmt="o", capsize=3, label=fill(arm, 40))
    axes.set_yticks(range(len(scores)), scores)
    axes.invert_yaxis()
    axes.set_xlabel(f"image Dice less {against} (points; 95 %: seeds and patients drawn)")
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    figure.savefig(out, dpi=110)
    plt.close(figure)
