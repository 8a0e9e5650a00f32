"""The commands as functions: the same settings by the same names, the same sentences, the same files."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import colocate
from colocate.api import configured
from colocate.base.errors import UserError
from colocate.cli.main import main
from colocate.datasets.labelled import Labelled
from colocate.evaluation.settings import task_for
from colocate.methods.settings import DistilConfig
from colocate.prediction.image import Objects
from colocate.prediction.settings import PredictConfig
from colocate.training.recipe import Recipe, leaves, to_json
from colocate.training.recipes import RECIPES, find_recipe
from tests.evaluate.tissue import discs, write_tissue
from tests.phantom_slide import write_slides
from tests.prepare.releases import write_folder
from tests.tiny import tiny_recipe, write_tiles

TINY = {"accelerator": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> colocate.Run:
    folder = tmp_path_factory.mktemp("run")
    recipe = tiny_recipe(Path("elsewhere"), Path("nowhere"))
    return colocate.pretrain(recipe, data=write_tiles(folder / "tiles"), out=folder / "out", steps=4, tile_mpp=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tissue(tmp_path_factory.mktemp("tissue") / "discs").folder


def test_a_run_is_what_its_folder_holds(run: colocate.Run) -> None:
    assert [row["step"] for row in run.journal] == [1, 2, 3, 4] and run.recipe.steps == 4
    backbone = run.backbone()
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, backbone.channels, 2, 2)
    assert colocate.Run(run.path).journal == run.journal
    assert colocate.load_backbone(run).facts == backbone.facts  # a run stands where its folder may
    with pytest.raises(UserError, match=r"recipe\.json cannot be read"):
        colocate.Run(run.path / "tiles")


def test_a_run_goes_on_is_not_begun_twice_and_stands_where_its_folder_may(
    run: colocate.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again: dict[str, Any] = {"data": run.recipe.data, "out": run, "steps": 4, "tile_mpp": 0.5}
    with pytest.raises(UserError, match="holds a run already"):
        colocate.pretrain(run.recipe, **again)
    resumed = colocate.pretrain(tiny_recipe(Path(), Path()), resume=True, **again)
    assert resumed.journal == run.journal and resumed.path == run.path and not any(tmp_path.iterdir())
    changed = configured(find_recipe("distil"), {"method": {"teacher": run}, "probe": tmp_path, "init": tmp_path / "w"})
    assert changed.method == DistilConfig(teacher=str(run.path))
    assert (changed.probe, changed.encoder.init) == (str(tmp_path), str(tmp_path / "w"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_option_has_its_name(name: str) -> None:
    """Each value of a recipe, given by the name of its option, arrives where the recipe has it."""
    recipe = find_recipe(name)
    for group in ("encoder", "machine"):
        values = {field: getattr(getattr(recipe, group), field) for field in vars(getattr(recipe, group))}
        plain = Recipe(recipe.method)
        assert configured(plain, values) == replace(plain, **{group: getattr(recipe, group)})
    assert configured(recipe, {"views": {"size": 160}, "epochs": 3}) == replace(
        recipe, views=replace(recipe.views, size=160), epochs=3
    )
    changed = configured(recipe, {"optim": {"lr": 0.5}, "steps": 7, "backbone": "resnet50", "workers": 3})
    before, after = ({**leaves(vars(one))} for one in (recipe, changed))
    assert before.keys() == after.keys() and to_json(changed) != to_json(recipe)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epoch": 3}, "Recipe has no setting 'epoch': did you mean epochs"),
        ({"epochs": "many"}, "Recipe: epochs: Input should be a valid integer"),
        ({"epochs": 0}, "epochs must be 1 or more, not 0"),
        ({"optim": {"rate": 1}}, "OptimConfig has no setting 'rate': there are name, lr"),
        ({"workers": -1}, "workers 0 or more"),
        ({"method": 3}, "Recipe: method"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        configured(find_recipe("plm"), settings)


def test_groups_take_their_own_dataclass() -> None:
    recipe = find_recipe("plm")
    assert configured(recipe, {"optim": replace(recipe.optim, lr=1.0)}) == configured(recipe, {"optim": {"lr": 1.0}})
    assert configured(PredictConfig(), {"batch": 2, "score": 0.25}).device.batch == 2


def test_the_order_of_settings_is_no_matter() -> None:
    values = {"short_side": (1400, 1500), "test_short_side": 1500, "long_side": 2000}  # each alone would be refused
    for names in permutations(values):
        changed = configured(task_for("instances", ""), {name: values[name] for name in names})
        assert {name: getattr(changed, name) for name in values} == values  # pyright: ignore
    with pytest.raises(UserError, match="short_side is a range"):
        configured(task_for("instances", ""), {"test_short_side": 1500, "long_side": 1400})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"semantics": True, "classes": "gland"}, "prepare: classes: Input should be a valid tuple"),
        ({"semantics": True, "class": ("a", "b")}, "prepare: class: Unexpected keyword argument"),
        ({"parts": "object"}, "prepare: parts: Input should be 'objects' or 'together'"),
        ({"mpp": "fine"}, "prepare: mpp: Input should be a valid number"),
    ],
)
def test_options_of_the_wrong_kind_are_refused(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        colocate.prepare("folder", write_folder(tmp_path / "mine"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_one_name_is_no_sequence_of_letters(tmp_path: Path) -> None:
    src = write_folder(tmp_path / "mine")
    for names in (["gland"], ("gland",)):
        data = colocate.prepare("folder", src, tmp_path / type(names).__name__, classes=names)
        assert isinstance(data, Labelled) and data.classes == ("gland",)
    with pytest.raises(UserError, match="journals: Input should be a valid tuple"):
        configured(find_recipe("plm"), {"journals": "tensorboard"})


@pytest.mark.slow
def test_from_slides_to_objects(
    run: colocate.Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = write_slides(tmp_path / "slides", 2, 1024, mpp=0.24)
    assert colocate.tile(slides, tmp_path / "tiles", mpp=0.48, size=64, min_sharpness=0, workers=1).tiles > 4
    assert colocate.features(run, slides, tmp_path / "features", mpp=0.48, size=64, **TINY).worked == 2
    asked: dict[str, Any] = {"data": data, "out": tmp_path / "results", "seeds": 1, **TINY}
    results = colocate.evaluate("probe", backbones=[run, "random"], architecture="test_resnet", **asked)
    assert len(results.files) == 2 and "image Dice" in str(results) and results.models == []
    asked |= {"short_side": (96, 128), "test_short_side": 128, "proposals": 9, "detections": 6}
    fit = {"steps": 2, "batch": 2}
    judged = colocate.evaluate("instances", backbones=run, smoke=True, fit=fit, keep_models=True, **asked)
    model = colocate.load_model(judged.models[0], "cpu")
    assert (model.task, model.classes) == ("instances", ("gland",)) and model.mpp
    found = model.predict(discs(1, 64, 80)[0].permute(1, 2, 0).numpy(), mpp=0.5, score=0.01)
    assert isinstance(found, Objects) and found.labels(64, 80).max() == len(found.outlines)
    with pytest.raises(UserError, match="not float64 of"):
        model.predict(np.zeros((4, 4, 3)))
    assert colocate.predict(model, slides / "s0.tif", tmp_path / "out", window=512, overlap=32, **TINY).worked == 1
    words = [str(judged.models[0]), str(slides / "s0.tif"), "--out", str(tmp_path / "out"), "--accelerator", "cpu"]
    main(["predict", *words, "--window", "512", "--overlap", "32"])
    assert "0 slides in" in capsys.readouterr().out  # of the same settings


def test_a_wrong_task_or_backbone_is_named(run: colocate.Run, data: Path) -> None:
    with pytest.raises(UserError, match="no task 'instance': there are instances, contours, semantics, probe"):
        task_for("instance", str(data))
    with pytest.raises(UserError, match="no setting 'seed': did you mean seeds"):
        colocate.evaluate("probe", data=data, backbones=run, seed=1)
    with pytest.raises(UserError, match="two backbones are called the same"):
        colocate.evaluate("probe", data=data, backbones=[run, run])


@pytest.mark.parametrize("task", ["probe", pytest.param("instances", marks=pytest.mark.slow), "contours", "semantics"])
def test_scores_do_not_depend_on_torchs_defaults(task: Any, data: Path, tmp_path: Path) -> None:
    """With torch.set_default_device("cuda") (for which "meta" stands) or another type: tracebacks, or other scores."""
    image = discs(0, 64, 80)[0].permute(1, 2, 0).numpy()

    def scored(out: str) -> tuple[Any, str]:
        small = {"short_side": (64, 64), "test_short_side": 64, "proposals": 9, "detections": 6}
        few: dict[str, Any] = {"probe": {}, "instances": small}.get(task, {"crop": 64})
        if task != "probe":
            few |= {"fit": {"steps": 2, "batch": 2}, "keep_models": True}
        given: dict[str, Any] = {"data": data, "backbones": "random", "architecture": "test_resnet"}
        results = colocate.evaluate(task, **given, out=tmp_path / out, seeds=1, smoke=True, **few, **TINY)
        found = [colocate.load_model(model, "cpu").predict(image) for model in results.models]
        return json.loads(results.files[0].read_text())["records"], repr(found)

    plain = scored("plain")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert scored("other") == plain
    finally:
        torch.set_default_dtype(torch.float32)
