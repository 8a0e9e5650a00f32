"""Every command that goes on where it stopped, killed with SIGKILL at random moments and started again at once."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from colocate.training.journal import read_rows
from colocate.training.recipe import to_json
from tests.evaluate.tissue import write_tissue
from tests.faults.killed import KILLS, Command, Running, contents, survive
from tests.phantom_slide import write_slides
from tests.tiny import tiny_recipe, write_tiles

CPU = ["--accelerator", "cpu", "--workers", "1"]
PACE = {"pairs_per_s", "images_per_s", "waiting", "crowded"}
CUT = ["--mpp", "1", "--size", "64", "--min-tissue", "0.1", "--min-sharpness", "0"]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), 4, 640)


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tissue(tmp_path_factory.mktemp("discs") / "discs", "semantics").folder


def tile(slides: Path, *more: str) -> Command:
    return Command(lambda out: ["tile", str(slides), str(out), *CUT, *more])


def features(slides: Path) -> Command:
    words = ["features", "random", str(slides), "--architecture", "test_resnet", "--mpp", "1", "--size", "64", *CPU]
    return Command(lambda out: [*words, "--out", str(out)])


def evaluate(data: Path, *more: str) -> Command:
    words = ["evaluate", "semantics", "--data", str(data), "--backbone", "random", "--architecture", "test_resnet"]
    fit = ["--fit.steps", "12", "--fit.batch", "2", "--crop", "64", "--seeds", "1", "--save-every", "3", *CPU]
    return Command(lambda out: [*words, *fit, *more, "--out", str(out)], paceless)


def paceless(out: Path) -> dict[str, object]:
    """All files, without what depends on the machine's pace."""

    def seen(name: str, data: object) -> object:
        if name.endswith("journal.csv"):
            return repr([{k: v for k, v in row.items() if k not in PACE} for row in read_rows(out / name)])  # nan
        if not name.endswith(".json"):
            return data
        assert isinstance(data, bytes)
        said = json.loads(data)
        return {k: v for k, v in said.items() if k != "seconds"} if isinstance(said, dict) else said

    return {name: seen(name, data) for name, data in contents(out).items()}


def of_a_run(run: Path) -> dict[str, object]:
    """Weights bit for bit, the journal but for the pace, and the names of all files."""
    exact = {"backbone.safetensors", "tiles.arrow", "journal.csv"}
    return {name: seen if name in exact else None for name, seen in paceless(run).items()}


hours = pytest.mark.skipif("COLOCATE_KILLS" not in os.environ, reason="make faults")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param("1", marks=hours), "3"])
def test_tile(slides: Path, tmp_path: Path, workers: str) -> None:
    survive(tile(slides, "--workers", workers), tmp_path, kills=max(3, KILLS))  # which starts in a second


@hours
def test_features(slides: Path, tmp_path: Path) -> None:
    survive(features(slides), tmp_path)


@hours
def test_predict(discs: Path, tmp_path: Path) -> None:
    write_slides(tmp_path / "in", 2, 512, 0.5)
    evaluate(discs, "--keep-models").run(tmp_path / "model")
    words = ["predict", str(tmp_path / "model"), str(tmp_path / "in"), *CPU, "--window", "128", "--overlap", "32"]
    survive(Command(lambda out: [*words, "--out", str(out)], paceless), tmp_path)


@hours
def test_evaluate(discs: Path, tmp_path: Path) -> None:
    survive(evaluate(discs), tmp_path)


@pytest.mark.slow
def test_pretrain(tmp_path: Path) -> None:
    recipe = tiny_recipe(write_tiles(tmp_path / "tiles"), Path("nowhere"), steps=12)
    recipe = replace(recipe, machine=replace(recipe.machine, workers=2))
    (tmp_path / "recipe.json").write_text(to_json(recipe))
    words = ["pretrain", "--from", str(tmp_path / "recipe.json"), "--resume"]
    survive(Command(lambda out: [*words, "--out", str(out)], of_a_run), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["tile", pytest.param("features", marks=hours)])
def test_two_calls_share_the_slides(command: str, slides: Path, tmp_path: Path) -> None:
    """Each ends well when all is there, and no slide is worked on twice."""
    made = tile(slides, "--workers", "1") if command == "tile" else features(slides)
    made.run(tmp_path / "alone")
    both = [Running(made.words(tmp_path / "shared")) for _ in range(2)]
    for running in both:
        assert "done: " in running.end()
    assert made.compared(tmp_path / "shared") == made.compared(tmp_path / "alone")
