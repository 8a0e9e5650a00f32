"""Exported backbones: that they come back whole, and that the other library computes the same with them."""

from __future__ import annotations

import inspect
import json
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import yaml
from safetensors.torch import load_file, save_file

from colocate import load_backbone
from colocate.base.errors import UserError
from colocate.data.index import Index
from colocate.models.backbones import Backbone
from colocate.training.checkpoint import backbone_facts, export, write_backbone
from colocate.training.loop import pretrain
from tests.tiny import tiny_recipe, write_tiles

FACTS = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


def written(folder: Path, name: str, output_stride: int = 32) -> Backbone:
    """A backbone with weights of its own (timm starts residual branches at zero), written as a run writes it."""
    torch.manual_seed(0)
    backbone = Backbone(name, output_stride).eval()
    for tensor in backbone.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.01, 0.06)
    write_backbone(folder, backbone, FACTS)
    return backbone


def test_a_run_leaves_a_backbone_that_says_what_it_is(tmp_path: Path) -> None:
    recipe = tiny_recipe(write_tiles(tmp_path / "tiles"), tmp_path / "run", steps=2, tile_mpp=0.5)
    pretrain(replace(recipe, data_licence="CC-BY-4.0"))
    backbone = load_backbone(tmp_path / "run")
    assert not backbone.training
    facts = json.loads((tmp_path / "run" / "backbone.json").read_text())
    assert facts == backbone.facts
    assert facts["architecture"] == "test_resnet" and facts["library"] == "timm" and facts["grid_stride"] == 32
    assert facts["mpp"] == 0.5 and facts["steps"] == 2 and facts["mean"] == [0.485, 0.456, 0.406]
    assert facts["data"]["licence"] == "CC-BY-4.0" and facts["data"]["tiles"] == 20 and facts["data"]["fingerprint"]
    assert facts["recipe"]["optim"]["lr"] == 0.03 and {"colocate", "timm", "torch"} <= facts["versions"].keys()


@pytest.mark.parametrize(("mpps", "mpp"), [("0.5 0.5 0.503", 0.5), ("0.5 0.5 1", None), ("0.5 0.5 ", None)])
def test_a_backbone_has_the_resolution_of_tiles_that_are_alike(mpps: str, mpp: float | None, tmp_path: Path) -> None:
    """`colocate tile` takes a level within 1 % as it is: of slides of two scanners tiles differ a little."""
    tiles = write_tiles(tmp_path / "tiles", 3)
    lines = [f"{path},{its}" for path, its in zip(sorted(tiles.iterdir()), mpps.split(" "), strict=True)]
    (tmp_path / "tiles.csv").write_text("\n".join(["path,mpp", *lines, ""]))
    index = Index.build(tmp_path / "tiles.csv", tmp_path / "tiles.arrow")
    assert backbone_facts(tiny_recipe(tiles, tmp_path), 1, index)["mpp"] == mpp


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("resnet18", 16),
        ("coat_lite_tiny", 32),  # whose layers share weights: a run ended where it saved them
    ],
)
def test_round_trip(tmp_path: Path, name: str, stride: int) -> None:
    backbone = written(tmp_path, name, stride)
    side = 224 if name.startswith("coat") else 64  # which takes no other size
    images = torch.randn(1, 3, side, side)
    again = load_backbone(tmp_path / "backbone.safetensors")
    assert torch.equal(again(images), backbone(images))


