"""Intervals against a plain bootstrap, what theory says of means, and what must be refused."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from colocate.evaluation import results
from colocate.evaluation.metrics import LOWER_IS_BETTER
from colocate.evaluation.results import Difference, Interval, draw_images, scored

Entries = list[dict[str, Any]]


def run(dices: list[float] | np.ndarray, names: list[str] | None = None) -> Entries:
    """A seed's entries whose image Dice are given."""
    return [
        {"image": names[n] if names else f"image {n}", "probe": {"dice": float(d), "shared": n % 7, "positives": 20}}
        for n, d in enumerate(dices)
    ]


def glas_run(distances: list[float]) -> Entries:
    side = {"area": 10, "dice": 9.0}
    return [
        {
            "image": str(n),
            "glas": {
                "objects": {"true": 2, "found": 2, "hits": 1},
                "true": side | {"hausdorff": 10 * d},
                "found": side | {"hausdorff": 10 * d},
            },
        }
        for n, d in enumerate(distances)
    ]


def interval(
    family: str, runs: list[Entries], groups: list[str] | None = None, draws: int = 1000
) -> dict[str, Interval]:
    counts, over = draw_images(len(runs[0]), groups, draws)
    return {name: results.interval(drawn, over) for name, drawn in scored(family, runs, counts).items()}


def paired(family: str, first: list[Entries], second: list[Entries]) -> dict[str, Difference]:
    counts, over = draw_images(len(first[0]))
    every = scored(family, [*first, *second], counts)
    return {
        name: results.paired(drawn[: len(first)], drawn[len(first) :], over, name in LOWER_IS_BETTER)
        for name, drawn in every.items()
    }


def noise(seed: int, count: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).random(count)


def slow(seeds: list[np.ndarray], cases: list[list[int]], draws: int = 4000) -> tuple[float, float]:
    """Draw cases, take all their images, average them, average seeds; the 2.5th and 97.5th percentile."""
    luck, means = random.Random(0), []
    for _ in range(draws):
        drawn = [image for _ in cases for image in luck.choice(cases)]
        means.append(sum(sum(seed[image] for image in drawn) / len(drawn) for seed in seeds) / len(seeds))
    means.sort()
    return 100 * means[round(0.025 * draws)], 100 * means[round(0.975 * draws)]


def test_mean_and_standard_deviation_are_over_seeds() -> None:
    found = interval("probe", [run([0.5] * 4), run([0.7] * 4), run([0.9] * 4)])["image Dice"]
    assert found == (
        pytest.approx(70),
        pytest.approx(20),
        pytest.approx(70),
        pytest.approx(70),
        "4 images",
        pytest.approx((50, 70, 90)),
    )
    assert math.isnan(interval("probe", [run([0.5, 0.7])])["image Dice"].std)


def test_equals_a_plain_bootstrap_over_images() -> None:
    seeds = [noise(0), (noise(0) + noise(1)) / 2]
    found = interval("probe", [run(seed) for seed in seeds], draws=4000)["image Dice"]
    assert (found.low, found.high) == pytest.approx(slow(seeds, [[n] for n in range(40)]), abs=0.6)
    assert found.high - found.low > 10
    assert found.mean == pytest.approx(100 * np.mean(seeds))


def test_equals_a_plain_bootstrap_over_cases() -> None:
    sizes = [1, 9, 4, 4, 2, 10, 6, 4]
    cases = np.split(np.arange(40), np.cumsum(sizes)[:-1])
    groups = [f"case {number}" for number, size in enumerate(sizes) for _ in range(size)]
    values = noise(3) / 4 + np.repeat(noise(4, 8), sizes) / 2
    found = interval("probe", [run(values)], groups, draws=4000)["image Dice"]
    assert found.over == "8 cases (40 images)"
    assert (found.low, found.high) == pytest.approx(slow([values], [case.tolist() for case in cases]), abs=0.8)
    single = interval("probe", [run(values)])["image Dice"]
    assert single.high - single.low < 0.7 * (found.high - found.low)


def test_images_of_unknown_case_are_each_their_own() -> None:
    runs = [run(noise(0)), run(noise(1))]
    assert interval("probe", runs, [""] * 40) == interval("probe", runs)
    own = interval("probe", runs, [str(n) if n else "" for n in range(40)])["image Dice"]
    assert own == interval("probe", runs)["image Dice"]._replace(over="40 cases (40 images)")
    assert interval("probe", runs, ["0", ""] * 20)["image Dice"].over == "21 cases (40 images)"


@pytest.mark.slow
def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        found = interval("probe", [run(rng.beta(5, 2, 60))], draws=400)["image Dice"]
        held += found.low <= 100 * 5 / 7 <= found.high
    assert held / 200 == pytest.approx(0.95, abs=0.04)


def test_against_itself_there_is_no_difference() -> None:
    runs = [run(noise(0)), run(noise(1))]
    for name, found in paired("probe", runs, runs).items():
        assert found == (0, 0, 0, 0, 0.5, "40 images"), name


def test_a_difference_that_all_images_share_is_sure() -> None:
    """However much images differ from one another: that is what pairing is for."""
    better, worse = ([run(noise(seed) / 2 + gain) for seed in (0, 1)] for gain in (0.02, 0))
    found = paired("probe", better, worse)["image Dice"]
    assert found[:5] == pytest.approx((2, 0, 2, 2, 1))
    assert paired("probe", worse, better)["image Dice"][:5] == pytest.approx((-2, 0, -2, -2, 0))
    alone = [interval("probe", runs)["image Dice"] for runs in (better, worse)]
    assert alone[0].low < alone[1].high  # the intervals themselves overlap


def test_seeds_are_paired_in_their_order() -> None:
    first, second = [run([0.5] * 3), run([0.9] * 3)], [run([0.4] * 3), run([0.7] * 3)]
    assert paired("probe", first, second)["image Dice"][:2] == pytest.approx((15, 50**0.5))
    assert paired("probe", first, second[::-1])["image Dice"][:2] == pytest.approx((15, 2450**0.5))


def test_of_distances_the_lower_is_better() -> None:
    near, far = [glas_run([1.0, 2.0, 3.0])], [glas_run([2.0, 4.0, 6.0])]
    found = paired("glas", near, far)["object Hausdorff"]
    assert found.mean == -2 and found.high < 0 and found.share == 1
    assert paired("glas", far, near)["object Hausdorff"].share == 0


def test_a_share_is_that_of_the_draws() -> None:
    change = np.array([0.1, -0.1] * 20) + 0.005
    found = paired("probe", [run(0.5 + change)], [run([0.5] * 40)])["image Dice"]
    assert found.low < 0 < found.high
    z = 0.005 / (0.1 / 40**0.5)
    assert found.share == pytest.approx((1 + math.erf(z / 2**0.5)) / 2, abs=0.05)


def test_draws_in_which_a_score_is_undefined_are_left_out() -> None:
    tables = [{"tumour": {"tumour": 8, "stroma": 2}, "stroma": {}}] + [{"tumour": {}, "stroma": {"stroma": 10}}] * 4
    runs = [[{"image": str(n), "semantic": table} for n, table in enumerate(tables)]]
    found = interval("semantic", runs)["Dice tumour"]
    assert found.mean == found.low == found.high == pytest.approx(100 * 16 / 18)
    never = [[{"image": str(n), "semantic": {"tumour": {}}} for n in range(3)]]
    assert all(math.isnan(value) for value in interval("semantic", never)["Dice tumour"][:4])
    assert math.isnan(paired("semantic", never, never)["Dice tumour"].share)
