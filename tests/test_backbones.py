"""Every family of backbones gives a grid, trains, and refuses what does not fit."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath

from colocate.base.errors import UserError
from colocate.core.settings import ViewConfig
from colocate.core.views import sample_views
from colocate.models.backbones import Backbone
from colocate.training.loop import build_method
from colocate.training.recipe import EncoderConfig
from tests.tiny import tiny_recipe

FAMILIES = [
    ("resnet18", 16, 512, 16),
    ("resnet18", 32, 512, 32),
    ("resnet26", 16, 2048, 16),
    ("convnext_atto", 32, 320, 32),
    ("convnext_atto", 16, 320, 16),
    ("vit_tiny_patch16_224", 32, 192, 16),  # patches of 16 pixels, whatever is asked for
    ("test_efficientnet", 32, 64, 32),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "output_stride", "channels", "stride"), FAMILIES)
def test_every_parameter_of_every_family_learns(name: str, output_stride: int, channels: int, stride: int) -> None:
    recipe = tiny_recipe(Path(), Path(), encoder=EncoderConfig(name, output_stride))
    method = build_method(recipe)
    assert (method.backbone.channels, method.backbone.stride) == (channels, stride)
    tiles = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    losses = method(sample_views(tiles, ViewConfig(size=64)))
    assert losses.query.grid == (64 // stride, 64 // stride)
    losses.total().backward()
    assert [name for name, p in method.query.named_parameters() if p.grad is None] == []
    assert all(p.grad is None for p in method.key.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "output_stride", "message"),
    [
        ("resnet_18", 32, "timm has no network called 'resnet_18'; near it: .*resnet18"),
        ("resnet18", 12, "output_stride=12"),
        ("test_vit", 8, "stride of 16, not the 8"),
        ("levit_128s", 32, "has a stride of 56"),  # 3.5 cells of 64 px, rounded up
    ],
)
def test_a_backbone_that_cannot_be_is_named(name: str, output_stride: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Backbone(name, output_stride)


@pytest.mark.parametrize(
    ("name", "views", "message"),
    [
        ("test_vit", ViewConfig(size=100), r"views\.size 100 is no whole number of cells of 16 px: give 96"),
        ("resnet18", ViewConfig(size=100), r"views\.size 100 is no whole number of cells of 32 px: give 96"),
        ("convnext_atto", ViewConfig(size=120), r"views\.size 120 is no whole number of cells of 32 px: give 128"),
        ("test_convnext", ViewConfig(size=64, local_views=1, local_size=4), r"views\.local_size 4 is no whole number"),
    ],
)
def test_views_that_a_backbone_cannot_take_are_named(name: str, views: ViewConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_method(tiny_recipe(Path(), Path(), encoder=EncoderConfig(name), views=views))


def test_first_weights_come_from_the_seed_alone(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path)
    torch.manual_seed(7)
    first = build_method(recipe).state_dict()
    torch.manual_seed(8)
    again, other = build_method(recipe).state_dict(), build_method(replace(recipe, seed=1)).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["past_wholes.vectors"], other["past_wholes.vectors"])


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_init_from_a_file(tmp_path: Path, ending: str) -> None:
    donor = Backbone("test_resnet").net.state_dict() | {"fc.weight": torch.zeros(3)}  # a classifier does no harm
    file = tmp_path / f"weights.{ending}"
    save_file(donor, file) if ending == "safetensors" else torch.save({"state_dict": donor}, file)
    recipe = tiny_recipe(tmp_path, tmp_path, encoder=EncoderConfig("test_resnet", init=str(file)))
    for name, tensor in build_method(recipe).backbone.net.state_dict().items():
        assert torch.equal(tensor, donor[name])


@pytest.mark.parametrize("name", ["ghostnet_050", "rexnet_100"])
def test_weights_of_layers_after_the_cells_do_no_harm(name: str) -> None:
    """They are part of what timm publishes, in the same part of the network."""
    backbone, published = Backbone(name), timm.create_model(name, num_classes=0).state_dict()
    backbone.fill(published, "published")
    assert all(torch.equal(tensor, published[name]) for name, tensor in backbone.net.state_dict().items())
    with pytest.raises(UserError, match="1 tensors too many"):
        backbone.fill(published | {f"{next(iter(published))}.scale": torch.ones(1)}, "another variant")


def test_init_from_a_file_that_does_not_fit(tmp_path: Path) -> None:
    backbone = Backbone("test_resnet")
    tensors = backbone.net.state_dict()
    dropped = next(iter(tensors))
    save_file({name: t for name, t in tensors.items() if name != dropped}, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=f"1 of {len(tensors)} tensors missing \\({dropped}\\)"):
        backbone.load_file(tmp_path / "short.safetensors")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="not a readable weights file"):
        backbone.load_file(tmp_path / "text.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth holds no weights by name, but a list"):
        backbone.load_file(tmp_path / "list.pth")
    with pytest.raises(UserError, match="no such file of weights"):
        backbone.load_file(tmp_path / "nowhere.pth")


def test_published_weights_change_nothing_that_is_drawn_later(tmp_path: Path) -> None:
    """A run that goes on has no need of them, and must draw the same."""
    backbone = Backbone("test_resnet")
    save_file(backbone.net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "num_classes": 0}))
    backbone = Backbone(f"local-dir:{tmp_path}")
    torch.manual_seed(5)
    before = torch.rand(3)
    torch.manual_seed(5)
    backbone.load("published")
    assert torch.equal(torch.rand(3), before)


def test_published_weights_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    backbone = Backbone("test_resnet")
    monkeypatch.setattr("timm.create_model", offline)
    monkeypatch.setattr("colocate.models.backbones._hub_answers", lambda: True)
    with pytest.raises(UserError, match=r"could not be had .*give the file, or take random weights"):
        backbone.load("published")


def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    for name, value in (("ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_CACHE", str(tmp_path))):
        monkeypatch.setattr(constants, name, value)
    began = time.perf_counter()
    with pytest.raises(UserError, match=r"are not on this machine, and http://127.0.0.1:9 cannot be reached: download"):
        Backbone("test_resnet").load("published")
    assert time.perf_counter() - began < 20 and "etry" not in capfd.readouterr().err
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("name", "stride", "channels"), [("resnet18", 16, 256), ("convnext_atto", 8, 80), ("test_efficientnet", 16, 48)]
)
def test_cells_come_from_the_stage_of_a_stride(name: str, stride: int, channels: int) -> None:
    backbone = Backbone(name, cell_stride=stride).eval()
    images = torch.rand(2, 3, 96, 64)
    grid = backbone(images)
    assert grid.shape == (2, channels, 96 // stride, 64 // stride)
    assert (backbone.stride, backbone.channels) == (stride, channels)
    stages = dict(zip(backbone.strides, backbone.stages(images), strict=True))
    torch.testing.assert_close(grid, stages[stride])


@pytest.mark.parametrize(
    ("name", "stride", "strides"),
    [("resnet18", 16, [2, 4, 8, 16]), ("convnext_atto", 8, [4, 8]), ("efficientnet_b0", 32, [2, 4, 8, 16, 32])],
)
def test_stages_are_those_of_the_strides_that_they_are_listed_by(name: str, stride: int, strides: list[int]) -> None:
    """Also where dilated stages share a stride: the last of them counts, as for cells."""
    backbone = Backbone(name, stride).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        grids = backbone.stages(images)
        assert [*backbone.strides] == strides == [64 // grid.shape[2] for grid in grids]
        assert torch.equal(grids[-1], backbone(images))
        for grid, own in zip(grids[:-1], strides[:-1], strict=True):
            assert torch.equal(grid, backbone._grid(images, own))


def test_what_is_frozen_and_what_lies_beyond_the_cells_keeps_its_weights() -> None:
    """Two steps of training move the stages between `freeze_stride` and `cell_stride`, and no others."""
    config = EncoderConfig("resnet18", cell_stride=16, freeze_stride=4, freeze_norm=True)
    method = build_method(tiny_recipe(Path(), Path(), encoder=config))
    before = {name: tensor.clone() for name, tensor in method.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    for step in range(2):
        tiles = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
        method(sample_views(tiles, ViewConfig(size=64), epoch=step)).total().backward()
        optimizer.step()
    moved = {name for name, tensor in method.backbone.state_dict().items() if not torch.equal(tensor, before[name])}
    weights = {name for name, _ in method.backbone.named_parameters()}
    between = {name for name in weights if name.startswith(("net.layer2", "net.layer3"))}
    assert moved <= between and {name for name in between if "conv" in name} <= moved


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EncoderConfig("resnet18", cell_stride=12), "strides 2, 4, 8, 16, 32, none of 12"),
        (EncoderConfig("resnet18", cell_stride=16, freeze_stride=16), "no stage of stride 16 to be frozen"),
        (EncoderConfig("test_vit", freeze_stride=4), "before its cells are none"),
    ],
)
def test_stages_that_are_not_there_are_refused(config: EncoderConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_method(tiny_recipe(Path(), Path(), encoder=config))


def test_branches_are_left_out_only_where_it_is_asked_for() -> None:
    for asked in (0.0, 0.2):  # timm's own rate of a Swin is 0.1
        network = Backbone("swin_tiny_patch4_window7_224", drop_path=asked)
        rates = [part.drop_prob or 0 for part in network.modules() if isinstance(part, DropPath)]
        assert max(rates) == pytest.approx(asked)


def test_published_weights_want_their_own_normalisation() -> None:
    config = EncoderConfig("tf_efficientnet_lite0", init="published")
    with pytest.raises(UserError, match=r"tf_efficientnet_lite0 want --views\.mean 0\.5 0\.5 0\.5"):
        build_method(tiny_recipe(Path(), Path(), encoder=config))


def test_weights_of_a_run_want_its_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, half, before = tmp_path / "backbone.safetensors", (0.5, 0.5, 0.5), Backbone("test_resnet").net.state_dict()
    save_file(before, weights)
    facts = {"architecture": "test_resnet", "output_stride": 32, "mean": half, "std": half}
    (tmp_path / "backbone.json").write_text(json.dumps(facts))
    recipe = tiny_recipe(Path(), Path(), encoder=EncoderConfig("test_resnet", init=str(weights)))
    with pytest.raises(UserError, match=r"backbone\.safetensors want --views\.mean 0\.5 0\.5 0\.5, not"):
        build_method(recipe)
    monkeypatch.setattr(Backbone, "load_file", lambda *_: pytest.fail("read them a second time"))
    after = build_method(replace(recipe, views=replace(recipe.views, mean=half, std=half))).backbone.net.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
