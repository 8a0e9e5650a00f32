"""Dense distillation: the loss against plain loops, and a teacher that is found, shown its own kind of images, kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from colocate.base.errors import UserError
from colocate.core.matching import overlap
from colocate.core.settings import ViewConfig
from colocate.core.views import sample_views
from colocate.methods.distil import Distil, Teacher, find_teacher
from colocate.methods.settings import DistilConfig
from colocate.models.backbones import Backbone
from colocate.training.loop import build_method, pretrain
from colocate.training.recipe import read_recipe
from tests.reference import distil as reference
from tests.tiny import METHODS, tiny_recipe


def built(config: DistilConfig, **changes: Any) -> Distil:
    method = build_method(tiny_recipe(Path(), Path(), method=config, **changes))
    assert isinstance(method, Distil)
    return method


@pytest.mark.parametrize("teacher", ["test_efficientnet", "test_vit"])  # grids of 2 x 2 and 4 x 4
def test_the_loss_equals_the_equations_in_plain_loops(teacher: str) -> None:
    views = ViewConfig(64, symmetries="all")
    method = built(DistilConfig(teacher, "random", relations=0.5, norm_group=4), views=views).double()
    batch = sample_views(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8), views)
    first, second = (view._replace(images=view.images.double()) for view in (batch.first, batch.second))
    losses = method(batch._replace(first=first, second=second))
    assert set(losses.terms) == {"cells"}
    grid = method.teacher(second.images, views.mean, views.std)
    target = reference.standardised(grid.flatten(2).mT.tolist())
    total = 0.0
    for view, student in ((first, losses.query), (second, losses.key)):
        match = overlap(view.crop, second.crop, student.grid, (grid.shape[2], grid.shape[3]))
        shared = (match.fractions() * match.weight[:, :, None]).tolist()
        own = reference.standardised(student.field.tolist())
        assert student.cells is not None
        predicted = student.cells.tolist()
        total += sum(reference.distance(shared[b], predicted[b], own[b], target[b], 0.5) for b in range(4)) / 4
    assert losses.terms["cells"].item() == pytest.approx(total / 2, rel=1e-6)


def test_a_teacher_gets_images_as_it_learned_from_them() -> None:
    backbone = Backbone("test_efficientnet").eval()
    pixels = torch.rand(2, 3, 64, 64)
    mean, std, other_mean, other_std = (0.5, 0.6, 0.7), (0.2, 0.3, 0.4), (0.1, 0.2, 0.3), (0.5, 0.4, 0.3)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    expected = backbone(normalised(mean, std))
    torch.testing.assert_close(
        Teacher(backbone, mean, std)(normalised(other_mean, other_std), other_mean, other_std), expected
    )


def test_views_are_enlarged_to_a_multiple_of_the_teachers_stride() -> None:
    teacher = Teacher(Backbone("test_efficientnet"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert teacher(torch.zeros(1, 3, 72, 72), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).shape[2:] == (3, 3)


def test_a_teacher_of_a_fixed_input_size_is_named() -> None:
    teacher = Teacher(Backbone("levit_128s", cell_stride=16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with pytest.raises(UserError, match="levit_128s cannot take images of 96 x 96 px"):
        teacher(torch.zeros(1, 3, 96, 96), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_checkpoints_leave_the_teacher_out_and_still_load() -> None:
    method = built(METHODS["distil"])  # type: ignore[arg-type]
    state = method.state_dict()
    assert state and not any("teacher" in name for name in state)
    other = built(METHODS["distil"])  # type: ignore[arg-type]
    for weight in other.query.parameters():
        torch.nn.init.zeros_(weight)
    other.load_state_dict(state)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name])
    with pytest.raises(RuntimeError, match="Missing"):
        other.load_state_dict({name: tensor for name, tensor in state.items() if "cells.bias" not in name})


def test_the_teacher_stays_as_it_is_while_the_student_learns() -> None:
    method = built(METHODS["distil"])  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in method.teacher.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.5)
    method.train()
    batch = sample_views(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8), ViewConfig(64))
    first = method(batch).total()
    first.backward()
    optimizer.step()
    assert method(batch).total() < first
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.teacher.state_dict().items())


def test_teachers_by_file_by_folder_and_by_run(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's local-dir is the form of hf-hub that needs no network: what is in it (here a layer's scale) it tells."""
    net = timm.create_model("test_vit", num_classes=0, init_values=0.1)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    about = {"architecture": "test_vit", "num_classes": 0, "model_args": {"init_values": 0.1, "img_size": 160}}
    look = {"mean": [0.7, 0.5, 0.7], "std": [0.2, 0.2, 0.2], "num_classes": 0}
    (tmp_path / "config.json").write_text(json.dumps({**about, "pretrained_cfg": look}))
    teacher = find_teacher(DistilConfig(f"local-dir:{tmp_path}"))
    assert teacher.mean == (0.7, 0.5, 0.7)
    for name, tensor in teacher.backbone.net.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name])
    with pytest.raises(UserError, match=r"fits another variant of test_vit: \d+ tensors too many \(blocks.0.ls1.gamma"):
        find_teacher(DistilConfig("test_vit", str(tmp_path / "model.safetensors")))

    run = pretrain(tiny_recipe(tiles, tmp_path / "run", views=ViewConfig(64, mean=(0.6, 0.6, 0.6)), steps=1))
    taught = find_teacher(DistilConfig(str(run)))
    assert tuple(taught.mean) == (0.6, 0.6, 0.6) and taught.backbone.name == "test_resnet"
    monkeypatch.chdir(tmp_path)  # the run's stored recipe has the whole path
    student = pretrain(tiny_recipe(tiles, tmp_path / "student", method=DistilConfig("run", norm_group=4), steps=2))
    assert read_recipe(student / "recipe.json").method == DistilConfig(str(run), norm_group=4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DistilConfig("no_such_network"), "timm has no network called 'no_such_network'"),
        (DistilConfig("test_vit", "nowhere.pth"), "no such file of weights"),
        (DistilConfig("local-dir:/no/such/folder"), "/no/such/folder"),
        (DistilConfig("run", "random"), r"method\.weights random: the run run teaches with its own"),
    ],
)
def test_teachers_that_cannot_be_had(
    config: DistilConfig, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "backbone.json").touch()
    with pytest.raises(UserError, match=message):
        find_teacher(config)
