"""The typed description of a whole run: what `colocate pretrain` shows as options and a run folder keeps as JSON."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import sys
import traceback
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
import tyro
from timm.optim import create_optimizer_v2
from torch import nn

from colocate.base.errors import UserError
from colocate.core.views import ViewConfig
from colocate.data.loader import Balance
from colocate.methods.concl import ConCLConfig
from colocate.methods.distil import DistilConfig
from colocate.methods.method import MethodConfig
from colocate.methods.moco import MoCoConfig
from colocate.methods.prototypes import PrototypesConfig
from colocate.methods.vicregl import VICRegLConfig
from colocate.slides.one_slide import TilingConfig

_PREFIX = "colocate_outside_"


def load(name: str) -> Any:
    """What a file or an installed module holds under a name.

    Raises:
        UserError: no such file, module or name, or an error in the file or module itself.
    """
    place, _, what = name.rpartition(":")
    module = _from_file(Path(place).resolve()) if place.endswith(".py") else _installed(place, name)
    if not hasattr(module, what):
        close = get_close_matches(what, vars(module), 1)
        raise UserError(f"{place} holds no {what!r}" + (f": did you mean {close[0]}?" if close else ""))
    return getattr(module, what)


def call(name: str) -> Any:
    """What a function of the user's own returns.

    Raises:
        UserError: as `load`, or it is no function, or has an error inside.
    """
    made = load(name)
    if not callable(made):
        raise UserError(f"{name} is not a function")
    try:
        return made()
    except UserError:
        raise
    except Exception as error:
        raise _broken(name, error) from error


def name_of(thing: type) -> str:
    """The name that `load` finds a class under.

    Raises:
        UserError: nothing could find it, for it stands in no file (a notebook), or within a function or class.
    """
    name, place = thing.__qualname__, thing.__module__
    if place.startswith((_PREFIX, "__main__")):
        try:
            place = str(Path(inspect.getfile(thing)).resolve())
        except (OSError, TypeError):
            place = ""
    if "." in name or not place:
        raise UserError(f"{name} could not be found again: define it in a file, and not within a function or class")
    return f"{place}:{name}"


def _from_file(path: Path) -> Any:
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) and Path(str(main.__file__)).resolve() == path:
        return main  # a script that pretrains is not run a second time
    name = _PREFIX + blake2b(str(path).encode(), digest_size=8).hexdigest()
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file that could be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception):
            raise _broken(str(path), error) from error
        raise
    return module


def _installed(place: str, name: str) -> Any:
    unknown = UserError(f"no Python file or installed module {place or name!r}")
    if not all(part.isidentifier() for part in place.split(".")):
        raise unknown
    try:
        return importlib.import_module(place)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            raise unknown from error
        raise _broken(place, error) from error


def _broken(place: str, error: Exception) -> UserError:
    """What is wrong in the user's own code, and in which of its lines."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    where = f"{own[-1].filename}, line {own[-1].lineno}" if own else place
    return UserError(f"{where}: {type(error).__name__}: {error} (--debug shows where it came from)")


