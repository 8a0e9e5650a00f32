"""The probe against a plain loop, and batch norm put on equal terms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from colocate.models.backbones import Backbone
from colocate.models.encoder import group_batch_norm
from colocate.training.probes import (
    cell_features,
    nearest_neighbour_probe,
    neighbour_shares,
    settle_batch_norm,
)

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


PATCHES = nn.AvgPool2d(4)
"""A backbone that knows the mean colour of each 4 x 4 cell, and nothing else."""


def noise(count: int, seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=made)
    return images, torch.rand(count, size, size, generator=made) < 0.5


def slow_probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], k: int) -> tuple[list[bool], list[bool]]:
    """Cell by cell in plain Python: colour means, angles between them, the k smallest, a vote."""

    def cells(images: Tensor, masks: Tensor) -> list[tuple[list[float], bool]]:
        found = []
        for image, mask in zip(images, masks, strict=True):
            for top in range(0, 16, 4):
                for left in range(0, 16, 4):
                    colour = [image[c, top : top + 4, left : left + 4].double().mean().item() for c in range(3)]
                    inside = sum(mask[y, x].item() for y in range(top, top + 4) for x in range(left, left + 4))
                    found.append((colour, inside > 8))
        return found

    def cosine(a: list[float], b: list[float]) -> float:
        length = sum(x * x for x in a) ** 0.5 * sum(x * x for x in b) ** 0.5
        return sum(x * y for x, y in zip(a, b, strict=True)) / length

    memory, predicted, truth = cells(*train), [], []
    for colour, label in cells(*test):
        near = sorted(memory, key=lambda cell: -cosine(cell[0], colour))[:k]
        predicted.append(sum(cell[1] for cell in near) > k / 2)
        truth.append(label)
    return predicted, truth


@pytest.mark.parametrize("k", [1, 4, 5])
def test_equals_a_plain_loop(k: int) -> None:
    train, test = noise(3, 0), noise(2, 1)
    score = nearest_neighbour_probe(PATCHES, *train, *test, k=k, **PLAIN, batch=2)
    predicted, truth = slow_probe(train, test, k)
    assert score.predicted.flatten().tolist() == predicted
    assert 0 < sum(predicted) < len(predicted)
    shared = sum(p and t for p, t in zip(predicted, truth, strict=True))
    assert score.dice == pytest.approx(2 * shared / (sum(predicted) + sum(truth)))
    assert score.memory == 3 * 16


def test_batches_and_chunks_change_nothing() -> None:
    train, test = noise(5, 0), noise(3, 1)
    scores = [nearest_neighbour_probe(PATCHES, *train, *test, k=3, **PLAIN, batch=batch) for batch in (64, 1)]
    assert torch.equal(scores[0].predicted, scores[1].predicted)
    memory, labels = torch.randn(40, 6), torch.rand(40) < 0.5
    queries = torch.randn(9, 6)
    shares = labels.to(memory)[:, None]
    assert torch.equal(
        neighbour_shares(memory, shares, queries, 4), neighbour_shares(memory, shares, queries, 4, chunk=2)
    )


def test_dice_without_positives_is_one_and_with_false_ones_zero() -> None:
    images, _ = noise(1, 0)
    none = torch.zeros(1, 16, 16, dtype=torch.bool)
    scores = [
        nearest_neighbour_probe(PATCHES, images, one, images, other, k=1, **PLAIN).dice
        for one, other in ((none, none), (none, ~none), (~none, none))
    ]
    assert scores == [1, 0, 0]


def test_images_are_normalised() -> None:
    images = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    cells = cell_features(PATCHES, images, mean=(0.5, 0.0, 1.0), std=(0.25, 1.0, 1.0))
    assert cells.flatten().tolist() == [2, 1, 0]


def test_too_small_a_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than k = 20"):
        nearest_neighbour_probe(PATCHES, *noise(1, 0), *noise(1, 1), **PLAIN)


def test_features_come_in_evaluation_mode_and_leave_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images, _ = noise(2, 0)
    alone = torch.cat([cell_features(network, image[None]) for image in images])
    assert torch.allclose(cell_features(network, images), alone, atol=1e-6)  # no batch statistics
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("grouped", [False, True])
def test_settled_statistics_are_those_of_the_images(grouped: bool) -> None:
    images, _ = noise(12, 3)
    network: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.Dropout(0.9))
    if grouped:
        group_batch_norm(network, 2)
    settled = settle_batch_norm(network, images, **PLAIN, batch=4)
    with torch.no_grad():
        out = network[0](images.float() / 255)
    norm = settled[1]
    assert torch.allclose(norm.running_mean, out.mean((0, 2, 3)), atol=1e-5)
    assert not torch.allclose(norm.running_mean, network[1].running_mean)
    assert torch.allclose(norm.running_var, out.var((0, 2, 3)), rtol=0.1)
    assert norm.momentum == network[1].momentum
    assert not any(part.training for part in settled.modules())
    assert torch.equal(settled[0].weight, network[0].weight)


def test_settling_twice_changes_nothing() -> None:
    torch.manual_seed(0)
    images, _ = noise(6, 1, size=32)
    once = settle_batch_norm(Backbone("test_resnet", 16), images, batch=3)
    twice = settle_batch_norm(once, images, batch=3)
    for name, value in once.state_dict().items():
        if "running" in name:
            assert torch.allclose(value, twice.state_dict()[name], atol=1e-5), name
