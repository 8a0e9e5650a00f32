"""Find, check and build the backbones that `--backbone` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import torch

from colocate.base.errors import UserError
from colocate.core.settings import IMAGENET_MEAN, IMAGENET_STD
from colocate.models.backbones import Backbone, is_exported, load_backbone

ANY = "resnet18"  # the architecture where nothing says another


@final
@dataclass(frozen=True)
class Candidate:
    """A backbone with its weights, not built yet."""

    label: str
    """Its name in tables."""
    architecture: str
    origin: str
    """A path, or what it is (random, imagenet)."""
    fingerprint: str
    """Hash of its weights; `random ARCHITECTURE` for random ones, which every seed draws anew."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    mpp: float | None = None
    """Micrometres per pixel of the tiles it was pretrained on, where known."""
    output_stride: int = 32
    """Of pretraining."""
    cell_stride: int | None = None
    """Of pretraining."""
    continued: bool = False
    """Pretraining began with published weights or a plain file's: stages that did not run have them still."""
    path: Path | None = None
    """The weights file, or the folder of the run."""
    steps: int | None = None
    recipe: str | None = None
    weights: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def build(self, seed: int, output_stride: int = 32, cell_stride: int | None = None) -> Backbone:
        """Build the backbone with its weights, in evaluation mode; random ones are drawn by the seed."""
        torch.manual_seed(seed)
        backbone = Backbone(self.architecture, output_stride, cell_stride=cell_stride)
        if self.weights:
            backbone.fill(self.weights, self.origin)
        return backbone.eval()


def find_candidate(
    word: str,
    architecture: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Candidate:
    """Find what a word names: a run's folder, its backbone.safetensors, another weights file, `imagenet` or `random`.

    `LABEL=WORD` sets the label. `architecture` is that of a plain weights file, of `imagenet` and of `random` (resnet18
    if not given); mean and std those that a plain file wants of its images (ImageNet's if not given).

    Raises UserError: nothing of the kind; a tensor missing, unknown, of another shape or not finite; another
    architecture or normalisation than the backbone was trained with; published weights that cannot be downloaded.
    """
    label, found, rest = word.partition("=")
    named = found and label and not Path(word).exists()  # as a run may be called lr=0.1
    label, word = (label, rest) if named else ("", word)
    if word in ("random", "imagenet"):
        backbone = Backbone(architecture or ANY)
        if word == "random":
            return Candidate(label or word, backbone.name, word, f"random {backbone.name}")
        backbone.load("published")
        look = backbone.published_look
        normalisation = _checked(look["mean"], look["std"], f"the published {backbone.name}")
        weights = backbone.net.state_dict()
        return Candidate(label or word, backbone.name, word, _fingerprint(weights), *normalisation, weights=weights)
    path = Path(word)
    if not path.exists():
        raise UserError(f"{word}: no such run or file (nor imagenet or random)")
    normalisation = _checked(mean or IMAGENET_MEAN, std or IMAGENET_STD, word)
    facts: dict[str, Any] = {}
    if is_exported(path):
        backbone = load_backbone(path)
        facts = backbone.facts
        trained = _checked(tuple(facts["mean"]), tuple(facts["std"]), str(path))
        if architecture not in (None, backbone.name):
            raise UserError(f"{path} is a {backbone.name}, not a {architecture}: leave --architecture out")
        if (mean or std) and trained != normalisation:
            raise UserError(
                f"{path} was trained on images normalised by mean {trained[0]} and std {trained[1]}, not by "
                f"{normalisation[0]} and {normalisation[1]}: leave --mean and --std out"
            )
        normalisation = trained
    else:
        backbone = Backbone(architecture or ANY)
        backbone.load_file(path)
    init = facts.get("recipe", {}).get("encoder", {}).get("init", "random")
    path = path.absolute()
    folder = path if path.is_dir() else path.parent if path.stem == "backbone" else path.with_suffix("")
    weights = {name: tensor.clone() for name, tensor in backbone.net.state_dict().items()}
    if bad := next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None):
        raise UserError(f"{path} holds weights that are not finite ({bad}): take those of another step")
    return Candidate(
        label or (f"{folder.parent.name}-best" if folder.name == "best" else folder.name),
        backbone.name,
        str(path),
        _fingerprint(weights),
        *normalisation,
        mpp=facts.get("mpp"),
        output_stride=backbone.output_stride,
        cell_stride=backbone.cell_stride,
        # Another run, or what is not there any more, may have left those stages at random weights.
        continued=init == "published" or (Path(init).is_file() and not is_exported(init)),
        path=path,
        steps=facts.get("steps"),
        recipe=facts.get("recipe", {}).get("name") or None,
        weights=weights,
    )


def find_candidates(
    words: Sequence[str],
    architecture: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> list[Candidate]:
    """Find several, each as `find_candidate`. Raises UserError also if there is none, or if two are called the same."""
    if not words:
        raise UserError("give --backbone RUN (or a weights file, imagenet, random; several to compare them)")
    candidates = [find_candidate(word, architecture, mean, std) for word in words]
    labels = [candidate.label for candidate in candidates]
    if len(set(labels)) < len(labels):
        raise UserError(f"two backbones are called the same ({', '.join(labels)}): give them labels, LABEL=RUN")
    return candidates


def _checked(
    mean: tuple[float, ...], std: tuple[float, ...], origin: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of images in [0, 1], three numbers each."""
    if len(mean) != 3 or len(std) != 3 or not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
        raise UserError(
            f"{origin}: mean {mean} and std {std} are no normalisation of images in [0, 1] "
            "(three numbers each, of 255 levels divided by 255)"
        )
    return mean, std


def _fingerprint(weights: dict[str, torch.Tensor]) -> str:
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + str(tensor.dtype).encode() + tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