def _is_machinery(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<frozen ") or Path(filename).parent.name == "importlib"


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule: linear warm-up, then a cosine to zero."""

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    """SGD decays every weight, as the paper; AdamW and LARS leave biases and norms alone, as theirs do."""
    lr: float = 0.03
    """Learning rate at its peak."""
    scale_lr: bool = False
    """Read `lr` as that of a batch of 256 and scale it linearly to the batch of one optimiser step."""
    momentum: float = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: float = 1e-4
    """Weight decay."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from zero."""
    clip: float | None = None
    """Largest norm of the gradient; larger ones are scaled down."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1 or self.warmup_epochs < 0:
            raise UserError(
                "optim: lr must be positive, weight_decay and warmup_epochs not negative, momentum in [0, 1)"
            )
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"optim.clip must be positive, not {self.clip}")


def peak_lr(config: OptimConfig, batch: int) -> float:
    """The highest learning rate for optimiser steps of `batch` tiles."""
    return config.lr * batch / 256 if config.scale_lr else config.lr


def learning_rate(peak: float, step: int, steps: int, warmup_steps: float = 0) -> float:
    """The learning rate of a step (0 is the first) of `steps`: nothing to save, nothing to resume.

    >>> [round(learning_rate(1.0, step, 8, warmup_steps=2), 3) for step in range(8)]
    [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067]
    """
    if step < warmup_steps:
        return peak * min(1.0, (step + 1) / warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def build_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a module's parameters that take gradients."""
    return create_optimizer_v2(
        module,
        opt="momentum" if config.name == "sgd" else config.name,  # timm's plain "sgd" is Nesterov's
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        filter_bias_and_bn=config.name != "sgd",
    )


Flat = tyro.conf.arg(name="")
Journals = Literal["tensorboard", "wandb", "mlflow"]
Precision = Literal["32", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class EncoderConfig:
    """The network that learns."""

    backbone: str = "resnet18"
    """Any timm network with a feature grid: resnet18, resnet50, convnext_tiny, vit_small_patch16_224, ..."""
    output_stride: int = 32
    """Pixels a cell; 16 makes the last stage of a ResNet or ConvNeXt twice as fine."""
    cell_stride: int | None = None
    """Take cells from the stage of this stride, as the network has it (16: the last but one of most); later stages keep
    their first weights. None: from the last stage."""
    freeze_stride: int | None = None
    """Stages up to that of this stride keep their first weights; None: everything learns."""
    freeze_norm: bool = False
    """Batch norms normalise by the statistics that came with --init, also while training."""
    drop_path: float = 0.0
    """Share of residual branches left out at random while training (stochastic depth)."""
    sync_norm: bool = False
    """Batch norm over the views of all devices; groups (norm_group) and the shuffling of keys fall away. For vicregl:
    where keys wait in a queue (moco, plm, densecl) a network can tell by it which keys are of its own batch."""
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

    method: MethodConfig
    encoder: Annotated[EncoderConfig, Flat] = field(default_factory=EncoderConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    machine: Annotated[MachineConfig, Flat] = field(default_factory=MachineConfig)
    tiling: TilingConfig = field(default_factory=TilingConfig)
    """How slides are cut, where `data` names slides and not tiles."""

    name: Annotated[str, tyro.conf.Suppress] = ""
    data: str = ""
    """Tiles: a folder, a list of paths (.txt), a table (.csv, .parquet), a tar shard or folder of shards, what
    `colocate tile` wrote (its folder or manifest), an index (.arrow). Or slides: one, a folder or a table of them."""
    root: str | None = None
    """Folder that listed paths are relative to (default: the list's own)."""
    hold_out: tuple[str, ...] = ()
    """Tiles left out of training, by a column of the table or manifest: COLUMN=VALUE[,VALUE...], one or more."""
    data_licence: str = "not stated"
    """Licence of the data, written beside the exported backbone."""
    balance: Balance = "tiles"
    """Every tile equally often, or every source (slide, or patient where the table says): the tiles of a small one then
    come more often."""
    tile_mpp: float | None = None
    """Micrometres per pixel of tiles or slides that do not say."""
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
    precision: Precision = "32"
    """Arithmetic of the networks; losses and weights are float32 always (on a GPU with TF32 products)."""
    compile: bool = False
    """Compile the encoders: takes a minute, may gain on a GPU, gains nothing on a CPU. Rounding differs slightly."""
    probe: str = ""
    """A labelled data set (`colocate prepare`) to ask the backbone about now and then; RUN/best keeps the one that
    knew most of its training images."""
    probe_every: float = 10
    """Epochs between two such questions."""
    seed: int = 0
    """Everything random follows from this."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps must be 1 or more, not {self.steps}")
        if self.probe_every <= 0:
            raise UserError(f"probe_every must be positive, not {self.probe_every}")
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


def to_json(recipe: Recipe) -> str:
    """The recipe as readable JSON, every field written out.

    Raises:
        UserError: a method that does not come back from it as it was (the user's own, or one with a rule of their own).
    """
    method = type(recipe.method)
    try:
        text = json.dumps(_plain(recipe), indent=2) + "\n"
        same = from_json(text, method.__name__).method == recipe.method
    except TypeError as error:
        raise UserError(f"{method.__name__} cannot be stored as JSON: {error}") from error
    if not same:
        raise UserError(
            f"{method.__name__} does not come back from JSON as it was: do its fields have types, and its matching "
            "rules a `rule` field that tells them apart?"
        )
    return text


def _plain(recipe: Recipe) -> dict[str, Any]:
    method = type(recipe.method)
    kinds = [kind for kind, known in METHODS.items() if known is method]
    plain = asdict(recipe)
    return plain | {"method": {"kind": kinds[0] if kinds else name_of(method), **plain["method"]}}


def from_json(text: str, origin: str) -> Recipe:
    """A recipe from `to_json`'s text; `origin` names it in errors.

    Raises:
        UserError: not JSON, an unknown field, a value of the wrong kind, or a method of the user's own that has gone.
    """
    try:
        plain = json.loads(text)
        kind = str(plain["method"].pop("kind"))
        for field in RETIRED:
            plain.get("machine", {}).pop(field, None)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{origin} is not the JSON of a recipe: give a recipe.json of a run") from error
    config = METHODS[kind] if kind in METHODS else _config_outside(kind, origin)
    try:
        method: MethodConfig = pydantic.TypeAdapter(config).validate_python(plain["method"], extra="forbid")
        return _RECIPE.validate_python(plain | {"method": method}, extra="forbid")
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{origin}: {where}: {first['msg']} (fields are listed by `colocate pretrain --help`)"
        ) from error
    except (pydantic.errors.PydanticUserError, NameError) as error:
        raise UserError(f"{origin}: {kind} has a field that JSON cannot hold ({str(error).splitlines()[0]})") from error


def _config_outside(kind: str, origin: str) -> type[MethodConfig]:
    """The settings' class of a method of the user's own, from where its code lay when the recipe was stored."""
    try:
        config = load(kind)
    except UserError as error:
        raise UserError(
            f"{origin}: its method cannot be had: {error}; put it back, or give its new place under method.kind"
        ) from error
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        raise UserError(f"{origin}: {kind}, its method.kind, is not a MethodConfig")
    return config


def read_recipe(path: Path) -> Recipe:
    """The recipe in a JSON file.

    Raises:
        UserError: no such file, or see `from_json`.
    """
    try:
        return from_json(path.read_text(), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a recipe.json of a run") from error


FREE = {"machine", "data", "root", "out", "data_licence", "max_skipped", "name", "probe", "probe_every"}


def differences(recipe: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """The settings that differ and change what is computed: both values by field. Data are compared elsewhere."""
    mine, yours = (leaves({k: v for k, v in _plain(one).items() if k not in FREE}) for one in (recipe, other))
    both = {name: (mine.get(name), yours.get(name)) for name in dict.fromkeys([*mine, *yours])}
    return {name: (value, before) for name, (value, before) in both.items() if value != before}


def leaves(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Every value under its full name: {"a": {"b": 1}} is {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return found
