"""Shares and recommendations: laws that hold for any times."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.bench.advice import (
    CLOSE,
    PARTS,
    SMALLEST_BATCH,
    STEPS_TIMED,
    batches_to_try,
    measured_batch,
    smallest_fast,
    split,
    workers,
)

times = st.floats(0, 1e4)
positive = st.floats(1e-3, 1e4)


@given(positive, st.fixed_dictionaries(dict.fromkeys(PARTS, times)))
def test_shares_add_up_and_none_is_larger_than_its_part_alone(step_ms: float, alone: dict[str, float]) -> None:
    shares = split(step_ms, alone)
    assert math.isclose(sum(shares.values()), 1, abs_tol=1e-9)
    assert all(-1e-12 <= share <= 1 for share in shares.values())
    assert all(shares[part] * step_ms <= alone[part] * (1 + 1e-9) for part in PARTS)


def test_what_fits_into_a_step_keeps_its_time_and_what_does_not_happens_beside_it() -> None:
    alone = {"waiting": 0.0, "network": 60.0, "losses": 20.0, "optimizer": 5.0, "views": 30.0}
    assert split(100, alone)["views"] == pytest.approx(0.15)  # half of them beside the step
    assert split(100, alone)["rest"] == 0
    assert split(200, alone)["views"] == pytest.approx(0.15)
    assert split(200, alone)["rest"] == pytest.approx(0.425)


@given(positive, st.floats(0, 0.99), positive, st.integers(1, 64))
def test_workers_are_the_fewest_that_keep_up_without_waiting(
    measured: float, waiting: float, one: float, cores: int
) -> None:
    found = workers(measured, waiting, one, cores)
    rate = measured / (1 - waiting)
    assert found.needed * one >= rate * (1 - 1e-9)
    assert found.needed == 1 or (found.needed - 1) * one < rate
    assert found.recommended == min(found.needed, cores)
    assert found.suffice == (found.needed <= cores)


@given(st.dictionaries(st.integers(1, 4096), positive, min_size=1))
def test_no_smaller_batch_is_as_fast(rates: dict[int, float]) -> None:
    chosen, best = smallest_fast(rates), max(rates.values())
    assert rates[chosen] >= CLOSE * best
    assert all(rate < CLOSE * best for batch, rate in rates.items() if batch < chosen)


@given(st.integers(1, 4096), st.booleans())
def test_the_recipes_batch_is_among_those_tried(batch: int, larger: bool) -> None:
    tried = batches_to_try(batch, larger)
    assert batch in tried and tried == sorted(set(tried))
    assert all(batch % other == 0 or other % batch == 0 for other in tried)
    assert larger or max(tried) == batch
    assert min(tried) >= min(batch, SMALLEST_BATCH)


@given(st.integers(1, 4096), st.floats(1e-6, 10), positive)
def test_a_slow_device_is_measured_with_the_largest_part_of_the_batch_that_it_has_time_for(
    batch: int, tile_s: float, seconds: float
) -> None:
    found = measured_batch(batch, tile_s, seconds)
    assert batch % found == 0
    assert found == batch or STEPS_TIMED * 2 * found * tile_s > seconds
    fits, cannot_be_halved = STEPS_TIMED * found * tile_s <= seconds, found % 2 == 1 or found // 2 < SMALLEST_BATCH
    assert fits or cannot_be_halved