def test_anything_but_every_tensor_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "test_resnet")
    file = tmp_path / "backbone.safetensors"
    whole = load_file(file)
    name = next(iter(whole))
    save_file(whole | {name: whole[name] + 1}, file)
    with pytest.raises(UserError, match=r"not what backbone\.json was written with"):
        load_backbone(tmp_path)
    facts = json.loads((tmp_path / "backbone.json").read_text())
    (tmp_path / "backbone.json").write_text(json.dumps({key: fact for key, fact in facts.items() if key != "sha256"}))

    def refused(tensors: dict[str, torch.Tensor], message: str) -> None:
        save_file(tensors, file)
        with pytest.raises(UserError, match=message):
            load_backbone(tmp_path)

    rest = {key: tensor for key, tensor in whole.items() if key != name}
    refused(rest, f"1 of {len(whole)} tensors missing \\({name}\\)")
    refused(rest | {"renamed.weight": whole[name]}, r"does not have \(renamed\.weight\)")
    refused(rest | {name: whole[name][None]}, "1 of another shape")
    file.write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_backbone(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path.name} is meant"):
        load_backbone(tmp_path.parent)
    (tmp_path / "backbone.json").unlink()
    with pytest.raises(UserError, match=r"backbone\.json is missing\): give the folder of a run$"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("mean", [0.5, 0.5, math.nan]), ("std", [0.2, 0.2, 0]), ("mean", "abc"), ("output_stride", 0), ("mpp", -1)],
)
def test_facts_that_cannot_be_are_refused(tmp_path: Path, field: str, value: object) -> None:
    written(tmp_path, "test_resnet")
    file = tmp_path / "backbone.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(UserError, match=rf"backbone\.json \({field}.*\) is no backbone\.json of a colocate run"):
        load_backbone(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_torchvision_computes_the_same(tmp_path: Path, name: str) -> None:
    backbone = written(tmp_path, name)
    out = export(tmp_path, "torchvision", tmp_path / "out.safetensors")
    theirs = torchvision.models.get_model(name, weights=None).eval()
    missing, unexpected = theirs.load_state_dict(load_file(out), strict=False)
    assert not unexpected and all(key.startswith(("fc.", "classifier.")) for key in missing)
    images = torch.randn(1, 3, 64, 64)
    last = "features" if hasattr(theirs, "features") else "layer4"
    features = torchvision.models.feature_extraction.create_feature_extractor(theirs, {last: "grid"})(images)["grid"]
    torch.testing.assert_close(features, backbone(images), rtol=1e-4, atol=1e-4 * features.abs().max().item())


def test_timm_takes_it_as_a_checkpoint(tmp_path: Path) -> None:
    backbone = written(tmp_path, "resnet18")
    out = export(tmp_path, "timm", tmp_path / "out.safetensors")
    theirs = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(out)).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(theirs.forward_features(images), backbone(images))


@pytest.mark.slow
def test_detectron2_names(tmp_path: Path) -> None:
    written(tmp_path, "resnet50")
    with export(tmp_path, "detectron2", tmp_path / "out.pkl").open("rb") as file:
        content = pickle.load(file)
    names = content["model"]
    assert content["matching_heuristics"] is True
    # As detectron2's own R-50 names them (modeling/backbone/resnet.py).
    norm = ("weight", "bias", "running_mean", "running_var")
    expected = {"stem.conv1.weight"} | {f"stem.conv1.norm.{part}" for part in norm}
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for block in range(blocks):
            for conv in ("conv1", "conv2", "conv3", *(("shortcut",) if block == 0 else ())):
                place = f"res{stage}.{block}.{conv}"
                expected |= {f"{place}.weight"} | {f"{place}.norm.{part}" for part in norm}
    assert set(names) == expected
    weights = load_file(tmp_path / "backbone.safetensors")
    assert (names["res3.0.shortcut.norm.bias"] == weights["layer2.0.downsample.1.bias"].numpy()).all()


