"""Decoders on every kind of backbone: grids at the right strides, gradients where wanted, predictions in place."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from colocate.base.errors import UserError
from colocate.datasets.labelled import Labelled
from colocate.evaluation.decoders import Detector, Pyramid, Segmenter, instance_target
from colocate.evaluation.settings import InstancesConfig, SemanticsConfig
from colocate.models.backbones import Backbone
from tests.evaluate.conftest import LARGE

NORMAL = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
SMALL = InstancesConfig(short_side=(48, 64), test_short_side=64, proposals=8, anchors=LARGE)
NETWORKS = ("test_resnet", "test_convnext", "test_vit")


def example(height: int = 64, width: int = 96) -> tuple[Tensor, dict[str, Tensor]]:
    mask = torch.zeros(2, height, width, dtype=torch.uint8)
    mask[0, 10:40, 20:50] = 1  # of numbers the lower bytes, then the higher ones
    boxes = torch.tensor([[20.0, 10.0, 50.0, 40.0]])
    return torch.rand(3, height, width), {"boxes": boxes, "labels": torch.tensor([1]), "masks": mask}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pyramid_has_its_strides(name: str) -> None:
    pyramid = Pyramid(Backbone(name))
    grids = pyramid(torch.rand(2, 3, 64, 96))
    assert pyramid.strides[-4:] == (4, 8, 16, 32)
    for grid, stride, channels in zip(grids, pyramid.strides, pyramid.channels, strict=True):
        assert grid.shape == (2, channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("eva02_tiny_patch14_224", "a stride of 14 px: decoders need a power of two"),
        ("pit_ti_224", "pit_ti_224 has stages of strides 8, 16, 32: decoders need those of 4, 8, 16"),
    ],
)
def test_strides_that_decoders_have_no_use_for_are_refused(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Pyramid(Backbone(name))


@pytest.mark.slow
def test_a_backbone_of_a_fixed_input_size_takes_that_and_says_so_of_others() -> None:
    backbone = Backbone("mixer_s32_224")
    says = r"mixer_s32_224 cannot take images of 64 x 96 px \(Input height .+\): choose a network that takes any size"
    with pytest.raises(UserError, match=says):
        Pyramid(backbone)(torch.rand(2, 3, 64, 96))
    with pytest.raises(UserError, match="mixer_s32_224 cannot take images of"):
        Detector(SMALL, backbone, 1, *NORMAL).predict(torch.zeros(3, 64, 96, dtype=torch.uint8))
    model = Segmenter(SemanticsConfig(), backbone, 3, None, *NORMAL)
    assert model.predict(torch.zeros(3, 220, 224, dtype=torch.uint8)).shape == (220, 224)


def test_want_of_memory_is_no_fault_of_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pyramid = Pyramid(Backbone("test_resnet"))

    def fails(_: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pyramid.backbone, "stages", fails)
    with pytest.raises(torch.OutOfMemoryError):  # which prediction waits for
        pyramid(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("name", NETWORKS)
def test_mask_rcnn_learns_every_weight(name: str) -> None:
    torch.manual_seed(0)
    model = Detector(SMALL, Backbone(name), 1, *NORMAL)
    model.train()
    image, target = example()
    losses = model([image, image], [target, target])
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert losses["loss_mask"].item() == pytest.approx(0.693, abs=0.05)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": target["masks"] * 0}
    assert all(torch.isfinite(loss) for loss in model([image], [empty]).values())


FEW = Labelled(Path(), "few", "instances", ("nucleus",), None, "", (), ())


def crowd(side: int, step: int) -> Tensor:
    """A map of objects of different sizes, numbered with gaps, more than a byte counts."""
    ids = torch.zeros(side, side, dtype=torch.int32)
    for place, (top, left) in enumerate(itertools.product(range(0, side, step), repeat=2), start=1):
        ids[top : top + step // 2 + place % 2, left : left + step - 1 - place % 3] = 3 * place
    return ids


def test_masks_to_learn_from_are_those_of_torchvision() -> None:
    """The same losses as with a whole mask for each object, at another size than the image's."""
    ids = crowd(144, 8)
    target = instance_target(FEW, 0, ids)
    assert len(target["boxes"]) == 18**2 and target["masks"].shape == (2, 144, 144)
    dense = (ids == ids.unique()[1:, None, None]).to(torch.uint8)
    boxes = masks_to_boxes(dense)
    boxes[:, 2:] += 1
    assert torch.equal(target["boxes"], boxes)
    image, losses = torch.rand(3, 144, 144), []
    for masks in (target["masks"], dense):
        torch.manual_seed(0)
        model = Detector(replace(SMALL, anchors=(4, 8, 16, 32, 64)), Backbone("test_resnet"), 1, *NORMAL)
        torch.nn.init.normal_(model.net.roi_heads.mask_predictor.mask_fcn_logits.weight)  # type: ignore[union-attr]
        model.train()
        if masks is dense:
            del model.net.roi_heads.select_training_samples  # torchvision's own again
        losses.append(model([image, image], [target | {"masks": masks}] * 2))
    assert losses[0]["loss_mask"] > 0
    for name, loss in losses[0].items():
        assert loss.item() == losses[1][name].item(), name


