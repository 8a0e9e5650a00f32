"""Prototypes along the overlap: balanced assignments, and the loss against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colocate.core.matching import overlap
from colocate.core.objectives import sinkhorn
from colocate.core.settings import ViewConfig
from colocate.core.views import sample_views
from colocate.methods.prototypes import PrototypeHead, Prototypes
from colocate.training.loop import build_method
from tests.reference import prototypes as reference
from tests.tiny import METHODS, tiny_recipe


@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(2, 6), st.sampled_from([0.05, 0.2, 1.0]))
def test_an_assignment_equals_the_plain_loops(seed: int, m: int, k: int, temperature: float) -> None:
    scores = torch.rand(m, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    ours = sinkhorn(scores, temperature, iterations=3)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, torch.tensor(reference.sinkhorn(scores.tolist(), temperature, 3)).double())


@given(st.integers(0, 10_000))
def test_assignments_are_distributions_and_share_the_prototypes_out(seed: int) -> None:
    """Even where every vector likes the same prototype best."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(60, 5, generator=generator, dtype=torch.float64) + torch.tensor([1.0, 0, 0, 0, 0])
    shares = sinkhorn(scores, 0.1, iterations=500)
    torch.testing.assert_close(shares.sum(1), torch.ones(60).double())
    torch.testing.assert_close(shares.sum(0), torch.full((5,), 12.0).double(), rtol=1e-3, atol=0)


def test_the_loss_equals_the_equations_in_plain_loops() -> None:
    method = build_method(tiny_recipe(Path(), Path(), method=METHODS["prototypes"]))
    assert isinstance(method, Prototypes)
    config = method.config
    batch = sample_views(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8), ViewConfig(64, symmetries="all"))
    losses = method(batch)
    assert set(losses.terms) == {"cells"} and losses.query.cells is not None
    assert losses.key is not None and losses.key.cells is not None
    scores = losses.key.cells.flatten(0, 1).tolist()
    scores += (scores * 3)[: config.memory]  # before there are past cells, the first stand for them
    plan = torch.tensor(reference.sinkhorn(scores, config.teacher_temperature, config.iterations))[:32].view(8, 4, -1)
    total = 0.0
    there, back = (
        overlap(own.crop, other.crop, 2) for own, other in ((batch.first, batch.second), (batch.second, batch.first))
    )
    for tile in range(8):
        shared, reverse = ((match.fractions() * match.weight[:, :, None])[tile].tolist() for match in (there, back))
        student = losses.query.cells[tile].tolist()
        total += reference.swapped(shared, reverse, student, plan[tile].tolist(), config.temperature)
    assert losses.terms["cells"].item() == pytest.approx(total / 8, rel=1e-5)


def test_the_memory_holds_the_latest_teacher_cells_newest_first() -> None:
    method = build_method(tiny_recipe(Path(), Path(), method=METHODS["prototypes"]))
    assert isinstance(method, Prototypes)
    seen: list[torch.Tensor] = []
    for epoch in range(3):
        tiles = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
        losses = method(sample_views(tiles, ViewConfig(64), epoch=epoch))
        assert losses.key.cells is not None
        seen.insert(0, losses.key.cells.flatten(0, 1))
        expected = torch.cat([*seen, seen[-1], seen[-1]])[: method.config.memory]
        torch.testing.assert_close(method.past, expected)


def test_prototypes_are_compared_by_direction_alone() -> None:
    head = PrototypeHead(4, 8, 3, 5)
    x = torch.randn(7, 4)
    before = head(x)
    with torch.no_grad():
        head.prototypes *= torch.rand(5, 1) + 0.5
    torch.testing.assert_close(head(x), before)
    assert before.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.02])
def test_low_temperatures_leave_no_vector_without_a_prototype(temperature: float) -> None:
    """In float32, against loops with a far wider range: rows far below the best were all zero."""
    scores = torch.tensor([[1.0, 0.9], [0.0, -0.1], [-0.5, -1.0], [0.3, 0.31]])
    wide = np.exp(scores.numpy().astype(np.longdouble) / temperature)
    for _ in range(3):
        wide /= wide.sum(0, keepdims=True)
        wide /= wide.sum(1, keepdims=True)
    torch.testing.assert_close(sinkhorn(scores, temperature), torch.tensor(wide.astype(np.float32)), atol=1e-4, rtol=0)
