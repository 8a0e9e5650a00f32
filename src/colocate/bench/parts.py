"""The parts of a step, each timed alone on tensors that lie ready."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple, final

import torch
from lightning.fabric import Fabric
from torch import Tensor

from ..ahead import views_ahead
from ..compiling import compile_encoders
from ..data import Tiles
from ..errors import UserError
from ..networks import Encoder
from ..optim import build_optimizer
from ..recipe import Recipe
from ..train import build_method, clip, views_of
from ..views import Batch


class Call(NamedTuple):
    """What a method sends through one of its encoders in a step."""

    encoder: Encoder
    images: Tensor
    learns: bool
    """Whether a gradient comes back."""


@final
class Stage:
    """A recipe's method and optimiser on its device as training sets them up, but standing still: at learning rate 0.

    Queues and key encoders move, which costs the same whatever they hold.
    """

    def __init__(self, recipe: Recipe, fabric: Fabric) -> None:
        self.recipe, self.fabric = recipe, fabric
        self.bare = build_method(recipe)
        self.method, self.optimizer = fabric.setup(self.bare, build_optimizer(recipe.optim, self.bare))
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0

    def views(self, turn: int, tiles: Tiles, images: Tensor) -> Batch:
        """Views of tiles whose images lie on the device."""
        return views_of(self.recipe, 1, turn, tiles, images)

    def learn(self, batch: Batch) -> None:
        """Losses, and gradients of every parameter."""
        self.optimizer.zero_grad()
        self.fabric.backward(self.method(batch).total())

    def update(self) -> None:
        """What is done with the gradients, once a step."""
        clip(self.method, self.optimizer, self.recipe.optim.clip, self.fabric)
        self.optimizer.step()

    def calls(self, batch: Batch) -> list[Call]:
        """What goes through the encoders in one forward of the method, whatever the method."""
        found: list[Call] = []

        def note(encoder: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(encoder, Encoder)
            found.append(Call(encoder, inputs[0].detach(), torch.is_grad_enabled()))

        encoders = [part for part in self.bare.modules() if isinstance(part, Encoder)]
        hooks = [encoder.register_forward_pre_hook(note) for encoder in encoders]
        self.method(batch)
        for hook in hooks:
            hook.remove()
        return found

    def network(self, calls: list[Call]) -> None:
        """The same through the same encoders, forward and where they learn backward, and nothing else."""
        self.optimizer.zero_grad()
        out: list[Tensor] = []
        with self.fabric.autocast():
            for call in calls:
                with torch.set_grad_enabled(call.learns):
                    features = call.encoder(call.images)
                if call.learns:
                    out += [features.whole, *([] if features.cells is None else [features.cells])]
        self.fabric.backward(torch.stack([part.float().sum() for part in out]).sum())


def tile_seconds(recipe: Recipe, fabric: Fabric, tiles: Tiles) -> float:
    """Roughly what a step takes for each of its tiles, from a small batch."""
    some = 8 if fabric.device.type == "cpu" else 64  # fewer would not fill a GPU
    stage, small = Stage(recipe, fabric), first(tiles, min(some, recipe.batch))
    batch = stage.views(0, small, small.images.to(fabric.device))
    return min(seconds(lambda: stage.learn(batch), fabric.device) for _ in range(2)) / len(small.index)


def parts_ms(stage: Stage, tiles: Tiles, rounds: int) -> tuple[dict[str, float], str | None]:
    """Milliseconds that views, network, losses (all of the method but its network) and optimizer take for a batch.

    Medians over rounds in which they take turns. Also a sentence where compiling was asked for and failed.
    """
    device = stage.fabric.device
    images = tiles.images.to(device)
    batch = stage.views(0, tiles, images)
    calls = stage.calls(batch)
    compiled = stage.recipe.compile
    failure = compile_encoders(stage.bare, batch.first.images, stage.fabric.autocast()) if compiled else None
    ways = {
        "views": lambda: stage.views(1, tiles, images),
        "network": lambda: stage.network(calls),
        "method": lambda: stage.learn(batch),
        "optimizer": stage.update,  # with the gradients that the method has just left
    }
    times = in_turns(ways, rounds, device)
    found = {name: 1000 * median(one[name] for one in times) for name in ("views", "network", "optimizer")}
    found["optimizer"] /= stage.recipe.accumulate
    # Round by round: what else the machine does falls on neighbours alike.
    found["losses"] = 1000 * max(0.0, median(one["method"] - one["network"] for one in times))
    return found, failure


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> list[dict[str, float]]:
    """Each round's seconds of every way, one after the other; a round to warm up aside."""
    return [{name: seconds(way, device) for name, way in ways.items()} for _ in range(rounds + 1)][1:]


def seconds(way: Callable[[], object], device: torch.device) -> float:
    """Seconds until a device has done it."""
    _wait(device)
    began = time.perf_counter()
    way()
    _wait(device)
    return time.perf_counter() - began


def pairs_per_s(stage: Stage, tiles: Tiles, batch: int, steps: int) -> float:
    """Pairs a second of steps on tiles that lie decoded on the host, views made as in training; one warms up."""
    some = first(tiles, batch)
    if stage.fabric.device.type == "cuda":
        some = some._replace(images=some.images.pin_memory())

    def run(count: int) -> None:
        for _, _, views in views_ahead(((turn, some) for turn in range(count)), stage.views, stage.fabric.device):
            stage.learn(views)
            stage.update()

    run(1)
    return batch * steps / seconds(lambda: run(steps), stage.fabric.device)


class Tried(NamedTuple):
    """Rates of batches, and the first that did not fit in memory."""

    pairs_per_s: dict[int, float]
    too_large: int | None


def try_batches(batches: list[int], rate: Callable[[int], float]) -> Tried:
    """The `rate` of each batch, ascending, up to one too large for the device; those that it refuses are left out."""
    rates: dict[int, float] = {}
    for batch in batches:
        try:
            rates[batch] = rate(batch)
        except torch.OutOfMemoryError:
            return Tried(rates, batch)
        except UserError:  # batch norm in groups that do not divide it
            continue
        finally:
            free()
    return Tried(rates, None)


def free() -> None:
    """Give back what no one holds any longer."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def first(tiles: Tiles, count: int) -> Tiles:
    """So many tiles, the same ones over again where there are fewer."""
    which = torch.arange(count) % len(tiles.index)
    return Tiles(tiles.images[which], tiles.sizes[which], tiles.index[which], tiles.mpp[which], ())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
