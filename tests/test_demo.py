"""The demo in small: its files, its held-out slides, what happens the second time. In full (slow): it has learned."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from colocate.base.errors import UserError
from colocate.cli.demo import TRIAL, make_demo, pairs_per_s
from colocate.data.index import Index
from colocate.pages.sample import masks_beside, read_run, resized
from colocate.training.journal import read_journal
from colocate.training.probes import nearest_neighbour_probe
from colocate.training.recipe import EncoderConfig, MachineConfig, Recipe, read_recipe
from colocate.training.recipes import colocate_demo

SMALL = {"tiles": 24, "held_out": 3, "size": 64, "mpp": 2.0}


@pytest.fixture(scope="module")
def tiny_recipe() -> Recipe:
    recipe = colocate_demo()
    return replace(
        recipe,
        batch=8,
        encoder=EncoderConfig("test_resnet"),
        views=replace(recipe.views, size=64, area=(0.25, 1.0)),
        method=replace(recipe.method, norm_group=8),
        machine=MachineConfig("cpu", workers=0, log_every=1, journals=()),
    )


@pytest.fixture(scope="module")
def tiny_demo(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo of 24 tiles of three slides, one of them held out, and of the fewest steps."""
    out = tmp_path_factory.mktemp("tiny") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("colocate.cli.demo.LEAST", 3)
        patch.setattr("colocate.cli.demo.pairs_per_s", lambda _: 100.0)
        assert make_demo(out, tiny_recipe, seconds=0, **SMALL) == out / "report.html"
    return out


def test_page_run_and_tiles_are_there(tiny_demo: Path) -> None:
    assert {entry.name for entry in tiny_demo.iterdir()} == {"phantom", "run", "report.html"}
    assert (tiny_demo / "run" / "backbone.safetensors").is_file()
    assert "<h1>colocate-demo on phantom</h1>" in (tiny_demo / "report.html").read_text()


def test_whole_slides_are_held_out(tiny_demo: Path) -> None:
    index = Index.open(tiny_demo / "run" / "tiles.arrow")
    assert index.sources == ["slide00", "slide01"]
    split = masks_beside(index)
    assert split is not None
    assert (len(split.train.images), len(split.test.images)) == (16, 8)


@pytest.mark.slow
def test_a_finished_demo_is_only_drawn_again(
    tiny_demo: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the steps that it took: how many fit is not asked again."""
    again = tmp_path / "again"
    shutil.copytree(tiny_demo, again, copy_function=shutil.copy2)
    (again / "report.html").unlink()
    weights = (again / "run" / "backbone.safetensors").stat().st_mtime_ns
    monkeypatch.setattr("colocate.cli.demo.pairs_per_s", lambda _: pytest.fail("measured again"))
    assert make_demo(again, tiny_recipe, seconds=1000, **SMALL) == again / "report.html"
    assert (again / "run" / "backbone.safetensors").stat().st_mtime_ns == weights
    assert (again / "report.html").is_file() and read_recipe(again / "run" / "recipe.json").steps == 3


def test_the_speed_is_that_of_the_recipe_here(
    tiny_recipe: Recipe, tiny_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optim = replace(tiny_recipe.optim, warmup_epochs=100)
    recipe = replace(tiny_recipe, data=str(tiny_demo / "phantom" / "tiles.csv"), optim=optim)
    began = time.perf_counter()
    found = pairs_per_s(recipe)
    assert found > 0.5 * TRIAL * recipe.batch / (time.perf_counter() - began)
    assert "warm-up" not in capsys.readouterr().out  # which is as long as the run, here alone


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, tiny_recipe: Recipe) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.txt.*another --out"):
        make_demo(tmp_path, tiny_recipe, **SMALL)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_the_full_demo_ends_healthy(tmp_path: Path) -> None:
    """A page, features that did not collapse, cells matched above chance, glands found better than before."""
    page = make_demo(tmp_path / "demo", replace(colocate_demo(), steps=40), tiles=160)
    assert 100_000 < page.stat().st_size < 5_000_000
    last = read_journal(tmp_path / "demo" / "run")[-5:]
    for row in last:
        assert row["feature_std"] > 0.2
        assert row["effective_rank"] > 4
    chance = sum(row["correspondence_chance"] for row in last)
    assert sum(row["correspondence"] for row in last) > 1.5 * chance
    shown = read_run(tmp_path / "demo" / "run")
    split = masks_beside(shown.index)
    assert split is not None
    train, test = (resized(part.images, shown.px) for part in (split.train, split.test))
    look = {"mean": shown.recipe.views.mean, "std": shown.recipe.views.std}
    before, after = (
        nearest_neighbour_probe(network, train, split.train.masks, test, split.test.masks, **look).dice
        for network in shown.networks.values()
    )
    assert after > before + 0.02
