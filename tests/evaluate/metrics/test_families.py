"""What every family of scores owes: plain records, and scores of any set of images from its counts."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch

from colocate.evaluation.metrics import FAMILIES, LOWER_IS_BETTER
from colocate.evaluation.metrics.family import Record

from .scenes import classed, pair

COUNTS = np.random.default_rng(0).multinomial(10, [0.1] * 10, size=4)
NAMES = ["background", "tumour", "stroma"]


@cache
def images(family: str) -> list[Record]:
    """Ten records; no image has two detections that are equally sure, for which COCO's order of repeats is free."""
    rng = np.random.default_rng(1)
    made = []
    for _ in range(10):
        truth, found = pair(rng)
        if family == "semantic":
            made.append(FAMILIES[family].record(truth % 3, found % 3, NAMES, 0))
        elif family == "probe":
            made.append(FAMILIES[family].record(truth % 3, found % 3))
        else:
            true, other = classed(rng, truth, found)
            scores = rng.permutation(1000)[: len(other.rles)] / 2000 + 0.5
            made.append(FAMILIES[family].record(true, other._replace(scores=scores.tolist())))
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_repeats(family: str) -> None:
    records = images(family)
    drawn = FAMILIES[family].pack(records)(COUNTS)
    for row, count in enumerate(COUNTS):
        repeated = [record for record, times in zip(records, count, strict=True) for _ in range(times)]
        expected = FAMILIES[family].scores(repeated)
        mine = {name: values[row] for name, values in drawn.items()}
        assert mine == pytest.approx(expected, nan_ok=True, rel=1e-12)
        assert any(0 < value < 100 for value in mine.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_records_are_plain_and_their_order_is_free(family: str) -> None:
    records = images(family)
    again = json.loads(json.dumps(records, allow_nan=False))
    assert again == records
    assert FAMILIES[family].scores(again[::-1]) == pytest.approx(
        FAMILIES[family].scores(records), nan_ok=True, rel=1e-12
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_no_images_are_undefined(family: str) -> None:
    assert all(np.isnan(value) for value in FAMILIES[family].scores([]).values())
    nothing = FAMILIES[family].pack(images(family))(np.zeros((1, 10), np.int64))
    assert all(np.isnan(values).all() for values in nothing.values())


def test_names_stand_for_one_score_each() -> None:
    names = [name for family in FAMILIES for name in FAMILIES[family].scores(images(family))]
    assert len(names) == len(set(names))
    assert set(names) >= LOWER_IS_BETTER
    assert torch.get_num_threads() == 1
