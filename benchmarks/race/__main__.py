"""Which pretraining finds glands best? `python benchmarks/race pack|run|report`, and see the README beside this."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.commands import dispatch
from benchmarks.race.arms import BUDGETS, NETWORKS, NOTHING, imagenet_weights, recipe_of
from benchmarks.race.judge import Track, cells_health
from benchmarks.race.pack import pack
from benchmarks.race.report import mean, report
from colocate.base.errors import UserError
from colocate.data.index import Index
from colocate.evaluation.candidates import find_candidate
from colocate.training.loop import pretrain
from colocate.training.recipe import Recipe

ROWS = Path(__file__).parents[2] / "docs" / "results" / "race.jsonl"


def run(
    arm: tyro.conf.Positional[str],
    race: Path = Path("carry/race"),
    work: Path = Path("carry/work"),
    init: Literal["random", "imagenet"] = "random",
    network: str | None = None,
    budget: Literal["smoke", "cpu", "gpu"] = "cpu",
    seed: int = 0,
    test: bool = False,
    quick: bool = False,
    changes: tuple[str, ...] = (),
    pairs: int = 0,
    rows: Path = ROWS,
) -> None:
    """Pretrain an arm, judge it, and append a row. The same command goes on where it was stopped.

    Args:
        arm: A recipe; random or imagenet for none; supervised for the bound that masks set; LABEL=FILE for the weights
            of a ResNet-18 that something else pretrained (torchvision's or timm's names, ImageNet's mean and std).
        race: The folder that `pack` made.
        work: Where runs lie.
        init: Start from random weights (ResNet-18) or from ImageNet's (EfficientNet-Lite0).
        network: Another network than ResNet-18, of timm's, from random weights.
        budget: smoke, cpu (a core for half an hour) or gpu.
        seed: Of pretraining and of judging.
        test: Judge by the test patients: once an arm, when all is chosen.
        quick: Linear probes alone.
        changes: Fields of the recipe that differ from the arm's: method.dense=1 views.area=0.2,1
        pairs: How many pairs of views the weights of a LABEL=FILE learned from.
        rows: The file of rows.
    """
    began, code = time.perf_counter(), _code()
    size = BUDGETS[budget].size
    wants_imagenet = init == "imagenet" or arm == "imagenet"
    if network and wants_imagenet:
        raise UserError("--network is of random weights: ImageNet's at hand are EfficientNet-Lite0's")
    usual = NETWORKS["imagenet" if wants_imagenet else "random"]
    network = network or usual
    weights = imagenet_weights(race / "imagenet.safetensors") if wants_imagenet else None
    label = " ".join([arm, *changes])
    recipe: Recipe | None = None
    track = Track(race, test)
    if "=" in arm:
        candidate = find_candidate(arm, network)
        label = candidate.label
    elif arm in NOTHING:
        candidate = find_candidate(f"{arm}={weights or 'random'}", network)
        candidate = replace(candidate, mean=(0.5,) * 3, std=(0.5,) * 3) if weights else candidate
        candidate = track.supervised(candidate, seed) if arm == "supervised" else candidate
    else:
        start = init if network == usual else network
        place = work / f"{budget}-{start}" / f"{label.replace(' ', '_').replace('/', '-')}-{seed}"
        recipe = recipe_of(arm, network, BUDGETS[budget], seed, race / "tiles", place, weights)
        words = [word for change in changes for word in _option(change)]
        recipe = tyro.cli(Recipe, default=recipe, args=words, config=(tyro.conf.AvoidSubcommands,))
        pretrain(recipe, resume=True)
        candidate = find_candidate(f"{arm}={place}")
        size = recipe.views.size
    trained = time.perf_counter()
    index = Index.build(race / "tiles", work / f"tiles-{os.getpid()}.arrow")
    row: dict[str, Any] = {
        "arm": label,
        "init": "imagenet" if wants_imagenet else "random",
        "network": network,
        "budget": budget,
        "seed": seed,
        "judged": "test" if test else "valid",
        "steps": recipe.steps if recipe else 0,
        "pairs": recipe.steps * recipe.batch if recipe and recipe.steps else pairs,
        "health": {name: round(value, 4) for name, value in cells_health(candidate, index, seed, size).items()},
        "scores": track.judge(candidate, seed, quick),
    }
    row |= {
        "seconds": {"pretrain": round(trained - began), "judge": round(time.perf_counter() - trained)},
        "code": code,
        "versions": {name: version(name) for name in ("colocate", "timm", "torch")},
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    rows.parent.mkdir(parents=True, exist_ok=True)
    with rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
    means = [f"{name} {mean(cases):.1f}" for name, cases in row["scores"].items()]
    print(label, seed, ", ".join(means), row["health"], flush=True)


def _option(change: str) -> list[str]:
    """The words of an option of `colocate pretrain`."""
    name, _, value = change.partition("=")
    return [f"--{name}", *value.split(",")] if value else [f"--{name}"]


def _code() -> str:
    """The commit that runs, marked where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the status of the process."""
    return dispatch("race", {"pack": pack, "run": run, "report": report}, argv)


if __name__ == "__main__":
    sys.exit(main())