@pytest.mark.parametrize(
    ("library", "out", "message"),
    [
        ("torchvision", "out.pth", "torchvision has no test_vit"),
        ("detectron2", "out.pkl", "detectron2's backbones are plain ResNets"),
        ("timm", "out.pkl", r"must end in \.safetensors or \.pth"),
        ("huggingface", "backbone.pth", "give a folder"),
        ("keras", "out", "there is no export for 'keras': there are timm, torchvision"),
    ],
)
def test_what_a_library_does_not_have_is_said(tmp_path: Path, library: Any, out: str, message: str) -> None:
    written(tmp_path, "test_vit")
    with pytest.raises(UserError, match=message):
        inspect.unwrap(export)(tmp_path, library, tmp_path / out)  # without the tests' check of types


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seresnet18", "resnet10t", "resnet26d.bt_in1k", "resnet50_gn", "convnextv2_atto"])
def test_a_variant_that_a_library_does_not_have_is_refused(tmp_path: Path, name: str) -> None:
    written(tmp_path, name)
    with pytest.raises(UserError, match=f"torchvision has no {re.escape(name)} with these weights"):
        export(tmp_path, "torchvision", tmp_path / "out.pth")
    with pytest.raises(UserError, match=f"detectron2's backbones are .*, not {re.escape(name)}: export it for timm$"):
        export(tmp_path, "detectron2", tmp_path / "out.pkl")
    assert not list(tmp_path.glob("out.*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "resnext50_32x4d"])
def test_a_tag_or_groups_are_no_reason_to_refuse(tmp_path: Path, name: str) -> None:
    written(tmp_path, name)
    assert export(tmp_path, "torchvision", tmp_path / "out.pth").is_file()
    assert export(tmp_path, "detectron2", tmp_path / "out.pkl").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stride", "more"),
    [
        ("efficientnet_b0", 16, "conv_head, bn2"),  # a last convolution, which `forward_features` goes through
        ("mobilenetv3_small_100", 32, "conv_head"),
        ("convnext_atto", 16, "head.norm"),
        ("vit_tiny_patch16_224", 16, None),  # its own stride, which timm is told nothing of
        ("test_resnet", 16, None),
        ("resnet10t.c3_in1k", 32, None),
    ],
)
def test_cells_that_timm_gives_are_the_backbones(
    name: str, stride: int, more: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the words of the card, from the folder and from the file; of layers beyond the cells it is said so."""
    run = tmp_path / "run"
    backbone = written(run, name, stride)
    folder, file = (export(run, *to) for to in (("huggingface", tmp_path / "hf"), ("timm", tmp_path / "out.pth")))
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    card = (folder / "README.md").read_text()
    assert (f"after the cells ({more}) is not trained" in card) == (more is not None)
    assert capsys.readouterr().out.count(f"note: what timm has after the cells ({more})") == (2 if more else 0)
    code = card.partition("```python\n")[2].partition("```")[0].replace("local-dir:FOLDER", f"local-dir:{folder}")
    images = torch.randn(1, 3, 224, 224)
    cells = backbone(images)
    names: dict[str, Any] = {"images": images}
    exec(code, names)
    assert torch.equal(names["cells"], cells)
    config = timm.data.resolve_model_data_config(names["backbone"])
    assert tuple(config["mean"]) == FACTS["mean"] and tuple(config["std"]) == FACTS["std"]
    arguments = {} if stride == 32 or name.startswith("vit") else {"output_stride": stride}
    theirs: Any = timm.create_model(name, num_classes=0, checkpoint_path=str(file), **arguments).eval()
    grid = theirs.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
    assert torch.equal(grid, cells)
    again = Backbone(name, stride).eval()
    again.load_file(file)
    assert torch.equal(again(images), cells)
    twin = Backbone(f"local-dir:{folder}").eval()
    twin.load("published")
    assert torch.equal(twin(images), cells)
    assert export(run, "timm", tmp_path / "twice.pth").read_bytes() == file.read_bytes()


def test_hugging_face_rebuilds_a_vit_at_its_own_size(tmp_path: Path) -> None:
    backbone = written(tmp_path / "run", "vit_tiny_patch16_384")
    folder = export(tmp_path / "run", "huggingface", tmp_path / "folder")
    again: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    for size in (224, 112):
        images = torch.randn(1, 3, size, size)
        grid = again.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
        assert torch.equal(grid, backbone(images)), size


@pytest.mark.parametrize(
    ("licence", "said"),
    [("CC BY-NC 4.0", {"license": "cc-by-nc-4.0"}), ("ours: ask", {"license": "other", "license_name": "ours: ask"})],
)
def test_the_model_card_says_what_hugging_face_asks_for(tmp_path: Path, licence: str, said: dict[str, str]) -> None:
    written(tmp_path, "test_resnet")
    stored = json.loads((tmp_path / "backbone.json").read_text())
    facts = stored | {"mpp": 0.5, "steps": 7, "data": {"tiles": 20, "licence": licence}, "recipe": {"name": "plm"}}
    (tmp_path / "backbone.json").write_text(json.dumps(facts))
    card = (export(tmp_path, "huggingface", tmp_path / "folder") / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["library_name"] == "timm" and "colocate" in fields["tags"] and said.items() <= fields.items()
    assert all(words in body for words in ("plm, 7 steps", licence, "0.5 micrometres", "test_resnet"))


def test_the_card_of_cells_from_an_earlier_stage_gives_those_cells(tmp_path: Path) -> None:
    backbone = Backbone("resnet18", cell_stride=16).eval()
    write_backbone(tmp_path, backbone, FACTS)
    folder = export(str(tmp_path), "huggingface", str(tmp_path / "folder"))
    card = (folder / "README.md").read_text()
    assert "Stages after the one of stride 16 were not trained: they have their first weights." in card
    code = card.partition("```python\n")[2].partition("```")[0].replace("local-dir:FOLDER", f"local-dir:{folder}")
    names: dict[str, Any] = {"images": torch.randn(1, 3, 96, 96)}
    exec(code.replace("\ncells", "\nbackbone.eval()\ncells"), names)
    assert torch.equal(names["cells"], backbone(names["images"]))


def test_a_dilated_network_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, "resnet18", 16)
    export(tmp_path, "torchvision", tmp_path / "weights.pth")
    assert "dilated to a stride of 16: torchvision must build them so" in capsys.readouterr().out
