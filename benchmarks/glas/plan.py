"""What a proof consists of: its sizes, the recipes they are given to, and its stages in the order of their turn."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple, final

import pydantic

from colocate.errors import UserError
from colocate.evaluate.fit import FitConfig
from colocate.evaluate.instances import InstancesConfig
from colocate.evaluate.presets import smoke_instances
from colocate.files import write_atomically
from colocate.methods.concl import ConCLConfig
from colocate.methods.moco import MoCoConfig
from colocate.prepare.glas import FACTS
from colocate.recipe import MachineConfig, Precision, Recipe
from colocate.recipes import PAPER, small

RANDOM = "random"  # no pretraining
PROVEN = {recipe().name: recipe for recipe in PAPER}
SPLITS = ("official", "patients")


@dataclass(frozen=True)
class Size:
    """How much is computed; all that decides the numbers, but for the recipes themselves."""

    pairs: int = 1_000_000
    """Pairs of views in a recipe's pretraining."""
    batch: int = 256
    """Tiles a step of it."""
    view_px: int = 224
    """Side of a view."""
    backbone: str = "resnet18"
    """Any timm network with a feature grid."""
    precision: Precision = "bf16-mixed"
    """Arithmetic of pretraining."""
    queue_length: int = 1024
    """Past keys held against, at most; -small's own is a quarter of an epoch of the packed tiles."""
    pretrain_seed: int = 0
    """Of pretraining; the seeds of `--seeds` are fine-tuning's."""
    fit_precision: Precision = "32"
    """Arithmetic of fine-tuning."""
    instances: InstancesConfig = field(default_factory=lambda: InstancesConfig(FitConfig(steps=1500)))
    """Fine-tuning on GlaS: the paper's, but fewer steps than its 5,000."""

    def __post_init__(self) -> None:
        if not 8 <= self.batch <= self.pairs:
            raise UserError(f"batch must be 8 or more, and pairs no fewer than it, not {self.batch} and {self.pairs}")

    @property
    def steps(self) -> int:
        """Optimiser steps of a pretraining."""
        return self.pairs // self.batch


@final
class Stage(NamedTuple):
    """One thing to do; it can be left off and gone on with."""

    does: Literal["pretrain", "evaluate"]
    recipe: str
    split: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.does} {self.recipe}" + (f" {self.split} seed {self.seed}" if self.split else "")


@dataclass(frozen=True)
class Plan:
    """Which recipes are held against each other, and how."""

    recipes: tuple[str, ...] = ("moco-v2", "densecl", "plm", RANDOM)
    seeds: int = 5
    splits: tuple[str, ...] = ("patients",)
    size: Size = field(default_factory=Size)
    packs: str = ""
    """Fingerprint of the packs."""

    def __post_init__(self) -> None:
        for words, known in ((self.recipes, (*PROVEN, RANDOM)), (self.splits, SPLITS)):
            if unknown := [word for word in words if word not in known]:
                raise UserError(f"{unknown[0]!r} is not known here: there are {', '.join(known)}")
            if len(set(words)) < max(1, len(words)):
                raise UserError(f"give one or more of {', '.join(known)}, each once")
        if self.seeds < 1:
            raise UserError(f"seeds must be 1 or more, not {self.seeds}")

    @property
    def pretrained(self) -> tuple[str, ...]:
        """The recipes that there is something to pretrain of."""
        return tuple(name for name in self.recipes if name != RANDOM)

    def stages(self) -> list[Stage]:
        """All of them: every pretraining, then seed by seed, so that what is there can be compared at any time."""
        judged = [
            Stage("evaluate", recipe, split, seed)
            for seed in range(self.seeds)
            for split in self.splits
            for recipe in self.recipes
        ]
        return [*(Stage("pretrain", recipe) for recipe in self.pretrained), *judged]


_FEW = smoke_instances()
SIZES = {
    "gpu": Plan(),
    "smoke": Plan(
        seeds=1,
        size=Size(
            pairs=96,
            batch=16,
            view_px=64,
            precision="32",
            queue_length=64,
            instances=replace(_FEW, fit=replace(_FEW.fit, steps=6, batch=2), proposals=32, detections=10),
        ),
    ),
}


def recipe_of(name: str, size: Size, tiles: Path, out: Path, machine: MachineConfig) -> Recipe:
    """A recipe of the paper as it is pretrained here, on the shards in `tiles`, into the run folder `out`.

    A few thousand tiles want the recipe's -small form. The paper's queue of 16,384 keys would hold each tile about
    four times, as a negative of itself (one of 4,096 keys nearly every other time, one of 1,024 hardly ever), and its
    key encoder, which forgets over 1,000 steps, would lag through a quarter of a run of 4,000; -small's forgets over
    100. Tissue has no up, so it takes all eight symmetries. Only its batch is brought back to the paper's 256, with a
    learning rate (0.03 at 256) and groups of batch norm (four a batch) that follow it.
    """
    recipe = small(PROVEN[name]())
    method, own = recipe.method, {"queue_length": size.queue_length, "norm_group": size.batch // 4}
    if isinstance(method, MoCoConfig):
        method = replace(method, **own)
    elif isinstance(method, ConCLConfig):
        method = replace(method, moco=replace(method.moco, **own))
    return replace(
        recipe,
        method=method,
        encoder=replace(recipe.encoder, backbone=size.backbone),
        views=replace(recipe.views, size=size.view_px),
        machine=replace(machine, keep=1, log_every=max(1, min(machine.log_every, size.steps // 20))),
        data=str(tiles),
        out=str(out),
        data_licence=f"GlaS: {FACTS.licence} EBHI-Seg: not stated. LC25000: cite arXiv:1912.12142.",
        steps=size.steps,
        batch=size.batch,
        precision=size.precision,
        seed=size.pretrain_seed,
    )


def stored_plan(out: Path) -> Plan | None:
    """The plan that the folder was begun with, if it was. Raises UserError where it is damaged."""
    path = out / "plan.json"
    if not path.exists():
        return None
    try:
        return pydantic.TypeAdapter(Plan).validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        raise UserError(f"{path} is damaged or of another version: choose another --out") from error


def keep_plan(plan: Plan, out: Path) -> None:
    """Store the plan, so that later pieces need not be told again.

    Recipes, seeds and splits may come and go. Raises UserError where the folder was begun with another size or other
    packs, for then its parts would not fit together.
    """
    before = stored_plan(out)
    if before == plan:
        return
    if before is not None:
        its = [f.name for f in fields(Size) if getattr(plan.size, f.name) != getattr(before.size, f.name)]
        changed = its + ["packs"] * (plan.packs != before.packs)
        if changed:
            raise UserError(f"{out} was begun with other {', '.join(changed)}: give the same, or another --out")
    text = json.dumps(asdict(plan), indent=2) + "\n"
    write_atomically(out / "plan.json", lambda file: file.write(text.encode()))
