"""Dice and Jaccard from records are those of the pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from colocate.evaluation.metrics import FAMILIES
from colocate.evaluation.metrics.semantic import record, record_probe

SEMANTIC = FAMILIES["semantic"]
NAMES = ["outside", "tumour", "stroma", "necrosis", "vessel"]


def maps(seed: int, found: list[int]) -> tuple[Tensor, Tensor]:
    """Four images; the truth has classes 0 to 3, of the finding half is right and the rest one of those given."""
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 4, (4, 6, 7), generator=rng)
    guess = torch.tensor(found)[torch.randint(0, len(found), truth.shape, generator=rng)]
    right = (torch.rand(truth.shape, generator=rng) < 0.5) & (truth > 0)
    return truth, torch.where(right, truth, guess)


def scores(truth: Tensor, found: Tensor, ignored: int | None = None) -> dict[str, float]:
    records = [record(t, f, NAMES, ignored) for t, f in zip(truth, found, strict=True)]
    return SEMANTIC.scores(json.loads(json.dumps(records)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ignored", [None, 0])
def test_equals_sets_of_pixels(seed: int, ignored: int | None) -> None:
    truth, found = maps(seed, [1, 2, 3])
    ours = scores(truth, found, ignored)
    counts = truth != (-1 if ignored is None else ignored)
    present = [1, 2, 3] if ignored == 0 else [0, 1, 2, 3]
    sets = {n: ((truth == n) & counts, (found == n) & counts) for n in range(5)}
    shared = torch.tensor([(one & other).sum() for one, other in sets.values()]).double()
    union = torch.tensor([(one | other).sum() for one, other in sets.values()]).double()
    for name, over in (("Dice", (union + shared) / 2), ("Jaccard", union)):
        each = 100 * shared / over
        assert [ours[f"{name} {NAMES[n]}"] for n in present] == pytest.approx(each[present].tolist(), rel=1e-9)
        assert ours[f"macro {name}"] == pytest.approx(each[present].mean().item(), rel=1e-9)
        assert ours[f"micro {name}"] == pytest.approx(100 * (shared.sum() / over.sum()).item(), rel=1e-9)


def test_a_class_that_is_nowhere_is_nan_and_the_ignored_one_has_no_score() -> None:
    ours = scores(*maps(0, [1, 2, 3]), ignored=0)
    assert np.isnan(ours["Dice vessel"]) and np.isnan(ours["Jaccard vessel"])
    assert "Dice outside" not in ours
    assert ours["macro Dice"] == pytest.approx(np.mean([ours[f"Dice {name}"] for name in NAMES[1:4]]))
    false = scores(*maps(0, [1, 2, 3, 4]), ignored=0)
    assert false["Dice vessel"] == 0


def test_ignored_pixels_do_not_count_and_calling_others_so_is_wrong() -> None:
    truth = torch.tensor([[[0, 0, 1, 1]]])
    ours = scores(truth, torch.tensor([[[1, 2, 1, 1]]]), 0)
    assert ours == pytest.approx(scores(truth, torch.tensor([[[0, 0, 1, 1]]]), 0), nan_ok=True)
    assert ours["macro Dice"] == ours["micro Jaccard"] == 100
    half = scores(truth, torch.tensor([[[0, 0, 0, 1]]]), 0)
    assert half["micro Dice"] == 50 and half["micro Jaccard"] == pytest.approx(100 / 3)
    assert half["Dice tumour"] == pytest.approx(200 / 3) and half["Jaccard tumour"] == half["macro Jaccard"] == 50


def test_the_ignored_number_may_be_none_of_the_classes() -> None:
    truth = torch.tensor([[[255, 0, 1, 1]]])
    assert scores(truth, torch.tensor([[[2, 0, 1, 0]]]), 255)["micro Dice"] == pytest.approx(200 / 3)
    with pytest.raises(ValueError, match="the truth has numbers beyond those of the 5 classes"):
        scores(truth, torch.tensor([[[2, 0, 1, 0]]]))
    for wrong in (5, -1):
        with pytest.raises(ValueError, match="the finding has numbers beyond"):
            scores(truth, torch.tensor([[[2, wrong, 1, 0]]]), 255)


def test_nothing_that_counts_is_nan() -> None:
    nothing = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert all(np.isnan(value) for value in scores(nothing, nothing, 0).values())


@pytest.mark.parametrize("seed", range(5))
def test_the_probe_scores_cells(seed: int) -> None:
    truth, found = (part > 1 for part in maps(seed, [0, 1, 2]))
    truth[0] = found[0] = False
    records = json.loads(json.dumps([record_probe(t.int(), f.int()) for t, f in zip(truth, found, strict=True)]))
    ours = FAMILIES["probe"].scores(records)
    both, sides = (truth & found).sum((1, 2)), truth.sum((1, 2)) + found.sum((1, 2))
    each = [2 * b / s if s else 1.0 for b, s in zip(both.tolist(), sides.tolist(), strict=True)]
    assert ours["image Dice"] == pytest.approx(100 * sum(each) / len(each))
    assert ours["pooled Dice"] == pytest.approx(200 * int(both.sum()) / int(sides.sum()))
    assert FAMILIES["probe"].scores(records[:1])["image Dice"] == 100
    assert np.isnan(FAMILIES["probe"].scores(records[:1])["pooled Dice"])


def test_images_of_which_nothing_counts_have_no_dice_and_are_left_out() -> None:
    nothing, some = torch.full((2, 3), 4), torch.tensor([[4, 1, 1], [0, 0, 0]])
    found = torch.tensor([[1, 1, 0], [0, 0, 0]])
    pairs = [(nothing, found), (some, found), (nothing, found), (torch.zeros_like(some), torch.zeros_like(some))]
    records = json.loads(json.dumps([record_probe(truth, its, ignored=4) for truth, its in pairs]))
    assert [one["dice"] for one in records] == [None, pytest.approx(2 / 3), None, 1]
    ours = FAMILIES["probe"].scores(records)
    assert ours["image Dice"] == pytest.approx(100 * (2 / 3 + 1) / 2) and ours["pooled Dice"] == pytest.approx(200 / 3)
    assert all(np.isnan(value) for value in FAMILIES["probe"].scores(records[:1]).values())
    counts = np.array([[2, 3, 0, 1], [1, 0, 1, 0]])
    drawn = FAMILIES["probe"].pack(records)(counts)["image Dice"]
    assert drawn[0] == pytest.approx(100 * (3 * 2 / 3 + 1) / 4) and np.isnan(drawn[1])


def test_the_probe_averages_classes_of_an_image() -> None:
    truth = torch.tensor([[0, 1, 1, 2, 2, 3]])
    found = torch.tensor([[1, 1, 1, 2, 0, 1]])
    kept = record_probe(truth, found, ignored=3)
    assert kept["dice"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert (kept["shared"], kept["positives"]) == (3, 8)
