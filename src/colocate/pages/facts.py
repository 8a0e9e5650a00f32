"""What a run's page says in words: facts, settings of its own, warnings, and how to go on."""

from __future__ import annotations

import csv
import shlex
from datetime import UTC, datetime
from pathlib import Path

from colocate.base.text import counted
from colocate.pages.curves import late_mean
from colocate.pages.sample import Shown
from colocate.training.diagnostics import first_warning
from colocate.training.journal import CROWDED
from colocate.training.optim import peak_lr
from colocate.training.recipe import Recipe, StoredMethod, differences
from colocate.training.recipes import RECIPES
from colocate.training.run import planned_steps, resume_command

MOST_WAITING = 0.05  # of the time, for tiles
FEWEST_STEPS = 200  # of fewer, with a row of the journal every ten, the numbers at the end are of a single batch


def title(shown: Shown) -> str:
    """The recipe, and the data by their folder."""
    data = Path(shown.recipe.data)
    name = data.parent.name if shown.index.kind in ("list", "table") else data.name
    return f"{shown.recipe.name or 'pretraining'} on {name}"


def summary(shown: Shown) -> list[str]:
    """The facts that stand below the title."""
    recipe, index = shown.recipe, shown.index
    written = datetime.fromtimestamp((shown.run / "backbone.json").stat().st_mtime, UTC)
    return [
        f"{recipe.encoder.backbone}, {recipe.views.size} px views",
        f"{counted(len(index), 'tile')} of {counted(len(index.sources), 'source')}",
        f"{counted(int(shown.rows[-1]['step']), 'step')} of {counted(recipe.batch * recipe.accumulate, 'pair')}",
        f"seed {recipe.seed}",
        f"{written:%d %B %Y}",
    ]


def facts(shown: Shown) -> dict[str, str]:
    """What was trained, on what, with what and how fast."""
    recipe, index, last = shown.recipe, shown.index, shown.rows[-1]
    known = shown.networks["pretrained"].facts
    machine = recipe.machine
    devices = f", {counted(machine.devices, 'device')}" if machine.devices else ""
    out = f", held out: {'; '.join(recipe.hold_out)}" if recipe.hold_out else ""
    seen = int(last["step"]) * recipe.batch * recipe.accumulate
    return {
        "Network": f"{known['architecture']}, {known['channels']} channels, cells of {known['grid_stride']} px; from "
        f"{recipe.encoder.first_weights}, after step {known['steps']:,}",
        "Method": "; ".join(f"{name}: {word}" for name, word in recipe.method.terms._asdict().items() if word),
        "Data": recipe.data,
        "Tiles": f"{counted(len(index), 'tile')} of {counted(len(index.sources), 'source')}{out}",
        "Fingerprint": index.fingerprint,
        "Licence of the data": recipe.data_licence,
        "Trained": f"{last['step']:,.0f} of {planned_steps(recipe, len(index)):,} steps, {last['epoch']:.1f} epochs, "
        f"{counted(seen, 'pair')} of views of {recipe.views.size} px",
        "Optimiser": f"{recipe.optim.name}, learning rate {peak_lr(recipe.optim, recipe.batch * recipe.accumulate):g}, "
        f"batch {recipe.batch}" + (f" x {recipe.accumulate}" if recipe.accumulate > 1 else ""),
        "Seed": str(recipe.seed),
        "Machine": f"accelerator {machine.accelerator}{devices}, precision {recipe.precision}",
        "Speed": f"{late_mean(shown.rows, 'pairs_per_s'):.1f} pairs/s at the end, "
        f"{late_mean(shown.rows, 'waiting'):.0%} of the time waiting for tiles",
        "Versions": ", ".join(f"{name} {number}" for name, number in known["versions"].items()),
    }


def own_settings(recipe: Recipe) -> list[list[str]] | None:
    """Settings that are not those of the recipe it is called after: name, value, the recipe's.

    None for a recipe that does not come with colocate.
    """
    if recipe.name not in RECIPES:
        return None
    found = differences(recipe, RECIPES[recipe.name]())
    return [[name, *("not set" if one is None else str(one) for one in both)] for name, both in found.items()]


def warnings(shown: Shown) -> list[str]:
    """What of a run wants a look, a sentence each."""
    recipe, rows, run = shown.recipe, shown.rows, shown.run
    planned, step = planned_steps(recipe, len(shown.index)), int(rows[-1]["step"])
    waiting, crowded = (late_mean(rows, column) for column in ("waiting", "crowded"))
    saved = shown.networks["pretrained"].facts["steps"]
    pictured = "" if saved == step else f"; its backbone, and so the pictures of its features, are from step {saved:,}"
    found = [
        step < FEWEST_STEPS
        and f"after {counted(step, 'step')} it is far too early to judge this run: give it {FEWEST_STEPS} or more",
        first_warning(rows, recipe.batch),
        step < planned and f"it is not finished: step {step:,} of {planned:,}{pictured}",
        late_mean(rows, "displaced") < late_mean(rows, "displaced_chance") / 2
        and "cells whose tissue lies elsewhere in the other view are found less than half as often as by chance: the "
        "network may know places rather than tissue (docs/explanation/health.md)",
        waiting > MOST_WAITING
        and f"{waiting:.0%} of the time was spent waiting for tiles: give more --workers, or cut the tiles into shards",
        crowded > CROWDED and f"other processes used the cores {crowded:.0%} of the time: measured speeds are too low",
    ]
    if (skipped := run / "skipped.csv").is_file():
        with skipped.open(newline="") as file:
            number = sum(1 for _ in csv.DictReader(file))
        found.append(f"{counted(number, 'tile')} could not be read, and {'was' if number == 1 else 'were'} left out: "
                     f"{skipped} says why")  # fmt: skip
    return [sentence[0].upper() + sentence[1:] + "." for sentence in found if sentence]


def next_commands(shown: Shown) -> list[tuple[str, str]]:
    """What to do with the run, each with the command to type."""
    run, recipe = shown.run, shown.recipe
    done = shown.rows[-1]["step"] >= planned_steps(recipe, len(shown.index))
    commands = [] if done else [("Continue it", resume_command(run))]
    again = ["--seed", recipe.seed + 1, "--out", "OTHER_RUN"]
    again += ["--trust"] if isinstance(recipe.method, StoredMethod) else []
    words = {
        "See whether it segments better": ["evaluate", "probe", "--data", "DATA", "--backbone", run, "imagenet"],
        "Extract features of slides with it": ["features", run, "SLIDES", "--out", "FEATURES"],
        "Export it for timm, or with --to for torchvision or detectron2": ["export", run, run / "backbone.pth"],
        "Compare it with another run": ["report", run, "OTHER_RUN"],
        "Repeat it with another seed": ["pretrain", "--from", run / "recipe.json", *again],
    }
    return commands + [(why, shlex.join(["colocate", *map(str, command)])) for why, command in words.items()]
