"""What `--backbone` may name, and what is refused with its reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from colocate.base.errors import UserError
from colocate.evaluation.candidates import find_candidate
from colocate.models.backbones import Backbone
from colocate.training.checkpoint import write_backbone
from colocate.training.recipe import to_json
from tests.tiny import tiny_recipe

FACTS = {"mean": [0.7, 0.5, 0.7], "std": [0.2, 0.2, 0.2], "steps": 12, "recipe": {"name": "plm"}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    write_backbone(tmp_path / "my-run", Backbone("test_resnet", 16), FACTS)
    return tmp_path / "my-run"


def test_a_run_comes_with_its_weights_and_normalisation(run: Path) -> None:
    for word in (str(run), str(run / "backbone.safetensors")):
        candidate = find_candidate(word)
        assert (candidate.label, candidate.architecture, candidate.steps, candidate.recipe) == (
            "my-run",
            "test_resnet",
            12,
            "plm",
        )
        assert candidate.mean == (0.7, 0.5, 0.7)
        stored = load_file(run / "backbone.safetensors")
        built = candidate.build(seed=0, output_stride=32).net.state_dict()
        assert all(torch.equal(stored[name], built[name]) for name in stored)
    assert find_candidate(f"mine={run}").label == "mine"
    odd = run.rename(run.with_name("lr=0.1"))
    assert (find_candidate(str(odd)).label, find_candidate(f"mine={odd}").label) == ("lr=0.1", "mine")


@pytest.mark.parametrize(
    ("init", "continued"), [("random", False), ("published", True), ("weights.pth", True), ("gone.pth", False)]
)
def test_a_run_says_whether_it_began_with_weights_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str, continued: bool
) -> None:
    """As its recipe, in the form that a run writes. Another run's weights, and a file that is not there any more, may
    be random in stages that did not run."""
    monkeypatch.chdir(tmp_path)
    Path("weights.pth").touch()
    recipe = tiny_recipe(tmp_path, tmp_path)
    for name, began in (("run", init), ("next", str(tmp_path / "run" / "backbone.safetensors"))):
        recipe = replace(recipe, encoder=replace(recipe.encoder, init=began))
        write_backbone(tmp_path / name, Backbone("test_resnet"), FACTS | {"recipe": json.loads(to_json(recipe))})
    assert find_candidate(str(tmp_path / "run")).continued == continued
    assert not find_candidate(str(tmp_path / "next")).continued


def test_random_weights_follow_the_seed() -> None:
    random = find_candidate("random", "test_resnet")
    one, other, again = (random.build(seed).net.state_dict()["conv1.0.weight"] for seed in (0, 1, 0))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_plain_file_needs_its_architecture(run: Path, tmp_path: Path) -> None:
    plain = tmp_path / "weights.safetensors"
    save_file(load_file(run / "backbone.safetensors"), plain)
    assert find_candidate(str(plain), "test_resnet").label == "weights"
    assert find_candidate(str(plain), "test_resnet").fingerprint == find_candidate(str(run)).fingerprint
    with pytest.raises(UserError, match=r"weights.safetensors does not fit resnet18: \d+ of \d+ tensors missing"):
        find_candidate(str(plain))


def test_one_changed_number_is_another_backbone(run: Path) -> None:
    before, path = find_candidate(str(run)).fingerprint, run / "backbone.json"
    tensors = load_file(run / "backbone.safetensors")
    tensors["layer1.0.conv1.weight"].view(-1)[0] += 1e-3
    save_file(tensors, run / "backbone.safetensors")
    path.write_text(json.dumps({name: fact for name, fact in json.loads(path.read_text()).items() if name != "sha256"}))
    assert find_candidate(str(run)).fingerprint != before


def test_another_architecture_or_normalisation_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="is a test_resnet, not a resnet50"):
        find_candidate(str(run), "resnet50")
    with pytest.raises(UserError, match="was trained on images normalised by mean"):
        find_candidate(str(run), mean=(0.5, 0.5, 0.5))
    path = run / "backbone.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"mean": [178.0, 127.0, 178.0]}))
    with pytest.raises(UserError, match="no normalisation of images"):
        find_candidate(str(run))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run or file"):
        find_candidate(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"backbone\.json"):
        find_candidate(str(tmp_path))


@pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "bn1.running_var"])
def test_weights_that_are_no_numbers_are_refused(name: str, run: Path, tmp_path: Path) -> None:
    """A probe of them had a score: everything was called the first class."""
    tensors = load_file(run / "backbone.safetensors")
    tensors[name].view(-1)[-1] = torch.nan
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"weights\.safetensors holds weights that are not finite \("):
        find_candidate(str(tmp_path / "weights.safetensors"), "test_resnet")
