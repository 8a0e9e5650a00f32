"""Fine-tune a decoder and the backbone below it, on the same engine as pretraining."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor, nn

from colocate.base.errors import Interrupted, UserError
from colocate.base.rng import seed_torch, uniforms
from colocate.data.loader import one_order, read_ahead
from colocate.datasets.labelled import Labelled
from colocate.evaluation.settings import Engine, FitConfig
from colocate.training import checkpoint
from colocate.training.journal import Journal, ProgressBar, Throughput
from colocate.training.optim import OptimConfig, build_optimizer
from colocate.training.run import launch, stop_signals, workers

DRAWS = 12  # random numbers an example may use


class Example(NamedTuple):
    """An image and what is to be learned from it, by name."""

    image: UInt8[Tensor, "3 h w"]
    target: dict[str, Tensor]


Alter = Callable[[UInt8[Tensor, "3 h w"], Int32[Tensor, "h w"], Float[Tensor, " k"]], tuple[Tensor, Tensor]]
"""Image, mask and `DRAWS` numbers in [0, 1) to the image and mask of one example."""


@final
@dataclass(frozen=True)
class Examples:
    """Altered images and their targets; asked for by (number, epoch)."""

    data: Labelled
    alter: Alter
    target: Callable[[Labelled, int, Tensor], dict[str, Tensor]]
    seed: int

    def read(self, turns: Sequence[tuple[int, int]]) -> list[Example]:
        """Build the examples of a batch."""
        return [self.one(number, epoch) for number, epoch in turns]

    def one(self, number: int, epoch: int) -> Example:
        """Build the example of an image in an epoch."""
        draws = uniforms(torch.tensor([number]), self.seed, epoch, count=DRAWS)[0]
        image, mask = self.alter(self.data.image(number), self.data.mask(number), draws)
        return Example(image, self.target(self.data, number, mask))


def turns(numbers: Sequence[int], batch: int, seed: int, step: int) -> list[Any]:
    """Number and epoch of each image of a step; a batch may be larger than the data set.

    Epochs follow one another without a gap, each in its own order; a batch may reach into the next.

    >>> [turns([7, 8, 9], 2, seed=0, step=step) for step in range(3)]
    [[(9, 0), (7, 0)], [(8, 0), (9, 1)], [(8, 1), (7, 1)]]
    """
    places = (divmod(place, len(numbers)) for place in range(step * batch, (step + 1) * batch))
    return [(numbers[int(one_order(len(numbers), seed, epoch)[within])], epoch) for epoch, within in places]


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


def fit(
    model: nn.Module,
    examples: Examples,
    numbers: Sequence[int],
    config: FitConfig,
    folder: Path,
    identity: str,
    engine: Engine,
) -> nn.Module:
    """Train `model`, resuming from a checkpoint in `folder` if there is one; returns it, on its device.

    `model(images, targets)` gives named losses: images a list of (3, h, w) in [0, 1], targets a list of dictionaries.
    Everything random in step t is a function of (seed, t). `identity` names all that decides the numbers: checkpoints
    of another one are refused.

    Raises:
        UserError: a loss that is not finite, a checkpoint of something else, what `launch` raises.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint has been written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fabric = launch(engine.machine(), engine.precision, config.batch)
    model.train()
    optim = OptimConfig(name=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, clip=config.clip)
    network, optimizer = fabric.setup(model, build_optimizer(optim, model))
    steps = config.planned(len(numbers))
    step = _restore(folder, identity, model, optimizer)
    places = partial(turns, numbers, config.batch, examples.seed)
    batches: Iterator[list[Example]] = read_ahead(examples.read, range(step, steps), places, workers(engine.machine()))

    journal = Journal(folder / "journal.csv", step)
    pace = Throughput("images")
    with stop_signals() as asked, ProgressBar(steps, step, shown=True, doing="fit") as screen:
        for batch in pace.timed(batches):
            seed_torch(step, examples.seed)
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step, steps)
            images = [example.image.to(fabric.device).float() / 255 for example in batch]
            targets = [{k: v.to(fabric.device) for k, v in example.target.items()} for example in batch]
            losses: dict[str, Tensor] = network(images, targets)
            loss = torch.stack([term.float() for term in losses.values()]).sum()
            fabric.backward(loss)
            if config.clip:
                fabric.clip_gradients(network, optimizer, max_norm=config.clip, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            pace.count += config.batch

            if step % engine.log_every == 0 or step == steps:
                row = {"loss": loss.item()} | {name: term.item() for name, term in losses.items()}
                if not torch.isfinite(loss):
                    raise UserError(f"{folder}: the loss was not finite at step {step}: try a lower lr or more warmup")
                row |= {"lr": config.rate(step - 1, steps)} | pace.read()
                screen.show(step, row)
                journal.write(step, row)
            if asked or step % engine.save_every == 0 or step == steps:
                state = {"step": step, "recipe": identity, "model": model.state_dict()}
                checkpoint.save_checkpoint(
                    folder / "checkpoints", step, state | {"optimizer": optimizer.state_dict()}, keep=1
                )
            if asked:
                raise Interrupted(f"stopped at step {step} of {steps}; the same command continues")
    return model


def _restore(folder: Path, identity: str, model: nn.Module, optimizer: Any) -> int:
    paths = checkpoint.checkpoints(folder / "checkpoints")
    if not paths:
        return 0
    stored = checkpoint.load_checkpoint(paths[-1], holding="model")
    if stored["recipe"] != identity:
        raise UserError(f"{paths[-1]} is a checkpoint of another evaluation: delete {folder}, or choose another --out")
    model.load_state_dict(stored["model"])
    optimizer.load_state_dict(stored["optimizer"])
    return int(stored["step"])
