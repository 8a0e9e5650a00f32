"""Models that were kept come back as they were, and label windows as they label images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from colocate.base.errors import UserError
from colocate.datasets.labelled import Labelled
from colocate.evaluation.candidates import Candidate, find_candidate
from colocate.evaluation.contours import ContourSegmenter
from colocate.evaluation.decoders import Detector, Segmenter
from colocate.evaluation.metrics.objects import label_map
from colocate.evaluation.metrics.semantic import record
from colocate.evaluation.protocol import evaluate
from colocate.evaluation.saved import VERSION, keep_model, load_model, seen_mpp
from colocate.evaluation.settings import FitConfig, SemanticsConfig, Task
from colocate.models.backbones import Backbone
from tests.evaluate.conftest import DETECTOR, TASKS, protocol

FIT = FitConfig(steps=4, batch=3, optimizer="adamw", lr=3e-3, drops=())
SEGMENTER = SemanticsConfig(FIT, crop=64, encoder="frozen")
NORMAL = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def evaluated(task: Task, data: Labelled, out: Path, keep: bool = True) -> Path:
    (file,) = evaluate(task, protocol(data, out, keep_models=keep), [find_candidate("random", "test_resnet")])
    return file.parent


@pytest.mark.slow
@pytest.mark.parametrize(("name", "network"), [("instances", Detector), ("contours", ContourSegmenter)])
def test_networks_of_objects_come_back(name: str, network: type, data: Labelled, kept: Callable[[str], Path]) -> None:
    saved, wanted = load_model(kept(name)), json.loads((kept(name) / "predictions.json").read_text())
    assert isinstance(saved.network, network) and saved.network.config == TASKS[name]
    numbers = data.test("patients")[: 2 if name == "instances" else 6]
    found = [
        result
        for number in numbers
        for result in saved.network.predict(data.image(number)).to_coco(number)  # pyright: ignore
    ]
    assert found and found == [result for result in wanted if result["image_id"] in numbers]
    assert (saved.facts.task, saved.facts.classes, saved.facts.mpp) == ("instances", ("gland",), 0.5)
    assert saved.facts.data["licence"] == "none"


@pytest.mark.slow
def test_a_detector_of_frozen_norms_comes_back(data: Labelled, random: Candidate, tmp_path: Path) -> None:
    config = replace(DETECTOR, norm="frozen")
    detector = Detector(config, random.build(0), 1, random.mean, random.std)
    keep_model(tmp_path, config, random, data, data.train("patients"), detector.state_dict())
    saved = load_model(tmp_path).network
    assert isinstance(saved, Detector) and saved.predict(data.image(0)) == detector.predict(data.image(0))


def comes_back(folder: Path, data: Labelled) -> None:
    """The segmenter that was kept in or below a folder finds what its result says."""
    saved = load_model(folder)
    assert isinstance(saved.network, Segmenter) and saved.facts.task == "semantics"
    assert saved.facts.classes == ("background", "gland")
    (file,) = folder.rglob("result.json")
    records = json.loads(file.read_text())["records"]
    for number, stored in zip(data.test("patients"), records, strict=True):
        truth = data.pixel_classes(number, data.mask(number))
        found = saved.network.predict(data.image(number))
        assert record(truth, found, data.pixel_names) == stored["semantic"] and len(found.unique()) == 2
    assert load_model(file.parent).fingerprint == saved.fingerprint


@pytest.mark.slow
def test_a_segmenter_comes_back(data: Labelled, kept: Callable[[str], Path]) -> None:
    comes_back(kept("semantics"), data)


@pytest.mark.slow
def test_a_model_that_was_not_kept_is_made_again(data: Labelled, kept: Callable[[str], Path], tmp_path: Path) -> None:
    """And comes back: it is one whose encoder is frozen."""
    folder = evaluated(SEGMENTER, data, tmp_path, keep=False)
    with pytest.raises(UserError, match="no model that was kept: evaluate again with --keep-models"):
        load_model(tmp_path)
    assert evaluated(SEGMENTER, data, tmp_path) == folder
    comes_back(tmp_path, data)
    probe = kept("nearest")  # which has none to be kept
    before = [path.stat().st_mtime_ns for path in (folder / "model.safetensors", probe / "result.json")]
    evaluated(SEGMENTER, data, tmp_path)
    evaluated(SEGMENTER, data, tmp_path, keep=False)
    evaluated(TASKS["nearest"], data, probe.parent)
    assert [path.stat().st_mtime_ns for path in (folder / "model.safetensors", probe / "result.json")] == before


def test_where_no_model_is_is_said(tmp_path: Path) -> None:
    for place, says in ((tmp_path, "holds no model that was kept"), (tmp_path / "typo", "typo does not exist: give")):
        with pytest.raises(UserError, match=says):
            load_model(place)


@pytest.mark.slow
def test_what_does_not_fit_is_refused(kept: Callable[[str], Path], tmp_path: Path) -> None:
    folder = kept("semantics")
    facts, tensors = json.loads((folder / "model.json").read_text()), load_file(folder / "model.safetensors")
    name = "head.0.bias"
    odd = {key: tensor for key, tensor in tensors.items() if key != name}
    cases: list[tuple[Any, Any, str]] = [
        (facts | {"version": VERSION + 1}, tensors, "another version"),
        (facts | {"task": "probe"}, tensors, "does not describe a model"),
        (facts | {"settings": {"depth": 3}}, tensors, "does not describe a model"),
        ([], tensors, "does not describe a model"),
        (facts | {"architecture": "test_vit"}, tensors, "Missing key"),
        (facts, odd, f"Missing key.*{name}"),
        (facts, tensors | {"head": torch.zeros(1)}, "Unexpected key.*head"),
        (facts, odd | {name: torch.zeros(9)}, f"size mismatch for {name}"),
    ]
    for number, (its, weights, reason) in enumerate(cases):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "model.json").write_text(json.dumps(its))
        save_file(weights, place / "model.safetensors")
        with pytest.raises(UserError, match=reason):
            load_model(place)
    with pytest.raises(UserError, match=f"{len(cases)} models, give one of them: .*/0, .*/1"):
        load_model(tmp_path)
    (tmp_path / "0" / "model.safetensors").write_bytes(b"cut short")
    (tmp_path / "0" / "model.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_model(tmp_path / "0")


def test_the_resolution_is_that_which_the_network_sees(data: Labelled) -> None:
    large = replace(
        data,
        items=tuple(
            item._replace(height=height, width=90) for item, height in zip(data.items, [60, 64, 70] * 9, strict=False)
        ),
    )
    assert seen_mpp(SEGMENTER, large, [0, 1, 2]) == 0.5
    assert seen_mpp(replace(DETECTOR, test_short_side=128, short_side=(64, 128)), large, [0, 1, 2]) == 0.25
    assert seen_mpp(replace(DETECTOR, long_side=80), large, [0, 1, 2]) == pytest.approx(0.5 * 90 / 80)
    for other, known in ((0.52, True), (0.53, False), (float("nan"), False)):
        for place in (0, 1):
            items = list(data.items[:2])
            items[place] = items[place]._replace(mpp=other)
            mixed = replace(data, items=tuple(items))
            assert (seen_mpp(SEGMENTER, mixed, [0, 1]) is not None) == known
            assert (seen_mpp(DETECTOR, mixed, [0, 1]) is not None) == known


@pytest.mark.slow
def test_windows_are_labelled_as_images_that_need_no_resizing() -> None:
    torch.manual_seed(1)
    detector = Detector(replace(DETECTOR, long_side=64, detections=20), Backbone("test_resnet"), 2, *NORMAL).eval()
    detector.net.rpn._post_nms_top_n["testing"] = 50  # type: ignore[index]
    logits: Any = detector.net.roi_heads.mask_predictor
    torch.nn.init.normal_(logits.mask_fcn_logits.weight)  # masks that are neither all nor nothing
    windows = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    wanted = [detector.predict(window) for window in windows]
    scores = sorted(score for found in wanted for score in found.scores)
    least = scores[len(scores) // 2] + 1e-6
    drawn = []
    for (ids, classes, its), found in zip(detector.label(windows, least), wanted, strict=True):
        kept = [i for i, score in enumerate(found.scores) if score > least]
        assert classes == [found.classes[i] for i in kept] and its == pytest.approx([found.scores[i] for i in kept])
        different = ids != label_map(found, least)
        assert different.float().mean() < 0.001  # batches round otherwise
        drawn.append(float((ids > 0).float().mean()))
    assert 0 < max(drawn) < 1
    assert detector.predict(windows[0]).scores == wanted[0].scores
    large = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    seen: list[torch.Size] = []
    detector.net.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    detector.label(large, 0.5)
    assert seen == [(1, 3, 128, 128)]  # though the long side of images is 64


def test_classes_of_windows_are_those_of_images() -> None:
    torch.manual_seed(1)
    segmenter = Segmenter(SEGMENTER, Backbone("test_resnet"), 4, 2, *NORMAL)
    windows = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    classes, confidence = segmenter.label(windows)
    for window, found, sure in zip(windows, classes, confidence, strict=True):
        wanted = segmenter.predict(window)
        assert (found == wanted).float().mean() > 0.999 and len(found.unique()) > 1
        assert 2 not in found
        logits = segmenter.logits(window[None].float() / 255)[0, [0, 1, 3]]
        assert (sure.float() / 255 - logits.softmax(0).amax(0)).abs().max() < 0.003
