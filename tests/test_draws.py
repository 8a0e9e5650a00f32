"""Random numbers without state: pure, even, and unrelated to each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colocate.base.rng import uniforms

_STEP = 0x9E3779B97F4A7C15


def _mixed(x: int) -> int:
    """SplitMix64's finaliser in plain integers (Steele, Lea and Flood, OOPSLA 2014, figure 16)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def _slow_uniforms(index: int, key: tuple[int, ...], count: int) -> list[float]:
    state = 0
    for part in (*key, index):
        state = _mixed((state + part + _STEP) % 2**64)
    return [(_mixed((state + j * _STEP) % 2**64) >> 11) / 2**53 for j in range(1, count + 1)]


integers = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(integers, min_size=1, max_size=5), st.lists(integers, max_size=4), st.integers(1, 70))
def test_equals_the_plain_integers(index: list[int], key: list[int], count: int) -> None:
    """So neither other tiles, nor torch's generators, nor the process change what a tile draws."""
    ours = uniforms(torch.tensor(index), *key, count=count)
    assert ours.dtype == torch.float64 and ours.shape == (len(index), count)
    assert ours.tolist() == [_slow_uniforms(i, tuple(key), count) for i in index]


def test_finaliser_matches_the_published_sequence() -> None:
    """The first numbers of SplitMix64 seeded with 1234567, as Vigna's splitmix64.c prints them."""
    sequence = [_mixed((1234567 + j * _STEP) % 2**64) for j in range(1, 4)]
    assert sequence == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def _distance_from_even(values: torch.Tensor) -> float:
    """Kolmogorov's statistic times the root of the count: above 1.95 once in a thousand samples."""
    ordered = values.flatten().sort().values
    steps = torch.arange(1, len(ordered) + 1) / len(ordered)
    return float((ordered - steps).abs().max() * len(ordered) ** 0.5)


@pytest.mark.parametrize("key", [(), (0,), (0, 0, 0), (0, 0, 1), (3, 199, 1), (-1,)])
def test_every_number_is_even_over_tiles(key: tuple[int, ...]) -> None:
    u = uniforms(torch.arange(20_000), *key, count=64)
    assert bool((u >= 0).all()) and bool((u < 1).all())
    assert max(_distance_from_even(u[:, j]) for j in range(64)) < 2.5


def test_numbers_of_one_tile_are_unrelated() -> None:
    u = uniforms(torch.arange(20_000), 0, 0, 0, count=64)
    correlation = torch.corrcoef(u.T) - torch.eye(64)
    assert float(correlation.abs().max()) < 4.5 / 20_000**0.5


def test_views_epochs_seeds_and_neighbours_are_unrelated() -> None:
    index = torch.arange(20_000)
    first = uniforms(index, 0, 0, 0, count=1)[:, 0]
    others = [
        uniforms(index, *key, count=1)[:, 0] for key in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0), (0, 0, 0, 0)]
    ] + [uniforms(index + 1, 0, 0, 0, count=1)[:, 0], uniforms(index, 0, 0, 0, count=2)[:, 1]]
    for other in others:
        assert not bool((first == other).any())
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 4 / 20_000**0.5
