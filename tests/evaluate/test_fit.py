"""Fine-tuning: it learns, it stops and goes on bit for bit, and settings that make no sense are refused."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from colocate.base.errors import UserError
from colocate.datasets.labelled import Labelled
from colocate.evaluation.decoders import class_target as classes_of
from colocate.evaluation.decoders import cropped
from colocate.evaluation.fit import Examples, fit
from colocate.evaluation.settings import Engine, FitConfig
from colocate.training import checkpoint
from colocate.training.loop import Interrupted
from tests.evaluate.tissue import write_tissue

ENGINE = Engine("cpu", workers=0, log_every=2, save_every=3)
ALTER = partial(cropped, side=32, symmetries=True)
CONFIG = FitConfig(steps=8, batch=4, optimizer="adamw", lr=0.01, drops=())


class Pixels(nn.Module):
    """A pixel's class from its colour, with noise on the colours and a batch norm: all that a resumed run must keep."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = torch.stack(images)
        logits = self.layers(batch + 0.01 * torch.randn_like(batch))
        return {"loss": nn.functional.cross_entropy(logits, torch.stack([t["classes"] for t in targets]))}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    return write_tissue(tmp_path_factory.mktemp("tissue") / "discs", "semantics")


def run(
    data: Labelled,
    folder: Path,
    config: FitConfig = CONFIG,
    identity: str = "this",
    change: Callable[[Pixels], object] = id,
) -> nn.Module:
    torch.manual_seed(0)
    model = Pixels()
    change(model)
    examples = Examples(data, ALTER, classes_of, seed=1)
    return fit(model, examples, data.train("patients"), config, folder, identity, ENGINE)


def losses(folder: Path) -> list[float]:
    rows = (folder / "journal.csv").read_text().splitlines()
    column = rows[0].split(",").index("loss")
    return [float(row.split(",")[column]) for row in rows[1:]]


def test_it_learns(data: Labelled, tmp_path: Path) -> None:
    run(data, tmp_path, FitConfig(steps=40, batch=4, optimizer="adamw", lr=0.05, drops=()))
    assert losses(tmp_path)[-1] < 0.5 * losses(tmp_path)[0]


def test_a_stopped_fit_equals_the_uninterrupted_one(data: Labelled, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole").state_dict()
    calls, stop_at = [0], 5

    def count(*_: object) -> None:
        calls[0] += 1
        if calls[0] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"step {stop_at} of 8"):
        run(data, tmp_path / "parts", change=lambda model: model.register_forward_hook(count))
    parts = run(data, tmp_path / "parts").state_dict()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_checkpoint_of_something_else_is_refused(data: Labelled, tmp_path: Path) -> None:
    run(data, tmp_path)  # leaves a checkpoint of step 6
    assert checkpoint.checkpoints(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="another evaluation"):
        run(data, tmp_path, identity="that")


def test_a_loss_that_is_not_finite_stops(data: Labelled, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite"):
        run(data, tmp_path, change=lambda model: nn.init.constant_(model.layers[3].bias, math.nan))  # pyright: ignore


def test_gradients_are_clipped(data: Labelled, tmp_path: Path) -> None:
    plain = FitConfig(steps=2, batch=4, lr=1.0, weight_decay=0.0, warmup=0.0)
    start = {name: p.clone() for name, p in _fresh().named_parameters()}
    moved = [
        sum((p - start[name]).square().sum() for name, p in run(data, tmp_path / str(clip), config).named_parameters())
        for clip, config in ((0, plain), (1, FitConfig(**(vars(plain) | {"clip": 1e-4}))))
    ]
    assert 0 < moved[1] < (3e-4) ** 2 < moved[0]


def _fresh() -> Pixels:
    torch.manual_seed(0)
    return Pixels()


def test_steps_follow_from_epochs() -> None:
    assert FitConfig(epochs=20, batch=16).planned(85) == 107
    assert FitConfig(steps=7, epochs=20).planned(85) == 7


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"batch": 0}, "batch"),
        ({"lr": 0.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"clip": -1.0}, "clip"),
        ({"drops": (1.0,)}, "drops"),
        ({"steps": 0}, "steps"),
    ],
)
def test_settings_without_sense_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        FitConfig(**wrong)


def test_one_device_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--first-seed"):
        Engine()


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_images_and_boxes_are_given_as_they_are(precision: Any, data: Labelled, tmp_path: Path) -> None:
    """Rounded to bfloat16, boxes were refused by torchvision with a traceback."""
    boxes, seen = torch.tensor([[0.0, 7.5, 300.3, 301.7]]), []

    class Watched(Pixels):
        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            seen.append((images[0], targets[0]["boxes"]))
            return {"loss": self.layers(images[0][None]).mean()}

    examples = Examples(data, ALTER, lambda *_: {"boxes": boxes}, seed=1)
    once = FitConfig(steps=1, batch=1)
    fit(Watched(), examples, [0], once, tmp_path, "", replace(ENGINE, precision=precision))
    (image, given), (example,) = *seen, examples.read([(0, 0)])
    assert torch.equal(given, boxes) and torch.equal(image, example.image / 255)
