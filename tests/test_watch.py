"""`--probe`: it asks training images only, keeps the best backbone, and changes nothing of what is trained."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from colocate.base.errors import UserError
from colocate.datasets.labelled import Labelled
from colocate.evaluation.candidates import find_candidate
from colocate.evaluation.leakage import tiles_of
from colocate.evaluation.metrics.semantic import record_probe
from colocate.models.backbones import Backbone
from colocate.training import diagnostics as its
from colocate.training import loop
from colocate.training.loop import Interrupted, pretrain
from colocate.training.probes import Agreement, frozen_cells, probe
from colocate.training.recipe import MachineConfig, Recipe
from tests.evaluate.tissue import write_partly, write_tissue
from tests.tiny import tiny_recipe, write_tiles


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    return write_tissue(tmp_path_factory.mktemp("tissue") / "discs")


@pytest.fixture(scope="module", autouse=True)
def small_memory() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(its, "CONFIG", replace(its.CONFIG, neighbours=3))
        yield


@pytest.fixture(scope="module")
def whole(data: Labelled, small_memory: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted: 20 tiles in batches of 8, so two steps an epoch, six in all."""
    return pretrain(recipe(data, tmp_path_factory.mktemp("whole"), "run"))


def recipe(data: Labelled, tmp_path: Path, out: str, **changes: object) -> Recipe:
    tiles = tmp_path / "tiles"
    plain = tiny_recipe(tiles if tiles.exists() else write_tiles(tiles), tmp_path / out)
    return replace(plain, probe=str(data.folder), probe_every=1.0, **changes)  # pyright: ignore[reportArgumentType]


