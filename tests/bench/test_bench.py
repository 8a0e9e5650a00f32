"""`colocate bench` as a whole, in small: its JSON, its picture, its sentences."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from colocate.bench import measure
from colocate.bench.report import NAMES
from colocate.cli import main
from colocate.errors import Interrupted, UserError
from tests.test_cli import TINY, sentence
from tests.tiny import METHODS, tiny_recipe, write_tiles


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("bench") / "tiles")


@pytest.fixture(scope="module")
def written(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one small bench wrote."""
    out = tmp_path_factory.mktemp("out") / "figures" / "here.json"
    main(["bench", "plm", "--data", str(tiles), *TINY, "--seconds", "1", "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def found(written: Path) -> dict[str, Any]:
    return json.loads(written.read_text())


def test_shares_add_up_and_rates_are_of_the_same_step(found: dict[str, Any]) -> None:
    assert set(found["step_share"]) == set(NAMES)
    assert math.isclose(sum(found["step_share"].values()), 1, abs_tol=1e-9)
    assert all(found["alone_ms"][part] > 0 for part in ("views", "network", "optimizer"))
    assert found["alone_ms"]["losses"] >= 0 and found["alone_ms"]["waiting"] >= 0
    assert math.isclose(found["step_ms"] * found["step_pairs_per_s"], 1000 * found["batch"])
    assert math.isclose(found["ceiling_share"] * found["ceiling_pairs_per_s"], found["step_pairs_per_s"])
    assert math.isclose(found["paper_pairs_minutes"] * 60 * found["step_pairs_per_s"], 20_000_000)
    assert found["peak_memory_bytes"] > 100_000_000  # torch alone takes more


def test_recommendations_follow_from_the_figures(found: dict[str, Any]) -> None:
    unhindered = found["step_pairs_per_s"] / (1 - found["step_share"]["waiting"])
    assert set(found["decode_tiles_per_s"]) == {"0", "1"}  # TINY has no workers
    assert found["needed_workers"] == math.ceil(unhindered / found["decode_tiles_per_s"]["1"])
    assert found["recommended_workers"] == min(found["needed_workers"], found["machine"]["cores"])
    rates = {int(batch): rate for batch, rate in found["batch_pairs_per_s"].items()}
    assert list(rates) == [8] and found["recommended_batch"] == 8


def test_the_recipe_is_the_one_of_the_words(found: dict[str, Any], tiles: Path) -> None:
    assert (found["recipe"]["name"], found["recipe"]["batch"], found["data"]) == ("plm", 8, str(tiles))
    assert found["recipe"]["encoder"]["backbone"] == "test_resnet" and found["tiles"] == 20
    assert {"torch", "colocate", "python"} <= set(found["machine"]["versions"]) and found["machine"]["gpu"] is None


def test_the_picture_lies_beside_it_and_nothing_else(written: Path) -> None:
    assert {file.name for file in written.parent.iterdir()} == {"here.json", "here.png"}
    assert 10_000 < written.with_suffix(".png").stat().st_size < 300_000
    with Image.open(written.with_suffix(".png")) as picture:
        assert picture.width > 900


def test_without_data_tiles_are_made_up_and_a_slow_device_gets_smaller_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "tile_seconds", lambda *_: 100.0)
    main(["bench", *TINY, "--batch", "32"])
    said = capsys.readouterr()
    assert "no --data, so tiles are made up" in said.err
    assert "plm (test_resnet), 64 px, precision 32, batch 8, on " in said.out
    assert "32 tiles of made-up tissue" in said.out
    assert "measured with batches of 8: a step of 32 takes about 3200 s here" in said.out
    assert "written: bench.json and bench.png" in said.out
    found = json.loads((tmp_path / "bench.json").read_text())
    assert (found["batch"], found["asked_batch"], found["recipe"]["batch"]) == (8, 32, 32)


def test_one_device_of_several_is_measured_with_its_share(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path, method=METHODS["concl"])
    recipe = replace(recipe, machine=replace(recipe.machine, devices=2, nodes=2))
    one, notes = measure._on_one_device(recipe)
    assert (one.batch, one.machine.devices, one.machine.nodes) == (2, 1, 1) and "one of 4 devices" in notes[0]
    assert one.method.warmup_epochs == 0  # type: ignore[attr-defined]  # the long part of a run, not its start
    alone, notes = measure._on_one_device(tiny_recipe(tmp_path, tmp_path))
    assert alone.batch == 8 and notes == []


def test_a_batch_too_large_for_the_gpu_is_said_in_a_sentence(
    tmp_path: Path, tiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("colocate.bench.whole.pretrain", full)
    with pytest.raises(UserError, match=r"batch of 8 does not fit .* give --batch 4"):
        measure.bench(tiny_recipe(tiles, tmp_path / "bench.json"), seconds=0.1)


def test_asked_to_stop_it_does_not_speak_of_resuming(
    tmp_path: Path, tiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise Interrupted("stopped at step 1 of 2; go on with: colocate pretrain --from /tmp/...")

    monkeypatch.setattr("colocate.bench.whole.pretrain", stopped)
    with pytest.raises(Interrupted, match="nothing was written"):
        measure.bench(tiny_recipe(tiles, tmp_path / "bench.json"), seconds=0.1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bench", "pml"], "no recipe 'pml': did you mean plm?"),
        (["bench", "plm", "--out", "{tmp}/run"], "names no JSON file"),
        (["bench", "plm", "--seconds", "0"], "seconds must be positive"),
        (["bench", "plm", "--data", "nowhere"], "nowhere"),
        (["bench", "plm", "--data", "{tiles}"], "20 tiles, fewer than a batch: give --batch 20"),
        (["bench", "plm", "--data", "{tmp}/slides"], "colocate tile"),
        (["bench", "plm", "--batch", "9", "--accelerator", "cpu", "--devices", "2"], "cannot be shared evenly by 2"),
        (["bench", "--from", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_wrong_words_get_one_sentence(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.svs").write_bytes(b"")
    assert says in sentence(capsys, *(word.format(tmp=tmp_path, tiles=tiles) for word in words))


def test_processes_of_torchrun_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        measure.bench(tiny_recipe(tmp_path, tmp_path))
