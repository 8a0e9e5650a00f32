"""Labelled images in batches: which, in what order and how altered follow from the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from ..data import Labelled, one_order, read_ahead
from ..draws import uniforms
from ..errors import UserError

DRAWS = 8  # random numbers an example may use


class Example(NamedTuple):
    """An image and what is to be learned from it, by name."""

    image: UInt8[Tensor, "3 h w"]
    target: dict[str, Tensor]


Alter = Callable[[UInt8[Tensor, "3 h w"], Int32[Tensor, "h w"], Float[Tensor, " k"]], tuple[Tensor, Tensor]]
"""Image, mask and `DRAWS` numbers in [0, 1) to the image and mask of one example."""


@final
@dataclass(frozen=True)
class Examples(Dataset[Any]):
    """Altered images and their targets; asked for by (number, epoch)."""

    data: Labelled
    alter: Alter
    target: Callable[[Labelled, int, Tensor], dict[str, Tensor]]
    seed: int

    def __getitem__(self, turns: Sequence[tuple[int, int]]) -> list[Example] | UserError:
        try:
            return [self.one(number, epoch) for number, epoch in turns]
        except UserError as error:
            return error

    def one(self, number: int, epoch: int) -> Example:
        """The example that an image gives in an epoch."""
        draws = uniforms(torch.tensor([number]), self.seed, epoch, count=DRAWS)[0]
        image, mask = self.alter(self.data.image(number), self.data.mask(number), draws)
        return Example(image, self.target(self.data, number, mask))


def turns(numbers: Sequence[int], batch: int, seed: int, step: int) -> list[Any]:
    """(number, epoch) of the images of a step, however few images there are.

    Epochs follow one another without a gap, each in its own order; a batch may reach into the next.

    >>> [turns([7, 8, 9], 2, seed=0, step=step) for step in range(3)]
    [[(9, 0), (7, 0)], [(8, 0), (9, 1)], [(8, 1), (7, 1)]]
    """
    places = (divmod(place, len(numbers)) for place in range(step * batch, (step + 1) * batch))
    return [(numbers[int(one_order(len(numbers), seed, epoch)[within])], epoch) for epoch, within in places]


def example_loader(
    examples: Examples, numbers: Sequence[int], batch: int, steps: range, workers: int
) -> Iterator[list[Example]]:
    """The examples of each step, read ahead by `workers`. Raises UserError where an image is unreadable."""
    return read_ahead(examples, steps, partial(turns, numbers, batch, examples.seed), workers)


def flipped(
    image: UInt8[Tensor, "3 h w"], mask: Int32[Tensor, "h w"], draws: Float[Tensor, " k"], symmetries: bool
) -> tuple[UInt8[Tensor, "3 _ _"], Int32[Tensor, "_ _"]]:
    """Flipped sideways by the first number; with all eight symmetries also upside down and turned, by two more."""
    for axes, draw in (((-1,), draws[0]), *((((-2,), draws[1]),) if symmetries else ())):
        if draw < 0.5:
            image, mask = image.flip(axes), mask.flip(axes)
    if symmetries and draws[2] < 0.5:
        image, mask = image.mT, mask.mT
    return image.contiguous(), mask.contiguous()