def rows(run: Path) -> list[tuple[int, float]]:
    with (run / "probes.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["dice"])) for row in csv.DictReader(file)]


def scored(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """Let the next probes find these."""
    coming, look = iter(scores), its.OnlineProbe.look

    def looks(*arguments: Any) -> str:
        score = next(coming)
        monkeypatch.setattr(its, "agreement", lambda *_: Agreement(score, 0, 0))
        return look(*arguments)

    monkeypatch.setattr(its.OnlineProbe, "look", looks)


def test_it_asks_every_epoch_and_keeps_the_best(whole: Path) -> None:
    asked = rows(whole)
    assert [step for step, _ in asked] == [2, 4, 6]
    first_best = max(asked, key=lambda row: row[1])
    best = find_candidate(str(whole / "best"))
    assert (best.label, best.steps) == ("run-best", first_best[0])
    index = tiles_of(whole / "best")
    assert index is not None and len(index) == 20


def same_weights(one: Path, other: Path) -> bool:
    return (one / "backbone.safetensors").read_bytes() == (other / "backbone.safetensors").read_bytes()


def test_probing_changes_nothing_of_the_run(data: Labelled, whole: Path, tmp_path: Path) -> None:
    without = pretrain(replace(recipe(data, tmp_path, "without"), probe=""))
    assert same_weights(whole, without) and not (without / "probes.csv").exists()


@pytest.mark.slow
def test_a_resumed_run_is_asked_about_the_same(data: Labelled, tmp_path: Path) -> None:
    started = recipe(data, tmp_path, "run", steps=2)
    pretrain(started)
    other = write_tissue(tmp_path / "other", kind="semantics")
    with pytest.raises(UserError, match=r"other does not hold what .*run was asked about so far: give the same, or"):
        pretrain(replace(started, probe=str(other.folder)), resume=True)
    moved = shutil.copytree(data.folder, tmp_path / "moved")
    pretrain(replace(started, probe=str(moved)), resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
def test_a_run_that_was_killed_at_a_probe_has_the_same_probes(
    data: Labelled, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """While the first best backbone is written, or while the last probe works."""
    parts = recipe(data, tmp_path, "parts")
    parts = replace(parts, machine=replace(parts.machine, save_every=1))
    look = its.OnlineProbe.look

    def killed(*arguments: Any) -> str:
        if not last or arguments[1] == 6:
            raise KeyboardInterrupt
        return look(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(*((its.OnlineProbe, "look") if last else (its, "write_backbone")), killed)
        pretrain(parts)
    resumed = pretrain(parts, resume=True)
    assert rows(resumed) == rows(whole) and same_weights(whole / "best", resumed / "best")


def test_weights_that_are_not_finite_are_never_the_best(
    data: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe asks before a row of the journal would have told."""
    clip = loop.clip

    def poisoned(*args: Any) -> Any:
        next(args[0].parameters()).grad[0] = torch.nan
        return clip(*args)

    monkeypatch.setattr(loop, "clip", poisoned)
    machine = MachineConfig("cpu", workers=0, log_every=6, save_every=6, journals=())
    with pytest.raises(UserError, match="gradient was not finite at batch 0"):
        pretrain(recipe(data, tmp_path, "run", machine=machine))
    assert not (tmp_path / "run" / "best").exists() and not (tmp_path / "run" / "probes.csv").exists()


@pytest.mark.slow
def test_a_score_that_comes_again_is_no_better_after_a_stop(
    data: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(its, "agreement", lambda *_: Agreement(1 / 3, 0, 0))
    first = recipe(data, tmp_path, "run")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        write, seen = its.write_backbone, []

        def stopping(*what: Any) -> None:
            write(*what)
            seen.append(os.kill(os.getpid(), signal.SIGTERM))

        patch.setattr(its, "write_backbone", stopping)
        pretrain(first)
    run = pretrain(first, resume=True)
    assert [step for step, _ in rows(run)] == [2, 4, 6] and find_candidate(str(run / "best")).steps == 2


def best_of(run: Path) -> tuple[int, int, float]:
    told = json.loads((run / "best" / "backbone.json").read_text())
    return told["recipe"]["seed"], told["steps"], told["probe"]["dice"]


@pytest.mark.slow
def test_the_best_stays_where_a_run_goes_back_to_a_checkpoint_before_it(
    data: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worse one, of the steps that a GPU did again with other rounding, took its place."""
    plain = recipe(data, tmp_path, "run")
    plain = replace(plain, machine=replace(plain.machine, save_every=2, keep=3))
    with monkeypatch.context() as patch:
        scored(patch, 0.3, 0.8, 0.5)
        run = pretrain(plain)
    assert [dice for _, dice in rows(run)] == [0.3, 0.8, 0.5] and best_of(run) == (plain.seed, 4, 0.8)
    for late in (4, 6):
        (run / "checkpoints" / f"step{late:09}.pt").unlink()
    with monkeypatch.context() as patch:
        scored(patch, 0.7, 0.6)
        pretrain(plain, resume=True)
    assert [dice for _, dice in rows(run)] == [0.3, 0.7, 0.6] and best_of(run) == (plain.seed, 4, 0.8)


@pytest.mark.slow
def test_the_best_of_a_start_that_saved_nothing_is_not_another_runs(
    data: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = recipe(data, tmp_path, "run")
    machine = replace(plain.machine, save_every=9, log_every=9)
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        scored(patch, 0.8)
        pretrain(replace(plain, machine=machine))
    assert best_of(tmp_path / "run") == (plain.seed, 2, 0.8)
    with monkeypatch.context() as patch:
        scored(patch, 0.3, 0.2, 0.1)
        run = pretrain(replace(plain, seed=plain.seed + 1))
    assert best_of(run) == (plain.seed + 1, 2, 0.3)


def test_only_training_images_are_asked_and_cases_are_not_shared(data: Labelled, tmp_path: Path) -> None:
    watch = its.OnlineProbe(tmp_path, str(data.folder), 0, (0.5,) * 3, (0.5,) * 3)
    assert set(watch.train) | set(watch.judged) == set(data.train("patients"))
    sides = [{data.items[n].source for n in side} for side in (watch.train, watch.judged)]
    assert not sides[0] & sides[1] and [len(side) for side in sides] == [3, 2]


def test_images_that_another_split_tests_on_are_not_asked(data: Labelled, tmp_path: Path) -> None:
    two = write_tissue(tmp_path / "two")
    lines = (two.folder / "items.csv").read_text().splitlines()
    others = ["split:other", *("test" if 2 <= n < 6 else "train" for n in range(16))]
    (two.folder / "items.csv").write_text("".join(f"{a},{b}\n" for a, b in zip(lines, others, strict=True)))
    watch = its.OnlineProbe(tmp_path, str(two.folder), 0, (0.5,) * 3, (0.5,) * 3)
    assert set(watch.train) | set(watch.judged) == {0, 1, 6, 7, 8, 9}


def test_data_that_do_not_serve_are_refused_before_training(data: Labelled, tmp_path: Path) -> None:
    one = write_tissue(tmp_path / "one", per_case=16)
    write_tiles(tmp_path / "tiles")
    for folder, named in ((one.folder, "of one case or none"), (tmp_path / "tiles", "dataset.json")):
        with pytest.raises(UserError, match=named):
            pretrain(replace(recipe(data, tmp_path, f"run-{named[:4]}"), probe=str(folder)))


@pytest.mark.parametrize(("ignored", "blank"), [(0, ()), (255, ()), (0, (2, 3))])
def test_it_scores_as_the_evaluation_does(ignored: int, blank: tuple[int, ...], tmp_path: Path) -> None:
    """Ignored pixels do not count; without them, as class 0, all that can be called would be a positive."""
    data = write_partly(tmp_path / "partly", ignored, blank)
    watch = its.OnlineProbe(tmp_path, str(data.folder), 0, (0.5,) * 3, (0.5,) * 3)
    assert set(blank) < set(watch.judged)
    torch.manual_seed(0)
    backbone = Backbone("test_resnet", cell_stride=8)
    watch.look(1, 1.0, backbone, {"mean": [0.5] * 3, "std": [0.5] * 3})
    config = replace(its.CONFIG, stride=8)
    look = frozen_cells(backbone, data, watch.train, config, (0.5,) * 3, (0.5,) * 3)
    records = [
        record_probe(data.mask(number), found, ignored)["dice"]
        for number, found in probe(look, data, watch.train, watch.judged, config, 0)
    ]
    defined = [dice for dice in records if dice is not None]
    assert len(records) - len(defined) == len(blank)
    assert rows(tmp_path) == [(1, pytest.approx(sum(defined) / len(defined), abs=1e-5))]


def test_images_of_which_nothing_counts_are_refused_before_training(tmp_path: Path) -> None:
    for side, blank in {"learned": (0, 1, 4, 5, 8, 9), "judged": (2, 3, 6, 7)}.items():
        data = write_partly(tmp_path / side, 255, blank)
        with pytest.raises(UserError, match=f"all pixels of its {len(blank)} training images are of the ignored class"):
            pretrain(recipe(data, tmp_path, f"run-{side}"))


def test_a_backbone_that_cannot_take_the_images_is_refused_before_training(data: Labelled, tmp_path: Path) -> None:
    plain = recipe(data, tmp_path, "run")
    encoder, views = replace(plain.encoder, backbone="mixer_s32_224"), replace(plain.views, size=224)
    mixer = replace(plain, encoder=encoder, views=views)
    with pytest.raises(UserError, match="mixer_s32_224 cannot take images of 64 x 96 px"):
        pretrain(mixer)
    assert not (tmp_path / "run" / "journal.csv").exists()
