"""The GlaS challenge's scores against loops over pixels, and their laws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from colocate.evaluation.metrics import FAMILIES
from colocate.evaluation.metrics.glas import record
from colocate.evaluation.metrics.objects import Objects
from tests.reference import glas as reference

from .scenes import blobs, glas_truth, moved_and_merged, pair

GLAS = FAMILIES["glas"]


def scores(*images: tuple[Tensor, Tensor]) -> dict[str, float]:
    records = [record(Objects.of_ids(truth), Objects.of_ids(found)) for truth, found in images]
    return GLAS.scores(json.loads(json.dumps(records)))


def ids(*rows: str) -> Tensor:
    return torch.tensor([[int(letter, 36) for letter in row.replace(".", "0")] for row in rows], dtype=torch.int32)


@pytest.mark.parametrize("seed", range(60))
def test_equals_loops_over_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [pair(rng) for _ in range(1 + seed % 3)]
    slow = reference.glas([(truth.tolist(), found.tolist()) for truth, found in images])
    assert scores(*images) == pytest.approx(slow, nan_ok=True, rel=1e-12)


EMPTY = ids("....", "....", "....")
CASES = {
    "nothing on either side": (EMPTY, EMPTY, (float("nan"),) * 3),
    "nothing found": (ids("11..", "....", "...."), EMPTY, (0, 0, 13**0.5)),
    "nothing to find": (EMPTY, ids("11..", "....", "...2"), (0, 0, 13**0.5)),
    "exactly half covered is found": (ids("1111"), ids("22.."), (100, 200 / 3, 2)),
    "less than half is not": (ids("11111"), ids("22..."), (0, 400 / 7, 3)),
    "two halves find one gland once": (ids("1111"), ids("2233"), (200 / 3, 200 / 3, 2)),
    "one over two finds one": (ids("1122"), ids("3333"), (200 / 3, 200 / 3, 2)),
    "of equals the first in reading order": (
        ids("2211", "...1"),
        ids("3333", "...."),
        (200 / 3, 50 * (2 / 3 + 64 / 105), 2),
    ),
    "docs/results/peers.md": (
        ids("1111....22", "1111....22", "1111......", "1111......", "..........", "..........", ".........."),
        ids(".3333.....", ".3333.....", ".3333.....", ".3333.....", "..........", "........44", "........44"),
        (50, 60, 1.8),
    ),
    "without overlap, the nearest": (ids("1..2......"), ids(".3........"), (0, 0, 1.25)),
}


@pytest.mark.parametrize("case", CASES)
def test_by_hand(case: str) -> None:
    truth, found, (f1, dice, hausdorff) = CASES[case]
    expected = {"object F1": f1, "object Dice": dice, "object Hausdorff": hausdorff}
    assert scores((truth, found)) == pytest.approx(expected, nan_ok=True)
    assert reference.glas([(truth.tolist(), found.tolist())]) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", range(20))
def test_new_numbers_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, found = pair(rng)
    new = torch.from_numpy(np.concatenate([[0], rng.permutation(200) + 1]).astype(np.int32))
    assert scores((truth, found)) == pytest.approx(scores((new[truth.long()], new[found.long()])), nan_ok=True)


@pytest.mark.parametrize("seed", range(10))
def test_the_truth_is_perfect_and_sides_of_dice_and_hausdorff_are_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, found = blobs(rng), blobs(rng)
    if truth.any():
        assert scores((truth, truth)) == {"object F1": 100, "object Dice": 100, "object Hausdorff": 0}
    there, back = scores((truth, found)), scores((found, truth))
    for name in ("object Dice", "object Hausdorff"):
        assert there[name] == pytest.approx(back[name], nan_ok=True)


def test_unsure_objects_do_not_count() -> None:
    truth = Objects.of_ids(ids("11.22"))
    found = truth._replace(scores=[0.9, 0.3])
    assert record(truth, found) == record(truth, Objects.of_ids(ids("11...")))
    assert record(truth, found, 0.2) == record(truth, truth)


@pytest.mark.slow
def test_real_glands_against_themselves_and_disturbed(shared_data: Path) -> None:
    truth = glas_truth(shared_data)
    perfect = {"object F1": 100, "object Dice": 100, "object Hausdorff": 0}
    assert scores(*((one, one) for one in truth.values())) == pytest.approx(perfect)
    moved = scores(*((one, moved_and_merged(one)) for one in truth.values()))
    assert 85 < moved["object F1"] < 100 and 80 < moved["object Dice"] < 95
    assert moved["object Hausdorff"] > 6 * 2**0.5  # that of the move alone
