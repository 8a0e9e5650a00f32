"""From `colocate evaluate --keep-models` to the files of a slide, by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from lightning_fabric import Fabric
from PIL import Image

from colocate.cli.main import main
from colocate.evaluation.contours import ContourSegmenter
from colocate.evaluation.decoders import Detector
from colocate.evaluation.metrics.objects import Found
from colocate.evaluation.settings import ContoursConfig, InstancesConfig
from colocate.models.backbones import Backbone
from colocate.prediction.predictor import predictor
from tests.evaluate.tissue import discs, write_tissue
from tests.phantom_slide import write_pyramid
from tests.predict.seen import kept

CPU = ["--accelerator", "cpu", "--workers", "0"]


@pytest.mark.slow
def test_a_kept_model_maps_a_slide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A U-Net that has learned discs at 0.5 um/px, and a slide of them at 0.25."""
    data, results, out = write_tissue(tmp_path / "discs"), tmp_path / "results", tmp_path / "out"
    learn = ["--fit.steps", "40", "--fit.batch", "4", "--fit.lr", "0.003", "--crop", "64", "--seeds", "1"]
    words = ["semantics", "--data", str(data.folder), "--backbone", "random", "--architecture", "test_resnet"]
    main(["evaluate", *words, *learn, *CPU, "--keep-models", "--out", str(results)])
    image = discs(3, 192, 256)[0].permute(1, 2, 0).numpy()
    write_pyramid(tmp_path / "slide.tif", image.repeat(2, 0).repeat(2, 1), 0.25)
    Image.fromarray(np.full((6, 8), 255, np.uint8)).save(tmp_path / "all.png")
    (tmp_path / "slides.csv").write_text("path,mask\nslide.tif,all.png\n")
    words = ["predict", str(results), str(tmp_path / "slides.csv"), "--out", str(out), *CPU]
    sizes = ["--window", "128", "--overlap", "32", "--min-area", "10"]
    main([*words, *sizes])
    assert capsys.readouterr().out.splitlines()[-1] == f"done: 1 slide in {out}"
    found, truth = tifffile.imread(out / "slide.tif"), discs(3, 192, 256)[1].numpy() > 0
    assert found.shape == truth.shape == (192, 256) and (found != 255).all()
    shared = ((found == 1) & truth).sum()
    assert 2 * shared / ((found == 1).sum() + truth.sum()) > 0.6
    marker = json.loads((out / "slide.json").read_text())
    assert marker["seen_mpp"] == 0.5 and marker["model"]["data"]["name"] == "discs"
    assert np.isclose(marker["area_mm2"]["gland"], (found == 1).sum() * 0.25 / 1e6, atol=1e-4)
    main([*words, *sizes])
    assert capsys.readouterr().out.splitlines()[-1] == f"done: 0 slides in {out}, 1 was there before"
    for more, reason in (
        (["--window", "256", "--overlap", "64"], "choose another --out"),
        ([*sizes, "--model-mpp", "0.25"], "leave --model-mpp out"),
    ):
        with pytest.raises(SystemExit):
            main([*words, *more])
        assert reason in capsys.readouterr().err


def test_a_model_of_contours_is_called_so_and_gives_objects() -> None:
    network = ContourSegmenter(ContoursConfig(), Backbone("test_resnet"), 1, (0.5,) * 3, (0.3,) * 3)
    model = predictor(kept(network, ("a",)), Fabric(accelerator="cpu", devices=1), 0.5)
    assert (model.task, model.facts["task"]) == ("instances", "contours")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_kept_detector_finds_objects_in_windows(precision: Any) -> None:
    torch.manual_seed(1)
    config = InstancesConfig(detections=5, short_side=(64, 64), test_short_side=64, anchors=(8, 16, 32, 64, 128))
    detector = Detector(config, Backbone("test_resnet"), 2, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).eval()
    detector.net.rpn._post_nms_top_n["testing"] = 50  # proposals, of 1,000: for time
    model = predictor(kept(detector, ("a", "b")), Fabric(accelerator="cpu", devices=1, precision=precision), 0.1)
    windows = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    found = model.look(windows, None)
    assert model.shown == {1: "a", 2: "b"} and len(found) == 2
    for its in found:
        assert isinstance(its, Found) and its.ids.shape == (64, 64) and its.ids.max() <= len(its.scores) > 0
    if precision == "32-true":
        for its, (ids, classes, scores) in zip(found, detector.label(windows, 0.1), strict=True):
            assert torch.equal(its.ids, ids) and (its.classes, its.scores) == (classes, scores)
