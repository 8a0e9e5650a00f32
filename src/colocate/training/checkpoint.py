"""Checkpoints, the exported backbone, and its weights for other libraries; each file whole or not there."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from io import SEEK_END, BufferedWriter
from mmap import ACCESS_READ, mmap
from os import PathLike
from pathlib import Path
from typing import Any, get_args
from zipfile import ZipFile

import numpy as np
import timm
import torch
from safetensors.torch import save
from torch import Tensor
from torchvision.models import get_model

from colocate.base.errors import UserError
from colocate.base.files import write_atomically
from colocate.base.text import grid, say
from colocate.data.index import Index
from colocate.models.backbones import Backbone, load_backbone
from colocate.slides.settings import same_mpp
from colocate.training.recipe import Library, Recipe, to_json

SUM, SUM_BYTES = b"sha256:", 64  # after the archive, which its readers do not mind


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of a step and drop all but the last `keep`."""
    path = folder / f"step{step:09d}.pt"

    def write(file: BufferedWriter) -> None:
        torch.save(state, file)
        size = file.tell()
        file.flush()
        file.write(SUM + _sum(Path(str(file.name)), size))

    write_atomically(path, write)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(folder.glob("step*.pt"))


def load_checkpoint(path: Path, holding: str = "method") -> dict[str, Any]:
    """A checkpoint's state, on the CPU; only tensors and plain values are unpickled.

    `holding` is the part that tells a pretraining's checkpoint ("method") from a fine-tuning's ("model").

    Raises UserError: cut short, damaged, or not a checkpoint.
    """
    try:
        damaged = _damage(path)
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, its codecs, pickle and torch raise each their own
        raise UserError(f"{path} is cut short or not a checkpoint: delete it to go on from the one before") from error
    if damaged:
        raise UserError(f"{path} is damaged ({damaged}): delete it to go on from the one before")
    if not isinstance(state, dict) or not {"step", "recipe", holding, "optimizer"} <= state.keys():
        raise UserError(f"{path} is not a checkpoint of a colocate run")
    return state


def _damage(path: Path) -> str | None:
    """What is wrong in a checkpoint, if anything: torch looks at no sums itself."""
    with path.open("rb") as file:
        size = file.seek(0, SEEK_END) - len(SUM) - SUM_BYTES
        file.seek(max(0, size))
        end = file.read()
    if end.startswith(SUM):
        return None if end == SUM + _sum(path, size) else "its sum differs"
    with ZipFile(path) as zipped:  # of an earlier version: only what lies in the archive has sums
        return zipped.testzip()


def _sum(path: Path, size: int) -> bytes:
    """SHA-256 of a file's first bytes."""
    with path.open("rb") as file, mmap(file.fileno(), size, access=ACCESS_READ) as content:
        return sha256(content).hexdigest().encode()


def backbone_facts(recipe: Recipe, step: int, index: Index) -> dict[str, Any]:
    """What backbone.json tells of a run's backbone, but for its architecture."""
    return {
        "mean": recipe.views.mean,
        "std": recipe.views.std,
        "mpp": recipe.views.mpp or _common_mpp(index),
        "recipe": json.loads(to_json(recipe)),
        "steps": step,
        "data": {"fingerprint": index.fingerprint, "tiles": len(index), "licence": recipe.data_licence},
        "versions": {name: version(name) for name in ("colocate", "timm", "torch")},
    }


def _common_mpp(index: Index) -> float | None:
    """The tiles' median resolution; None where one does not say its own, or they have not all the same."""
    known = index.mpp  # not quite one of slides of several scanners: a level within 1 % is cut as it is
    return float(np.median(known)) if same_mpp((float(known.min()), float(known.max()))) else None


