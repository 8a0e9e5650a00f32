"""Orders of an epoch: all tiles once, or all sources equally often; always the same ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from colocate.data.index import Index
from colocate.data.loader import balanced, batch_indices, one_order, tile_loader, tile_order

Build = Callable[..., Index]
SHARES = ([5, 1], [1, 1, 1], [40, 3, 1, 12], [7], [2, 0, 9, 4], [1] * 20 + [100])  # tiles of each source


def sources_of(tiles: list[int], seed: int = 0) -> np.ndarray:
    sources = np.repeat(np.arange(len(tiles), dtype=np.int32), tiles)
    return np.random.default_rng(seed).permutation(sources)


@pytest.mark.parametrize("tiles", SHARES, ids=str)
def test_every_source_comes_equally_often(tiles: list[int]) -> None:
    sources = sources_of(tiles)
    order, count, some = balanced(sources), len(sources), sum(n > 0 for n in tiles)
    seen: Counter[int] = Counter()
    for epoch in range(7):
        numbers = order(count, 3, epoch)
        assert numbers.dtype == torch.int64 and len(numbers) == count
        often = Counter(sources[numbers.numpy()].tolist())
        assert {*often.values()} <= {count // some, -(-count // some)} and len(often) == some
        seen.update(numbers.tolist())
        for source, whole in enumerate(tiles):  # no tile comes once more before all others of its source have come
            mine = [seen[number] for number in np.flatnonzero(sources == source).tolist()]
            assert whole == 0 or max(mine) - min(mine) <= 1


def test_the_sequence_of_a_source_goes_on_from_epoch_to_epoch() -> None:
    """Ten tiles of which an epoch has about five: all have come after two epochs, and then in another order."""
    sources = np.array([0] * 10 + [1], np.int32)
    order = balanced(sources)
    drawn = [number for epoch in range(40) for number in order(11, 0, epoch).tolist() if number < 10]
    assert len(drawn) == 40 * 11 // 2
    halves = [frozenset(n for n in order(11, 0, epoch).tolist() if n < 10) for epoch in range(40)]
    assert len({*halves}) > 20


def test_shuffles_are_fair() -> None:
    """Which of four tiles comes in a round's only place of an epoch: uniform over seeds (chi-squared, 3 degrees)."""
    order = balanced(np.array([0, 1, 1, 1, 1], np.int32))
    drawn: Counter[int] = Counter()
    for seed in range(1000):
        drawn.update(number for number in order(5, seed, 0).tolist() if number)
    expected = sum(drawn.values()) / 4
    assert sum((often - expected) ** 2 / expected for often in drawn.values()) < 16.3  # of 1 in 1000
    assert [*order(5, 0, 0)] != sorted(order(5, 0, 0).tolist())


def test_a_place_in_an_epoch_says_nothing_of_the_source() -> None:
    sources = sources_of([30, 3, 1])
    order = balanced(sources)
    early = Counter(chain.from_iterable(sources[order(34, seed, 0)[:17].numpy()].tolist() for seed in range(300)))
    assert all(1500 < early[source] < 1900 for source in range(3))  # a third of 5100


def test_orders_are_functions_of_seed_and_epoch_alone() -> None:
    sources = sources_of([20, 5, 1])
    one, other = balanced(sources), balanced(sources)
    forward = [one(26, 1, epoch).tolist() for epoch in range(5)]
    assert [other(26, 1, epoch).tolist() for epoch in reversed(range(5))] == forward[::-1]
    assert len({tuple(order) for order in forward}) == 5
    assert one(26, 2, 0).tolist() != forward[0]


def test_the_default_order_has_not_changed() -> None:
    """Runs of earlier versions are resumed: the numbers are torch's, under a seed that is written out here."""
    assert one_order(10, 0, 0).tolist() == batch_indices(10, 10, 0, 0)
    seed = int.from_bytes(blake2b(b"5 3", digest_size=8).digest())
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(seed)).tolist()
    assert batch_indices(50, 50, seed=5, step=3) == expected


def test_loader_takes_the_order(many: Path, build: Build, tmp_path: Path) -> None:
    (many / "t.csv").write_text(
        "path,source\n" + "".join(f"{n:02}.png,{'a' if n < 16 else 'b'}\n" for n in range(6, 19))
    )
    index = build(many / "t.csv")
    order = tile_order(index, "sources")
    assert tile_order(index, "tiles") is one_order
    batches = tile_loader(index, batch=6, seed=0, start=0, stop=4, order=order, workers=1)
    expected = [batch_indices(13, 6, 0, step, order=order) for step in range(4)]
    assert [tiles.index.tolist() for tiles in batches] == expected
    halves = [[batch_indices(13, 6, 0, step, rank, 2, order) for rank in range(2)] for step in range(4)]
    assert [one + other for one, other in halves] == expected
    assert expected[:2] == [order(13, 0, 0)[:6].tolist(), order(13, 0, 0)[6:12].tolist()]
