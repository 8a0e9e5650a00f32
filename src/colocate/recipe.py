"""The typed description of a whole run: what `colocate pretrain` shows as options and a run folder keeps as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import tyro

from .errors import UserError
from .methods.moco import MoCoConfig
from .optim import OptimConfig
from .views import ViewConfig

Flat = tyro.conf.arg(name="")
Journals = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class EncoderConfig:
    """The network that learns."""

    backbone: str = "resnet18"
    """Any timm network with a feature grid: resnet18, resnet50, convnext_tiny, vit_small_patch16_224, ..."""
    output_stride: int = 32
    """Pixels a cell; 16 makes the last stage of a ResNet or ConvNeXt twice as fine."""
    init: str = "random"
    """random, published (the backbone's own weights, downloaded by timm) or a weights file."""


@dataclass(frozen=True)
class MachineConfig:
    """Where a run happens. Nothing here changes what is computed, so a resumed run may change it."""

    accelerator: str = "auto"
    """auto, cpu, gpu."""
    devices: int | None = None
    """Devices (on cpu: processes) per machine; None: all GPUs, or one process on cpu."""
    nodes: int = 1
    """Machines; start the same command on each with torchrun or srun."""
    workers: int | None = None
    """Processes per device that read and decode tiles; None: the cores at hand, at most 8."""
    log_every: int = 10
    """Steps between two rows of the journal."""
    save_every: int = 500
    """Steps between two checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    journals: tuple[Journals, ...] = ("tensorboard",)
    """Journals beside RUN/journal.csv; wandb and mlflow are extras (pip install 'colocate[wandb]')."""

    def __post_init__(self) -> None:
        if min(self.log_every, self.save_every, self.keep, self.nodes) < 1 or (self.workers or 0) < 0:
            raise UserError("log_every, save_every, keep and nodes must be 1 or more, workers 0 or more")


@dataclass(frozen=True)
class Recipe:
    """A complete description of a pretraining run."""

    method: MoCoConfig
    encoder: Annotated[EncoderConfig, Flat] = field(default_factory=EncoderConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    machine: Annotated[MachineConfig, Flat] = field(default_factory=MachineConfig)

    name: Annotated[str, tyro.conf.Suppress] = ""
    data: str = ""
    """Tiles: a folder, a list of paths (.txt), a table (.csv, .parquet), a tar shard or folder of shards, an index
    (.arrow)."""
    root: str | None = None
    """Folder that listed paths are relative to (default: the list's own)."""
    data_licence: str = "not stated"
    """Licence of the data, written beside the exported backbone."""
    tile_mpp: float | None = None
    """Micrometres per pixel of tiles that do not say."""
    max_skipped: float = 0.01
    """Largest share of tiles that may be unreadable before the run stops."""
    out: str = ""
    """The run folder."""
    epochs: int = 200
    """Times every tile is seen."""
    steps: int | None = None
    """Optimiser steps, in place of `epochs`."""
    batch: int = 256
    """Tiles a forward pass, over all devices."""
    accumulate: int = 1
    """Forward passes an optimiser step."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Arithmetic of the networks; losses and weights are float32 always."""
    seed: int = 0
    """Everything random follows from this."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps must be 1 or more, not {self.steps}")
        if not 0 <= self.max_skipped <= 1:
            raise UserError(f"max_skipped is a share between 0 and 1, not {self.max_skipped}")


_RECIPE = pydantic.TypeAdapter(Recipe)


def to_json(recipe: Recipe) -> str:
    """The recipe as readable JSON, every field written out."""
    return json.dumps(asdict(recipe), indent=2) + "\n"


def from_json(text: str, origin: str) -> Recipe:
    """A recipe from `to_json`'s text; `origin` names it in errors.

    Raises:
        UserError: not JSON, an unknown field, or a value of the wrong kind.
    """
    try:
        return _RECIPE.validate_json(text, extra="forbid")
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{origin}: {where}: {first['msg']} (fields are listed by `colocate pretrain --help`)"
        ) from error


def read_recipe(path: Path) -> Recipe:
    """The recipe in a JSON file.

    Raises:
        UserError: no such file, or see `from_json`.
    """
    try:
        return from_json(path.read_text(), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a recipe.json of a run") from error


FREE = {"machine", "data", "root", "out", "data_licence", "max_skipped", "name"}


def differences(recipe: Recipe, other: Recipe) -> list[str]:
    """What of two recipes differs and changes what is computed, one line each; data are compared elsewhere."""
    lines = []
    for part in fields(Recipe):
        mine, yours = getattr(recipe, part.name), getattr(other, part.name)
        if part.name in FREE or mine == yours:
            continue
        if not hasattr(mine, "__dataclass_fields__"):
            lines.append(f"{part.name} is {mine}, was {yours}")
            continue
        a, b = asdict(mine), asdict(yours)
        lines += [f"{part.name}.{key} is {a.get(key)}, was {b.get(key)}" for key in a if a.get(key) != b.get(key)]
    return lines