def write_backbone(run: Path, backbone: Backbone, facts: dict[str, Any]) -> None:
    """Write RUN/backbone.safetensors (timm's names) and RUN/backbone.json, each whole or not at all."""
    architecture = {
        "architecture": backbone.name,
        "library": "timm",
        "output_stride": backbone.output_stride,
        "cell_stride": backbone.cell_stride,
        "grid_stride": backbone.stride,
        "channels": backbone.channels,
    }
    weights = packed(backbone.net.state_dict())
    write_atomically(run / "backbone.safetensors", weights)
    text = json.dumps(architecture | facts | {"sha256": sha256(weights).hexdigest()}, indent=2) + "\n"
    write_atomically(run / "backbone.json", text)


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a safetensors file, which holds none that share memory: of a network with tied weights each a copy."""
    return save({name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()})


def export(run: str | PathLike[str], library: Library, out: str | Path) -> Path:
    """Write a run's backbone for another library, in that library's own names and file format.

    timm: .safetensors or .pth for `timm.create_model(..., checkpoint_path=)`. torchvision: the same for
    `model.load_state_dict(..., strict=False)` (all but the classifier); ResNets and ConvNeXts that it has. detectron2:
    a .pkl for `MODEL.WEIGHTS`; plain ResNets, of a depth that it has. huggingface: a folder for
    `timm.create_model("local-dir:OUT", pretrained=True)`, or to be uploaded: weights, config.json and a model card.

    Raises UserError: no such library, it has no such network, or `out` has another ending than the library reads.
    """
    if library not in get_args(Library):
        raise UserError(f"there is no export for {library!r}: there are {', '.join(get_args(Library))}")
    backbone, out = load_backbone(run), Path(out)
    if note := _untrained(backbone):
        say(f"note: {note}")
    if library == "huggingface":
        return _export_folder(backbone, out)
    if "output_stride" in backbone.arguments:
        say(f"note: the last stages were dilated to a stride of {backbone.output_stride}: {library} must build them so")
    endings = (".pkl",) if library == "detectron2" else (".safetensors", ".pth")
    if out.suffix not in endings:
        raise UserError(f"{out}: for {library} the file must end in {' or '.join(endings)}")
    net = _whole(backbone)[0] if library == "timm" else backbone.net
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    if library != "timm":
        tensors = _RENAME[library](tensors, backbone.name)
    if library == "detectron2":
        arrays = {name: t.numpy() for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
        content = {"model": arrays, "__author__": "colocate", "matching_heuristics": True}
        write_atomically(out, lambda file: pickle.dump(content, file))
    elif out.suffix == ".pth":
        write_atomically(out, lambda file: torch.save(tensors, file))
    else:
        write_atomically(out, packed(tensors))
    return out


def _whole(backbone: Backbone) -> tuple[Any, str | None]:
    """The network as timm builds it, without a classifier, and a sentence where it has more than the backbone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of two exports of a run every byte is the same
        whole = timm.create_model(backbone.name, num_classes=0, **_arguments(backbone))
    more = whole.load_state_dict(backbone.net.state_dict(), strict=False).missing_keys
    if not more:
        return whole, None
    parts = dict.fromkeys(".".join(name.split(".")[:-1][:2]) for name in more)
    note = f"what timm has after the cells ({', '.join(parts)}) is not trained: its weights are random"
    say(f"note: {note}")
    return whole, note


def _arguments(backbone: Backbone) -> dict[str, Any]:
    """What timm must be told to build the network so again."""
    if not getattr(backbone.net, "dynamic_img_size", False):
        return backbone.arguments
    # timm lays out the embedding of places for this size, and resamples it for others.
    patches: Any = backbone.net.patch_embed
    return backbone.arguments | {"dynamic_img_size": True, "img_size": patches.img_size[0]}


def _export_folder(backbone: Backbone, out: Path) -> Path:
    """Write config.json, model.safetensors and README.md as Hugging Face's hub keeps networks of timm."""
    if out.suffix in (".safetensors", ".pth", ".pkl") or out.is_file():
        raise UserError(f"{out}: for huggingface give a folder, not a file")
    if ":" in backbone.name:
        raise UserError(f"{backbone.name} is not one of timm's own networks, which its hub builds by name")
    whole, note = _whole(backbone)
    facts = backbone.facts
    size = facts.get("recipe", {}).get("views", {}).get("size", 224)
    architecture, _, tag = backbone.name.partition(".")
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": whole.num_features,
        "model_args": _arguments(backbone),
        "pretrained_cfg": {
            "tag": tag or "colocate",
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": facts["mean"],
            "std": facts["std"],
            "num_classes": 0,
        },
    }
    write_atomically(out / "model.safetensors", packed(whole.state_dict()))
    write_atomically(out / "config.json", json.dumps(config, indent=2) + "\n")
    write_atomically(out / "README.md", _card(backbone, size, note))
    return out