def test_what_a_target_of_an_empty_image_is() -> None:
    found = instance_target(FEW, 0, torch.zeros(9, 11, dtype=torch.int32))
    assert (found["boxes"].shape, found["labels"].shape, found["masks"].shape) == ((0, 4), (0,), (2, 9, 11))


def test_an_image_full_of_objects_has_no_background() -> None:
    found = instance_target(FEW, 0, torch.tensor([[7, 7, 9]], dtype=torch.int32))
    assert found["masks"][0].tolist() == [[1, 1, 2]] and found["boxes"].tolist() == [[0, 0, 2, 1], [2, 0, 3, 1]]


def test_frozen_norms_stay_and_tuned_ones_move() -> None:
    image, target = example()
    for norm in ("frozen", "tuned"):
        model = Detector(replace(SMALL, norm=norm), Backbone("test_resnet"), 1, *NORMAL)  # pyright: ignore
        model.train()
        before = [m.running_mean.clone() for m in model.norms]
        model([image], [target])
        same = [torch.equal(old, m.running_mean) for old, m in zip(before, model.norms, strict=True)]
        assert all(same) if norm == "frozen" else not any(same)
        assert all(m.weight.requires_grad == (norm == "tuned") for m in model.norms)


def test_found_objects_are_in_the_images_own_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Detector(SMALL, Backbone("test_resnet"), 1, *NORMAL)

    def answers(images: list[Tensor]) -> list[dict[str, Any]]:
        mask = torch.full((1, 1, 28, 28), 0.9)
        box = torch.tensor([[7.0, 5.0, 20.0, 9.0]])
        return [{"boxes": box, "labels": torch.tensor([1]), "scores": torch.tensor([0.8]), "masks": mask}]

    monkeypatch.setattr(model.net, "forward", answers)
    found = model.predict(torch.zeros(3, 40, 60, dtype=torch.uint8))
    assert (found.size, found.boxes, found.scores) == ((40, 60), [[7.0, 5.0, 13.0, 4.0]], [pytest.approx(0.8)])
    assert found._replace(boxes=None).xywh == [pytest.approx([7.0, 5.0, 13.0, 4.0], abs=2)]  # as torchvision pastes


@pytest.mark.slow
def test_training_sizes_are_drawn_and_test_size_is_fixed() -> None:
    model = Detector(SMALL, Backbone("test_resnet"), 1, *NORMAL)
    seen: list[int] = []
    model.net.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(min(inputs[0].shape[2:])))
    image, target = example()
    model.train()
    for _ in range(2):
        model([image], [target])
    assert set(seen) == {64}  # padded to a multiple of 32
    model.predict((image * 255).to(torch.uint8))
    model.train()
    assert model.net.transform.min_size == tuple(range(48, 65))


@pytest.mark.parametrize("name", NETWORKS)
def test_u_net_on_every_backbone(name: str) -> None:
    model = Segmenter(SemanticsConfig(), Backbone(name), 3, 2, *NORMAL)
    model.train()
    classes = torch.randint(0, 3, (2, 64, 64))
    loss = model(list(torch.rand(2, 3, 64, 64)), [{"classes": one} for one in classes])["cross_entropy"]
    loss.backward()
    assert torch.isfinite(loss)
    found = model.predict(torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8))
    assert found.shape == (50, 70) and not (found == 2).any()


@pytest.mark.parametrize("ignored", [2, 255])
def test_ignored_and_added_pixels_teach_nothing(ignored: int) -> None:
    torch.manual_seed(0)
    model = Segmenter(SemanticsConfig(), Backbone("test_resnet"), 3, ignored, *NORMAL).eval()
    images, classes = list(torch.rand(1, 3, 64, 64)), torch.zeros(64, 64, dtype=torch.int64)
    some = classes.clone()
    some[:, 32:] = ignored
    added = classes.clone()
    added[:, 32:] = -1
    one, other = (model(images, [{"classes": its}])["cross_entropy"] for its in (some, added))
    expected = torch.nn.functional.cross_entropy(model.logits(torch.stack(images))[:, :, :, :32], classes[None, :, :32])
    assert one.item() == pytest.approx(expected.item(), rel=1e-5) == other.item()
    scores = model.scores(torch.zeros(1, 3, 40, 40, dtype=torch.uint8))
    assert scores.isinf().flatten(2).all(2)[0].tolist() == [number == ignored for number in range(3)]


def test_a_frozen_encoder_takes_no_gradient_and_keeps_its_statistics() -> None:
    backbone = Backbone("test_resnet")
    model = Segmenter(SemanticsConfig(encoder="frozen"), backbone, 2, None, *NORMAL)
    model.train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    model(list(torch.rand(2, 3, 64, 64)), [{"classes": torch.zeros(64, 64, dtype=torch.int64)}] * 2)[
        "cross_entropy"
    ].backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
