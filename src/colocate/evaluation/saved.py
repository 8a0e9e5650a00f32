"""Store a fine-tuned model beside its result (`colocate evaluate --keep-models`), and rebuild it exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple, final

import pydantic
from torch import Tensor

from colocate.base.errors import UserError
from colocate.base.files import read_json, write_atomically
from colocate.base.processes import first_defaults
from colocate.base.text import reason
from colocate.datasets.labelled import Labelled
from colocate.evaluation.candidates import Candidate
from colocate.evaluation.contours import ContourSegmenter
from colocate.evaluation.decoders import Detector, Segmenter
from colocate.evaluation.settings import ContoursConfig, InstancesConfig, SemanticsConfig
from colocate.models.backbones import Backbone, read_tensors
from colocate.slides.settings import same_mpp
from colocate.training.checkpoint import packed

VERSION = 2  # to be raised when the same files would give another model
WEIGHTS, FACTS = "model.safetensors", "model.json"
AGAIN = "evaluate again with --keep-models"


@final
@dataclass(frozen=True)
class ModelFacts:
    """The content of model.json: what rebuilds the model, and at which resolution it sees images."""

    version: int
    task: Literal["instances", "semantics"]
    settings: InstancesConfig | SemanticsConfig | ContoursConfig
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

    network: Detector | Segmenter | ContourSegmenter
    facts: ModelFacts
    fingerprint: str
    """Hash of model.safetensors and model.json."""


def is_kept(folder: Path) -> bool:
    """True if the folder of a result holds its model."""
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
    objects = isinstance(config, InstancesConfig | ContoursConfig)
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
    write_atomically(folder / WEIGHTS, packed(model))
    text = json.dumps(asdict(facts), indent=1) + "\n"
    write_atomically(folder / FACTS, text)


@first_defaults()
def load_model(place: Path) -> SavedModel:
    """Rebuild the one kept model in a folder or below it: it predicts what it predicted when it was kept.

    Raises UserError: there is none or more than one; a file is missing or damaged, or of another version; a tensor is
    missing, unknown or of another shape.
    """
    folder = _find(place)
    facts, weights = _read(folder / FACTS), folder / WEIGHTS
    backbone = Backbone(facts.architecture, facts.output_stride)
    known = backbone, len(facts.classes)
    match facts.settings:
        case InstancesConfig():
            network = Detector(facts.settings, *known, facts.mean, facts.std)
        case ContoursConfig():
            network = ContourSegmenter(facts.settings, *known, facts.mean, facts.std)
        case _:
            network = Segmenter(facts.settings, *known, facts.ignored, facts.mean, facts.std)
    try:
        network.load_state_dict(read_tensors(weights))
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit its {FACTS} ({reason(error)}): {AGAIN}") from error
    digest = blake2b(weights.read_bytes() + (folder / FACTS).read_bytes(), digest_size=16)
    return SavedModel(network.eval(), facts, digest.hexdigest())


def seen_mpp(config: InstancesConfig | SemanticsConfig, data: Labelled, numbers: Sequence[int]) -> float | None:
    """Micrometres per pixel at which a network sees images: the median, for a detector as it resizes them in tests.

    None if the resolution of an image is unknown, or they have not all the same.
    """
    items = [data.items[number] for number in numbers]
    own = [item.mpp for item in items]
    if not same_mpp(own):
        return None
    if isinstance(config, InstancesConfig):
        short, long = config.test_short_side, config.long_side
        sides = [sorted((item.height, item.width)) for item in items]
        own = [mpp / min(short / low, long / high) for mpp, (low, high) in zip(own, sides, strict=True)]
    return round(median(own), 4)


def _find(place: Path) -> Path:
    """The folder of the one model."""
    if not place.exists():
        raise UserError(f"{place} does not exist: give a result of colocate evaluate ... --keep-models")
    place = place.parent if place.name in (WEIGHTS, FACTS) else place
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


def _read(path: Path) -> ModelFacts:
    plain = read_json(path, "model.json of a kept model")
    try:
        if plain["version"] != VERSION:
            raise UserError(f"{path} was written by another version of colocate: {AGAIN}")
        return _FACTS.validate_python(plain, extra="forbid")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not describe a model ({reason(error)}): {AGAIN}") from error


_FACTS = pydantic.TypeAdapter(ModelFacts)
