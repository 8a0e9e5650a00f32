"""Every setting of a run, typed: the options of `colocate pretrain`, and recipe.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import tyro

from colocate.base.errors import UserError
from colocate.base.files import absolute
from colocate.base.plugins import load, name_of, sha256_of
from colocate.base.text import reason
from colocate.core.settings import ViewConfig
from colocate.methods.settings import (
    ConCLConfig,
    DistilConfig,
    MethodConfig,
    MoCoConfig,
    PrototypesConfig,
    Terms,
    VICRegLConfig,
)
from colocate.slides.settings import TilingConfig
from colocate.training.optim import OptimConfig

if TYPE_CHECKING:
    from colocate.methods.method import Method
    from colocate.models.backbones import Backbone

Flat = tyro.conf.arg(name="")
Journals = Literal["tensorboard", "wandb", "mlflow"]
Precision = Literal["32", "bf16-mixed", "16-mixed"]
Library = Literal["timm", "torchvision", "detectron2", "huggingface"]
"""What a backbone can be exported for."""


@dataclass(frozen=True)
class EncoderConfig:
    """The network that learns."""

    backbone: str = "resnet18"
    """Any timm network with a feature grid: resnet18, resnet50, convnext_tiny, vit_small_patch16_224, ..."""
    output_stride: int = 32
    """Pixels per cell; 16 makes the last stage of a ResNet or ConvNeXt twice as fine."""
    cell_stride: int | None = None
    """Take cells from the stage of this stride, as the network has it (16: the last but one of most); later stages keep
    their initial weights. None: from the last stage."""
    freeze_stride: int | None = None
    """Stages up to the one of this stride keep their initial weights; None: everything learns."""
    freeze_norm: bool = False
    """Batch norms use the statistics that came with --init, also during training."""
    drop_path: float = 0.0
    """Share of residual branches left out at random while training (stochastic depth)."""
    sync_norm: bool = False
    """Batch norm over the views of all devices, without groups (norm_group) or shuffling of keys. For vicregl: where
    keys wait in a queue (moco, plm, densecl), it lets a network tell which keys are from its own batch."""
    init: str = "random"
    """random, published (the backbone's own weights, downloaded by timm), a weights file or the folder of a run."""

    @property
    def first_weights(self) -> str:
        """What it starts from, in words."""
        return f"{self.init} weights" if self.init in ("random", "published") else f"the weights {self.init}"

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path is a share from 0 to below 1, not {self.drop_path}")


@dataclass(frozen=True)
class MachineConfig:
    """Where a run happens. A resumed run may change all of it; only the number of devices that share a batch can change
    what is computed (batch norm takes each device's own statistics)."""

    accelerator: str = "auto"
    """auto, cpu, gpu."""
    devices: int | None = None
    """Devices (on cpu: processes) per machine; None: all GPUs, or one process on cpu."""
    nodes: int = 1
    """Machines; start the same command on each with torchrun or srun."""
    workers: int | None = None
    """Processes per device that read and decode tiles; None: one per available core, at most 8."""
    log_every: int = 10
    """Steps between two rows of the journal."""
    save_every: int = 500
    """Steps between two checkpoints."""
    keep: int = 2
    """Number of checkpoints kept."""
    journals: tuple[Journals, ...] = ("tensorboard",)
    """Journals in addition to RUN/journal.csv; wandb and mlflow are extras (pip install 'colocate[wandb]')."""

    def __post_init__(self) -> None:
        devices = 1 if self.devices is None else self.devices
        if min(self.log_every, self.save_every, self.keep, self.nodes, devices) < 1 or (self.workers or 0) < 0:
            raise UserError("log_every, save_every, keep, nodes and devices must be 1 or more, workers 0 or more")


@dataclass(frozen=True)
class Recipe:
    """A complete description of a pretraining run."""

    method: MethodConfig
    encoder: Annotated[EncoderConfig, Flat] = field(default_factory=EncoderConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    machine: Annotated[MachineConfig, Flat] = field(default_factory=MachineConfig)
    tiling: TilingConfig = field(default_factory=TilingConfig)
    """How slides are cut, if `data` names slides, not tiles."""

    name: Annotated[str, tyro.conf.Suppress] = ""
    data: str = ""
    """Tiles: a folder, a list of paths (.txt), a table (.csv, .parquet), a tar shard or folder of shards, what
    `colocate tile` wrote (its folder or manifest), an index (.arrow). Or slides: one, a folder or a table of them."""
    root: str | None = None
    """Folder that listed paths are relative to; None: the list's own."""
    hold_out: tuple[str, ...] = ()
    """Tiles left out of training, by a column of the table or manifest: COLUMN=VALUE[,VALUE...], one or more."""
    data_licence: str = "not stated"
    """Licence of the data, written beside the exported backbone."""
    balance: Literal["tiles", "sources"] = "tiles"
    """Draw every tile equally often, or every source (slide, or patient if the table states it): the tiles of a small
    source then come more often."""
    tile_mpp: float | None = None
    """Micrometres per pixel of tiles or slides that do not state it."""
    max_skipped: float = 0.01
    """Largest share of tiles that may be unreadable before the run stops."""
    out: str = ""
    """The run folder."""
    epochs: int = 200
    """How many times each tile is seen; in each epoch, tiles that do not fill a batch are dropped."""
    steps: int | None = None
    """Optimiser steps, in place of `epochs`."""
    batch: int = 256
    """Tiles per forward pass, over all devices."""
    accumulate: int = 1
    """Forward passes per optimiser step."""
    precision: Precision = "32"
    """Arithmetic of the networks; losses and weights are always float32 (on a GPU with TF32 products)."""
    compile: bool = False
    """Compile the encoders: takes a minute, may be faster on a GPU, is not on a CPU. Rounding differs slightly."""
    probe: str = ""
    """A labelled data set (`colocate prepare`) on which the backbone is probed at intervals; RUN/best keeps the one
    that scored best on its training images."""
    probe_every: float = 10
    """Epochs between two probes."""
    seed: int = 0
    """Seed of all random choices."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be 1 or more, not {value}")
        if not self.probe_every > 0:
            raise UserError(f"probe_every must be positive, not {self.probe_every}")
        if not -(2**63) <= self.seed < 2**63:
            raise UserError(f"seed {self.seed} does not fit in 64 bits")
        if not 0 <= self.max_skipped <= 1:
            raise UserError(f"max_skipped is a share between 0 and 1, not {self.max_skipped}")


# Methods that come with colocate, as a stored recipe calls them; others are stored by file or module.
METHODS: dict[str, type[MethodConfig]] = {
    "moco": MoCoConfig,
    "vicregl": VICRegLConfig,
    "concl": ConCLConfig,
    "prototypes": PrototypesConfig,
    "distil": DistilConfig,
}
RETIRED = ("cache", "cache_gb")
"""Fields of `machine` until 0.1; stored recipes that have them are read without."""
_RECIPE = pydantic.TypeAdapter(Recipe)


@dataclass(frozen=True)
class StoredMethod(MethodConfig):
    """A method from outside colocate as a stored recipe tells of it: its code is not loaded, so it cannot be built."""

    kind: str
    fields: dict[str, Any]

    @property
    def terms(self) -> Terms:
        return Terms(self.kind, "", "")

    def build(self, backbone: Backbone, forwards_per_step: int = 1) -> Method:
        raise UserError(f"{self.kind} is code that the recipe only names: look at it, then add --trust to run it")


def to_json(recipe: Recipe) -> str:
    """The recipe as readable JSON, every field written out.

    Raises:
        UserError: a method that does not come back from it as it was (the user's own, or one with a rule of their own).
    """
    method = type(recipe.method)
    try:
        text = json.dumps(_plain(recipe), indent=2) + "\n"
        same = from_json(text, method.__name__, trust=True).method == recipe.method
    except TypeError as error:
        raise UserError(f"{method.__name__} cannot be stored as JSON: {error}") from error
    if not same:
        raise UserError(
            f"{method.__name__} does not come back from JSON as it was: do its fields have types, and its matching "
            "rules a `rule` field that tells them apart?"
        )
    return text


def _plain(recipe: Recipe) -> dict[str, Any]:
    plain, method = asdict(recipe), recipe.method
    kinds = [kind for kind, known in METHODS.items() if known is type(method)]
    if isinstance(method, StoredMethod):
        stored = {"kind": method.kind, **method.fields}
    elif kinds:
        stored = {"kind": kinds[0], **plain["method"]}
    else:
        stored = {"kind": name_of(type(method)), "sha256": sha256_of(type(method)), **plain["method"]}
    return plain | {"method": stored}


def from_json(text: str | bytes, origin: str, trust: bool = False) -> Recipe:
    """A recipe from `to_json`'s text; `origin` names it in errors.

    A method from outside colocate comes back as a `StoredMethod`: its code is loaded only with `trust`, and only if it
    is what it was when the recipe was stored.

    Raises:
        UserError: not JSON, an unknown field, a value of the wrong kind, or a method of the user's own that has gone
            or changed.
    """
    try:
        plain = json.loads(text)
        kind = str(plain["method"].pop("kind"))
        for field in RETIRED:
            plain.get("machine", {}).pop(field, None)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{origin} is no JSON of a recipe ({error}): give the recipe.json of a run") from error
    method: MethodConfig
    try:
        if kind not in METHODS and not trust:
            method = StoredMethod(kind, plain["method"])
        else:
            config = METHODS.get(kind) or _config_outside(kind, plain["method"].pop("sha256", None), origin)
            method = pydantic.TypeAdapter(config).validate_python(plain["method"], extra="forbid")
        return _RECIPE.validate_python(plain | {"method": method}, extra="forbid")
    except pydantic.ValidationError as error:
        raise UserError(f"{origin}: {reason(error)} (fields are listed by `colocate pretrain --help`)") from error
    except (pydantic.errors.PydanticUserError, NameError) as error:
        raise UserError(f"{origin}: {kind} has a field that JSON cannot hold ({str(error).splitlines()[0]})") from error


def _config_outside(kind: str, known: str | None, origin: str) -> type[MethodConfig]:
    """The settings' class of a method of the user's own, from where its code lay when the recipe was stored."""
    try:
        config = load(kind)
    except UserError as error:
        raise UserError(
            f"{origin}: its method cannot be had: {error}; put it back, or give its new place under method.kind"
        ) from error
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        raise UserError(f"{origin}: {kind}, its method.kind, is not a MethodConfig")
    if known is not None and sha256_of(config) != known:
        raise UserError(
            f"{origin}: {kind} has changed since the recipe was stored: put back what it was, or take method.sha256 "
            "out of the recipe to run what it is now"
        )
    return config


def read_recipe(path: Path, trust: bool = False) -> Recipe:
    """The recipe in a JSON file; with `trust`, code that it names is run (see `from_json`).

    Raises:
        UserError: no such file, or see `from_json`.
    """
    try:
        return from_json(path.read_bytes(), str(path), trust)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the recipe.json of a run") from error


def placed(recipe: Recipe) -> Recipe:
    """The recipe with whole paths of the weights and the run that it learns from, for they are sought elsewhere too."""

    def whole(word: str) -> str:
        return word if word in ("random", "published") else str(absolute(Path(word).expanduser()))

    recipe = replace(recipe, encoder=replace(recipe.encoder, init=whole(recipe.encoder.init)))
    if not isinstance(method := recipe.method, DistilConfig):
        return recipe
    teacher = whole(method.teacher) if method.by_run else method.teacher
    return replace(recipe, method=replace(method, teacher=teacher, weights=whole(method.weights)))


FREE = {"machine", "data", "root", "out", "data_licence", "max_skipped", "name", "probe", "probe_every"}


def differences(recipe: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """The settings that differ and change what is computed: both values by field. Data are compared elsewhere."""
    mine, yours = (leaves({k: v for k, v in _plain(one).items() if k not in FREE}) for one in (recipe, other))
    both = {name: (mine.get(name), yours.get(name)) for name in dict.fromkeys([*mine, *yours])}
    if None in both.get("method.sha256", ()):  # of a recipe that was stored before hashes were
        del both["method.sha256"]
    return {name: (value, before) for name, (value, before) in both.items() if value != before}


def leaves(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Every value under its full name: {"a": {"b": 1}} is {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return found
