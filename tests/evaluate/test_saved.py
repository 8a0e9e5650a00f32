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
from colocate.evaluation.candidates import find_candidate
from colocate.evaluation.contours import ContourSegmenter
from colocate.evaluation.decoders import Detector, Segmenter
from colocate.evaluation.metrics.objects import label_map
from colocate.evaluation.protocol import evaluate
from colocate.evaluation.saved import VERSION, load_model, seen_mpp
from colocate.evaluation.settings import (
    ContoursConfig,
    Engine,
    FitConfig,
    InstancesConfig,
    ProbeConfig,
    Protocol,
    SemanticsConfig,
    Task,
)
from colocate.models.backbones import Backbone
from tests.evaluate.tissue import write_tissue

FIT = FitConfig(steps=4, batch=3, optimizer="adamw", lr=3e-3, drops=())
DETECTOR = InstancesConfig(FIT, (48, 64), 64, detections=6, proposals=8, anchors=(8, 16, 32, 64, 128))
SEGMENTER = SemanticsConfig(FIT, crop=64)
NORMAL = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    return write_tissue(tmp_path_factory.mktemp("tissue") / "discs")


@pytest.fixture(scope="module")
def kept(data: Labelled, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Task], Path]:
    """The folder of a result with its model, evaluated once."""
    out = tmp_path_factory.mktemp("results")
    folders: dict[Task, Path] = {}

    def of(task: Task) -> Path:
        if task not in folders:
            folders[task] = evaluated(task, data, out / str(len(folders)))
        return folders[task]

    return of


def evaluated(task: Task, data: Labelled, out: Path, keep: bool = True) -> Path:
    engine = Engine("cpu", workers=0)
    protocol = Protocol(str(data.folder), str(out), seeds=1, keep_models=keep, engine=engine)
    (file,) = evaluate(task, protocol, [find_candidate("random", "test_resnet")])
    return file.parent


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["tuned", "frozen"])
def test_a_detector_comes_back(norm: Any, data: Labelled, kept: Callable[[Task], Path]) -> None:
    folder = kept(replace(DETECTOR, norm=norm))
    saved = load_model(folder)
    wanted = json.loads((folder / "predictions.json").read_text())
    assert isinstance(saved.network, Detector) and wanted
    found = [
        result
        for number in data.test("patients")[:2]
        for result in saved.network.predict(data.image(number)).to_coco(number)
    ]
    assert found and found == [result for result in wanted if result["image_id"] <= found[-1]["image_id"]]
    assert saved.facts.classes == ("gland",) and saved.network.config == replace(DETECTOR, norm=norm)
    assert saved.facts.mpp == 0.5 and saved.facts.data["licence"] == "none"


@pytest.mark.slow
def test_contours_come_back(data: Labelled, tmp_path: Path) -> None:
    config = ContoursConfig(replace(FIT, steps=60), crop=64, border=3)
    folder = evaluated(config, data, tmp_path)
    saved, wanted = load_model(folder), json.loads((folder / "predictions.json").read_text())
    assert isinstance(saved.network, ContourSegmenter) and saved.network.config == config
    every = [
        result
        for number in data.test("patients")
        for result in saved.network.predict(data.image(number)).to_coco(number)
    ]
    assert wanted and every == wanted
    assert (saved.facts.task, saved.facts.classes, saved.facts.mpp) == ("instances", ("gland",), 0.5)


@pytest.mark.parametrize("encoder", ["tuned", "frozen"])
def test_a_segmenter_comes_back(
    encoder: Any, data: Labelled, kept: Callable[[Task], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    predict, seen = Segmenter.predict, []
    monkeypatch.setattr(Segmenter, "predict", lambda model, image: seen.append(predict(model, image)) or seen[-1])
    folder = evaluated(replace(SEGMENTER, encoder=encoder), data, tmp_path)
    monkeypatch.undo()
    saved = load_model(tmp_path)  # which has just the one
    assert isinstance(saved.network, Segmenter)
    again = [saved.network.predict(data.image(number)) for number in data.test("patients")]
    assert len(seen) == 6 and all(torch.equal(one, other) for one, other in zip(seen, again, strict=True))
    assert saved.facts.classes == ("background", "gland") and saved.fingerprint == load_model(folder).fingerprint


@pytest.mark.slow
def test_a_model_that_was_not_kept_is_made_again(data: Labelled, tmp_path: Path) -> None:
    task = SEGMENTER
    folder = evaluated(task, data, tmp_path, keep=False)
    with pytest.raises(UserError, match="no model that was kept: evaluate again with --keep-models"):
        load_model(tmp_path)
    assert evaluated(task, data, tmp_path) == folder
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert load_model(folder).facts.task == "semantics"
    evaluated(task, data, tmp_path)
    evaluated(task, data, tmp_path, keep=False)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    probe = ProbeConfig("nearest", stride=8, neighbours=5)
    one = evaluated(probe, data, tmp_path / "probe")
    before = (one / "result.json").stat().st_mtime_ns
    evaluated(probe, data, tmp_path / "probe")
    assert (one / "result.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_what_does_not_fit_is_refused(kept: Callable[[Task], Path], tmp_path: Path) -> None:
    folder = kept(replace(DETECTOR, norm="tuned"))
    facts, tensors = json.loads((folder / "model.json").read_text()), load_file(folder / "model.safetensors")
    name = "net.rpn.head.cls_logits.bias"
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
    logits: Any = detector.net.roi_heads.mask_predictor
    torch.nn.init.normal_(logits.mask_fcn_logits.weight)  # masks that are neither all nor nothing
    windows = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
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
    again = [detector.predict(window) for window in windows]
    assert [found.scores for found in again] == [found.scores for found in wanted]
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
