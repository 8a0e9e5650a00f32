"""A data set and its results, each computed once for all tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colocate.datasets.labelled import Labelled
from colocate.evaluation.candidates import Candidate, find_candidate
from colocate.evaluation.protocol import evaluate
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
from tests.evaluate.tissue import write_tissue

ENGINE = Engine("cpu", workers=0, log_every=10, save_every=10)
FIT = FitConfig(steps=20, batch=4, optimizer="adamw", lr=3e-3, drops=())
LARGE = (64, 64, 128, 256, 512)
"""Sides of anchors of which few are left in a small image: each proposal takes time."""
DETECTOR = InstancesConfig(
    FitConfig(steps=2, batch=3, lr=3e-3),
    short_side=(48, 64),
    test_short_side=64,
    detections=6,
    proposals=8,
    anchors=LARGE,
)
TASKS: dict[str, Task] = {
    "instances": DETECTOR,
    "contours": ContoursConfig(replace(FIT, steps=30), crop=64, border=3),
    "semantics": SemanticsConfig(FIT, crop=64),
    "linear": ProbeConfig("linear", stride=8),
    "nearest": ProbeConfig("nearest", stride=8, neighbours=5),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("instances", "contours", "semantics")]


def protocol(data: Labelled, out: Path, **changes: Any) -> Protocol:
    return replace(Protocol(str(data.folder), str(out), seeds=1, engine=ENGINE), **changes)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    return write_tissue(tmp_path_factory.mktemp("tissue") / "discs")


@pytest.fixture
def copied(data: Labelled, tmp_path: Path) -> Labelled:
    """The data set, for tests that damage it."""
    return Labelled.open(shutil.copytree(data.folder, tmp_path / "copied"))


@pytest.fixture(scope="session")
def random() -> Candidate:
    return find_candidate("random", "test_resnet")


@pytest.fixture(scope="session")
def kept(data: Labelled, random: Candidate, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a task's result, with its model."""
    out = tmp_path_factory.mktemp("results")
    folders: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in folders:
            (file,) = evaluate(TASKS[name], protocol(data, out, keep_models=True), [random])
            folders[name] = file.parent
        return folders[name]

    return of
