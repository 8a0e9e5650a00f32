"""A fine-tuned model kept beside its result by `colocate evaluate --keep-models`, and rebuilt exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, final

import pydantic
from safetensors.torch import save
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.datasets.labelled import Labelled
from colocate.evaluate.candidates import Candidate
from colocate.evaluate.decoders import Detector, InstancesConfig, Segmenter, SemanticsConfig
from colocate.models.backbones import Backbone, read_tensors

VERSION = 2  # to be raised when the same files would give another model
WEIGHTS, FACTS = "model.safetensors", "model.json"
AGAIN = "evaluate again with --keep-models"
ALIKE = 1.05  # images of resolutions that differ by less have one
CONFIGS = {"instances": InstancesConfig, "semantics": SemanticsConfig}


@final
@dataclass(frozen=True)
class ModelFacts:
    """What model.json says: all that is needed to rebuild the model, and to know what it may look at."""

    version: int
    task: Literal["instances", "semantics"]
    settings: InstancesConfig | SemanticsConfig
    classes: tuple[str, ...]
    """Instances: the names of classes 1, 2, ...; semantics: of the classes 0, 1, ... of a pixel."""
    background: bool
    """Semantics: class 0 is what lies between labelled objects."""
    ignored: int | None
    """Semantics: the class that is never predicted."""
    architecture: str
    output_stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mpp: float | None
    """Micrometres per pixel of what the network sees; None if its images' is unknown, or is not one."""
    data: dict[str, str]
    """Name, fingerprint and licence of the data set."""
    versions: dict[str, str]


class SavedModel(NamedTuple):
    """A model in evaluation mode, on the CPU."""

    network: Detector | Segmenter
    facts: ModelFacts
    fingerprint: str
    """Hash of both files."""


def is_kept(folder: Path) -> bool:
    """Whether a result's folder holds its model."""
    return all((folder / name).is_file() for name in (WEIGHTS, FACTS))


def keep_model(
    folder: Path,
    config: InstancesConfig | SemanticsConfig,
    candidate: Candidate,
    data: Labelled,
    train: Sequence[int],
    model: Mapping[str, Tensor],
) -> None:
    """Write FOLDER/model.safetensors and FOLDER/model.json, each whole or not at all.

    train: numbers of the images that the model learned from; model: its state.
    """
    objects = isinstance(config, InstancesConfig)
    facts = ModelFacts(
        version=VERSION,
        task="instances" if objects else "semantics",
        settings=config,
        classes=data.classes if objects else data.pixel_names,
        background=data.kind == "instances",
        ignored=None if objects else data.ignored,
        architecture=candidate.architecture,
        output_stride=32,  # as `Candidate.build` gives it
        mean=candidate.mean,
        std=candidate.std,
        mpp=seen_mpp(config, data, train),
        data={"name": data.name, "fingerprint": data.fingerprint, "licence": data.licence},
        versions={name: version(name) for name in ("colocate", "torch", "torchvision", "timm")},
    )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.items()}
    write_atomically(folder / WEIGHTS, lambda file: file.write(save(tensors)))
    text = json.dumps(asdict(facts), indent=1) + "\n"
    write_atomically(folder / FACTS, lambda file: file.write(text.encode()))


def load_model(place: Path) -> SavedModel:
    """Rebuild the one kept model in a folder or below it: it predicts what it predicted when it was kept.

    Raises:
        UserError: there is none or more than one; a file is missing or damaged, or of another version; a tensor is
            missing, unknown or of another shape.
    """
    folder = _find(place)
    facts, weights = _read(folder / FACTS), folder / WEIGHTS
    backbone = Backbone(facts.architecture, facts.output_stride)
    if isinstance(facts.settings, InstancesConfig):
        network = Detector(facts.settings, backbone, len(facts.classes), facts.mean, facts.std)
    else:
        network = Segmenter(facts.settings, backbone, len(facts.classes), facts.ignored, facts.mean, facts.std)
    _fill(network, read_tensors(weights), weights)
    digest = blake2b(weights.read_bytes() + (folder / FACTS).read_bytes(), digest_size=16)
    return SavedModel(network.eval(), facts, digest.hexdigest())


def seen_mpp(config: InstancesConfig | SemanticsConfig, data: Labelled, numbers: Sequence[int]) -> float | None:
    """Micrometres per pixel at which a network sees images: the median, for a detector as it resizes them in tests.

    None if the resolution of an image is unknown, or they have not all the same.
    """
    items = [data.items[number] for number in numbers]
    own = [item.mpp for item in items]
    if any(math.isnan(mpp) for mpp in own) or max(own) > ALIKE * min(own):
        return None
    return round(median(item.mpp / _enlarged(config, item.height, item.width) for item in items), 4)


def _enlarged(config: InstancesConfig | SemanticsConfig, height: int, width: int) -> float:
    """How many times larger a network makes a test image."""
    if isinstance(config, SemanticsConfig):
        return 1.0
    return min(config.test_short_side / min(height, width), config.long_side / max(height, width))


def _find(place: Path) -> Path:
    """The folder of the one model."""
    found = sorted(path.parent for path in place.rglob(WEIGHTS))
    if place in found:
        return place
    if len(found) > 1:
        raise UserError(f"{place} holds {len(found)} models, give one of them: {', '.join(map(str, found))}")
    if found:
        return found[0]
    if (place / "backbone.safetensors").exists():
        raise UserError(f"{place} is a backbone: fine-tune it first (colocate evaluate ... --keep-models)")
    raise UserError(f"{place} holds no model that was kept: {AGAIN}")


def _fill(network: Detector | Segmenter, tensors: dict[str, Tensor], origin: Path) -> None:
    own = network.state_dict()
    wrong = {
        "missing": own.keys() - tensors.keys(),
        "unknown": tensors.keys() - own.keys(),
        "of another shape": {name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape},
    }
    if any(wrong.values()):
        words = "; ".join(f"{len(names)} {how}, such as {min(names)}" for how, names in wrong.items() if names)
        raise UserError(f"{origin} does not fit its {FACTS} (tensors: {words}): {AGAIN}")
    network.load_state_dict(tensors)


def _read(path: Path) -> ModelFacts:
    try:
        plain: Any = json.loads(path.read_text())
        if plain["version"] != VERSION:
            raise UserError(f"{path} was written by another version of colocate: {AGAIN}")
        adapter = pydantic.TypeAdapter(CONFIGS[plain["task"]])
        settings = adapter.validate_python(plain["settings"], extra="forbid")
        return _FACTS.validate_python(plain | {"settings": settings}, extra="forbid")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {AGAIN}") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} does not describe a model ({where}: {first['msg']}): {AGAIN}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not describe a model ({error!r}): {AGAIN}") from error


_FACTS = pydantic.TypeAdapter(ModelFacts)