LICENCES = ("apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "mit")


def _card(backbone: Backbone, size: int, more: str | None) -> str:
    """The model card: what Hugging Face reads (between the dashes), what the weights are, how they are used.

    `more`: a sentence on what the network has that the backbone has not.
    """
    facts = backbone.facts
    data, recipe = facts.get("data", {}), facts.get("recipe", {})
    said = str(data.get("licence", "not stated"))
    licence = said.lower().replace(" ", "-")
    named = [f"license: {licence}"] if licence in LICENCES else ["license: other", f"license_name: {json.dumps(said)}"]
    mpp, notes = facts.get("mpp"), [note for note in (_untrained(backbone), more) if note]
    # Cells as a grid: `forward_features` of some networks goes on to layers that were not trained.
    indices = f"indices=[{backbone.place(backbone.stride)}]"
    rows = {
        "network": f"{backbone.name}, {backbone.channels} channels, {backbone.stride} px a cell",
        "recipe": f"{recipe.get('name') or 'of the user'}, {facts.get('steps', '?')} steps",
        "tiles": f"{data.get('tiles', '?')}, licence: {said}",
        "resolution": f"{mpp:g} micrometres per pixel" if mpp else "not stated",
        "views": f"{size} px, normalised by mean {facts['mean']} and std {facts['std']} (RGB in 0-1)",
        "made with": ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items()) or "colocate",
    }
    return "\n".join(
        [
            "---",
            "library_name: timm",
            *named,
            "pipeline_tag: image-feature-extraction",
            "tags: [timm, colocate, histopathology, self-supervised-learning, image-feature-extraction]",
            "---",
            "",
            f"# {backbone.name}, pretrained on histology by colocate",
            "",
            "Self-supervised, for dense prediction: nothing but a backbone, without a classifier.",
            "",
            grid([["", "what it is"], *([name, words] for name, words in rows.items())], left=2),
            "",
            "```python",
            "import timm",
            "",
            'backbone = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or hf-hub:OWNER/NAME',
            f"cells = backbone.forward_intermediates(images, {indices}, norm=True, intermediates_only=True)[0]",
            "```",
            *(line for note in notes for line in ("", f"{note[0].upper()}{note[1:]}.")),
            "",
        ]
    )


def _untrained(backbone: Backbone) -> str | None:
    """A sentence where a run took its cells from an earlier stage than the last."""
    if backbone.cell_stride in (None, backbone.strides[-1]):
        return None
    return f"stages after the one of stride {backbone.cell_stride} were not trained: they have their first weights"


def _torchvision(tensors: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """The tensors as torchvision's own network of that name has them."""
    refusal = UserError(f"torchvision has no {architecture} with these weights: export it for timm")
    if not re.match("(wide_)?resne[tx]|convnext", architecture):
        raise refusal
    try:
        with torch.device("meta"):
            theirs = get_model(architecture.partition(".")[0], weights=None).state_dict()
    except ValueError:
        raise refusal from None
    if architecture.startswith("convnext"):
        tensors = {_convnext(name): tensor for name, tensor in tensors.items()}
        tensors = {name: t[:, None, None] if name.endswith("layer_scale") else t for name, t in tensors.items()}
    features = {name: t.shape for name, t in theirs.items() if not name.startswith(("fc.", "classifier."))}
    if {name: t.shape for name, t in tensors.items()} != features:
        raise refusal
    return tensors


def _convnext(name: str) -> str:
    name = name.replace("stem.", "features.0.")
    name = re.sub(r"stages\.(\d)\.downsample", lambda found: f"features.{2 * int(found[1])}", name)
    name = re.sub(r"stages\.(\d)\.blocks", lambda found: f"features.{2 * int(found[1]) + 1}", name)
    parts = {
        "conv_dw": "block.0",
        "norm": "block.2",
        "mlp.fc1": "block.3",
        "mlp.fc2": "block.5",
        "gamma": "layer_scale",
    }
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    return name


def _detectron2(tensors: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """The tensors in detectron2's names."""
    known = r"resnet(18|34|50|101|152)|resnext(50|101|152)_\d+x\d+d|wide_resnet(50|101)_2"
    if not re.fullmatch(known, architecture.partition(".")[0]):
        raise UserError(f"detectron2's backbones are plain ResNets, not {architecture}: export it for timm")
    return {_resnet(name): tensor for name, tensor in tensors.items()}


def _resnet(name: str) -> str:
    name = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
    name = name if name.startswith("res") else f"stem.{name}"
    name = re.sub(r"downsample\.0", "shortcut", name)
    name = re.sub(r"downsample\.1", "shortcut.norm", name)
    return re.sub(r"bn(\d)", r"conv\1.norm", name)


_RENAME = {"torchvision": _torchvision, "detectron2": _detectron2}
