"""Queues, the momentum encoder and grouped batch norm, against plain versions of themselves."""

from __future__ import annotations

import copy
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from colocate.base.errors import UserError
from colocate.models.backbones import Backbone
from colocate.models.encoder import (
    Encoder,
    Expander,
    Momentum,
    Queue,
    group_batch_norm,
    projector,
    synchronise_batch_norm,
)


@given(length=st.integers(1, 9), pushes=st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_a_queue_keeps_the_last_vectors_whatever_is_pushed_at_once(length: int, pushes: list[int]) -> None:
    queue = Queue(length, 3)
    plain = deque(queue.vectors.clone(), maxlen=length)
    for count in pushes:
        new = torch.randn(count, 3) * 5
        queue.push(new)
        plain.extend(F.normalize(new, dim=1))
    # A ring: the oldest vector stands at `position`.
    torch.testing.assert_close(queue.vectors.roll(-int(queue.position), 0), torch.stack(list(plain)))


@given(
    length=st.integers(1, 9),
    pushes=st.lists(st.lists(st.booleans(), min_size=1, max_size=20), min_size=1, max_size=6),
)
def test_a_queue_takes_only_what_is_valid(length: int, pushes: list[list[bool]]) -> None:
    queue, plain = Queue(length, 3), None
    for valid in pushes:
        new = torch.randn(len(valid), 3)
        queue.push(new, torch.tensor(valid))
        kept = F.normalize(new[torch.tensor(valid)], dim=1)
        if plain is None and len(kept):
            plain = deque(maxlen=length)
        if plain is not None:
            plain.extend(kept)
    if plain is None:
        assert not queue.used
        return
    start = int(queue.position) if len(plain) == length else 0
    torch.testing.assert_close(queue.vectors.roll(-start, 0)[: len(plain)], torch.stack(list(plain)))


def grouped(network: nn.Module, size: int) -> nn.Module:
    return group_batch_norm(copy.deepcopy(network), size)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])  # plain batch norm, and timm's with activation
def test_grouped_batch_norm_is_batch_norm_of_each_group(name: str) -> None:
    """Values, gradients and statistics."""
    backbone = Backbone(name).double()
    images = torch.randn(12, 3, 64, 64, dtype=torch.float64)
    together = grouped(backbone, 4)
    apart = [copy.deepcopy(backbone) for _ in range(3)]
    found = together(images)
    expected = torch.cat([network(part) for network, part in zip(apart, images.split(4), strict=True)])
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for weight, *theirs in zip(together.parameters(), *(network.parameters() for network in apart), strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, sum(their.grad for their in theirs))
    for key, tensor in together.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(tensor, torch.stack([network.state_dict()[key] for network in apart]).mean(0))
    assert together.state_dict().keys() == backbone.state_dict().keys()


def test_a_batch_that_does_not_divide_into_groups_is_named() -> None:
    with pytest.raises(UserError, match=r"10 views per device do not divide into groups of 3"):
        grouped(Backbone("test_resnet"), 3)(torch.zeros(10, 3, 64, 64))


def encoder(name: str = "test_resnet") -> Encoder:
    backbone = Backbone(name)
    group_batch_norm(backbone, 4)
    return Encoder(backbone, *(projector(backbone.channels, 16, 8) for _ in range(2)))


def test_momentum_moves_parameters_and_leaves_buffers() -> None:
    query = encoder()
    key = Momentum(query, 0.9)
    before = {name: p.clone() for name, p in key.encoder.named_parameters()}
    with torch.no_grad():
        for p in query.parameters():
            p.add_(torch.randn_like(p))
    query(torch.randn(8, 3, 64, 64))  # moves the query's running statistics
    buffers = {name: b.clone() for name, b in key.encoder.named_buffers()}
    key.follow(query)
    for name, p in query.named_parameters():
        torch.testing.assert_close(key.encoder.get_parameter(name), 0.9 * before[name] + 0.1 * p)
    for name, b in key.encoder.named_buffers():
        assert torch.equal(b, buffers[name])
    assert not any(p.requires_grad for p in key.parameters())


def test_the_key_batch_is_shuffled_among_groups_and_put_back() -> None:
    key = Momentum(encoder(), 0.9)
    images = torch.randn(16, 3, 64, 64)
    key.eval()
    still = key(images)
    torch.testing.assert_close(still.cells, key.encoder(images).cells)
    key.train()
    first, second = key(images), key(images)  # other groups, so other statistics
    assert not torch.allclose(first.whole, second.whole)
    # Put back: each view's features stay nearest to its own, for all that the statistics do.
    alike = (
        F.normalize(first.field.flatten(1) - first.field.flatten(1).mean(0))
        @ F.normalize(second.field.flatten(1) - second.field.flatten(1).mean(0)).T
    )
    assert torch.equal(alike.argmax(1), torch.arange(16))


def test_networks_without_batch_norm_are_not_shuffled() -> None:
    key = Momentum(encoder("test_convnext"), 0.9)
    images = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(key(images).whole, key.encoder(images).whole)
    assert not key.shuffles


def test_cells_are_projected_one_by_one() -> None:
    network = encoder().eval()
    features = network(torch.randn(2, 3, 64, 96))
    assert features.cells is not None and network.cells is not None
    assert features.cells.shape[1] == features.grid[0] * features.grid[1] and features.grid[0] < features.grid[1]
    torch.testing.assert_close(features.cells[1, 5], network.cells(features.field[1, 5]))
    torch.testing.assert_close(features.whole, network.whole(features.field.mean(1)))


def test_keys_are_made_without_drop_path() -> None:
    backbone = Backbone("test_vit", drop_path=0.5)
    network = Encoder(backbone, projector(backbone.channels, 16, 8))
    images = torch.randn(8, 3, 64, 64)
    key = Momentum(network, 0.9).train()
    torch.testing.assert_close(key(images).whole, key(images).whole)
    assert not torch.allclose(network(images).whole, network(images).whole)  # the query drops


def test_without_batch_norm_there_is_nothing_to_synchronise() -> None:
    with pytest.raises(UserError, match="no batch norm to be synchronised"):
        synchronise_batch_norm(Backbone("test_vit"))


def test_an_expander_works_on_the_last_axis() -> None:
    expander = Expander(6, 4).eval()
    cells = torch.randn(3, 5, 6)
    torch.testing.assert_close(expander(cells)[2, 4], expander(cells[2, 4:5])[0])
    assert expander(cells).shape == (3, 5, 4) and expander(cells[:, 0]).shape == (3, 4)
