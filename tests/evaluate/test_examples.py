"""Examples: every image once an epoch, whatever the batch, altered the same way each time."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from colocate.base.errors import UserError
from colocate.data.loader import read_ahead
from colocate.datasets.labelled import Labelled
from colocate.evaluation.decoders import instance_target as objects_of
from colocate.evaluation.fit import Examples, flipped, turns


@pytest.mark.parametrize(("images", "batch"), [(5, 16), (7, 3), (4, 4), (1, 6)])
def test_every_image_comes_once_an_epoch(images: int, batch: int) -> None:
    numbers = list(range(10, 10 + images))
    taken = [turn for step in range(3 * images) for turn in turns(numbers, batch, 0, step)]
    assert taken[: images * batch] == sorted(taken[: images * batch], key=lambda turn: turn[1])
    for epoch in range(batch):
        assert sorted(number for number, when in taken if when == epoch) == numbers


def test_the_mask_moves_with_the_image(data: Labelled) -> None:
    image, mask = data.image(3), data.mask(3)
    seen = set()
    for place in range(64):
        draws = torch.rand(8, generator=torch.Generator().manual_seed(place))
        moved, moved_mask = flipped(image, mask, draws, symmetries=True)
        assert torch.equal(moved[:, moved_mask > 0].flatten().sort().values, image[:, mask > 0].flatten().sort().values)
        seen.add(moved.numpy().tobytes())
    assert len(seen) == 8
    sideways = {
        flipped(image, mask, torch.full((8,), draw), symmetries=False)[0].numpy().tobytes() for draw in (0.1, 0.9)
    }
    assert sideways == {image.numpy().tobytes(), image.flip(2).numpy().tobytes()}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_examples_from_any_step_on(data: Labelled, workers: int) -> None:
    examples = Examples(data, partial(flipped, symmetries=True), objects_of, seed=5)
    places = partial(turns, data.train("patients"), 4, 5)
    all_of_them = list(read_ahead(examples.read, range(0, 5), places, 0))
    later = list(read_ahead(examples.read, range(3, 5), places, workers))
    for one, other in zip(all_of_them[3:], later, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.image, b.image) and torch.equal(a.target["masks"], b.target["masks"])


def test_a_damaged_image_is_named(copied: Labelled) -> None:
    (copied.folder / copied.items[2].path).write_bytes(b"nothing")
    examples = Examples(copied, partial(flipped, symmetries=False), objects_of, seed=0)
    with pytest.raises(UserError, match="image02"):
        list(read_ahead(examples.read, range(1), partial(turns, [2], 1, 0), 1))


def test_objects_have_tight_boxes(data: Labelled) -> None:
    found = objects_of(data, 4, data.mask(4))
    low, high = found["masks"].int()
    for number, box in enumerate(found["boxes"].long().tolist(), start=1):
        mask = low + 256 * high == number
        left, top, right, bottom = box
        assert mask[top:bottom, left:right].sum() == mask.sum() > 0
        for edge in (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]):
            assert edge.any()
    assert found["labels"].tolist() == [1] * len(found["boxes"])
