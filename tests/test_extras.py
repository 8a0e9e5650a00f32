"""What is not installed: the core pretrains from tiles; the rest ends in one sentence with the line for pip."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from PIL import Image

from colocate.base.errors import EXTRAS
from colocate.cli.main import COMMANDS
from tests.tiny import write_tiles

ROOT = Path(__file__).parents[1]
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Without(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Without())
import importlib.util as util
found = util.find_spec
util.find_spec = lambda name, *rest: None if name in {names} else found(name, *rest)

import io, json
from contextlib import redirect_stderr, redirect_stdout
from colocate.cli.main import main
answers = []
for words in json.loads(sys.argv[1]):
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(io.StringIO()) as errors:
        try:
            main(words)
            status = 0
        except SystemExit as leaving:
            status = leaving.code
    answers.append((status, said.getvalue(), errors.getvalue()))
print(json.dumps(answers))
"""
TINY = ["--backbone", "test_resnet", "--views.size", "64", "--batch", "8", "--steps", "2", "--workers", "0"]
TINY += ["--accelerator", "cpu", "--method.norm-group", "4", "--method.queue-length", "16"]


def run(names: set[str], *commands: list[object]) -> list[tuple[int, str, str]]:
    """Commands in one process that has not these packages: status, what each prints, what it says of errors."""
    code, words = WITHOUT.format(names=names), [[str(word) for word in words] for words in commands]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def requirements() -> dict[str, set[str]]:
    """What each extra brings by itself, as packages to import, and the core's own under ""."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules = {name.lower(): module for module, names in packages_distributions().items() for name in names}
    brought: dict[str, set[str]] = {}
    for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        names = {re.match(r"[\w.-]+(\[.*?\])?", line)[0] for line in lines}  # type: ignore[index]
        brought[extra] = {modules.get(name, name) for name in names - {"openslide-bin"}}
    return brought


def test_every_package_beyond_the_core_is_known_with_its_extras(requirements: dict[str, set[str]]) -> None:
    def brings(extra: str) -> set[str]:
        inner = [re.fullmatch(r"colocate\[(.*)\]", name) for name in requirements[extra]]
        others = [brings(name) for found in inner if found for name in found[1].split(",")]
        return {name for name in requirements[extra] if "[" not in name}.union(*others)

    extras = requirements.keys() - {"", "dev", "all"}
    known = {"segmentation_models_pytorch": "segmentation-models-pytorch", "mlflow": "mlflow-skinny"}
    for package, bring in EXTRAS.items():
        assert package not in requirements[""]
        names = {package, known.get(package, package)}
        # cluster brings slides' packages, but is asked for by --scheduler alone
        assert {*bring} == {extra for extra in extras if names & brings(extra)} - ({"cluster"} - {*bring}), package
    assert set().union(*(command.extras for command in COMMANDS.values())) <= extras
    packages = {known.get(name, name) for name in EXTRAS}
    assert packages == set().union(*(brings(extra) for extra in extras))
    assert brings("all") == packages - {"wandb", "mlflow-skinny"} <= brings("dev")


@pytest.mark.slow
def test_the_core_pretrains_and_the_rest_says_what_to_install(tmp_path: Path) -> None:
    tiles, folder, out = write_tiles(tmp_path / "tiles", count=12), tmp_path / "run", tmp_path / "out"
    for path in sorted(tiles.iterdir())[:4]:
        Image.open(path).save(path.with_suffix(".tif"))
    train = ["pretrain", "plm", "--data", tiles, "--out", folder, *TINY]
    works: list[list[object]] = [
        train,
        ["inspect", tiles],
        ["report", folder],
        ["export", folder, tmp_path / "backbone.pth"],
        ["recipes"],
    ]
    fails: dict[str, list[list[object]]] = {
        "slides": [["tile", tiles, out], ["pretrain", "plm", "--data", slide_in(tmp_path), "--out", out, *TINY]],
        "features": [["features", "random", tiles, "--out", out]],
        "slides,evaluation": [["predict", tmp_path, tiles, "--out", out]],
        "evaluation": [["evaluate", "probe", "--data", tiles], ["table", tmp_path], ["prepare", "glas", tmp_path, out]],
        "wandb": [[*train[:5], out, *TINY, "--journals", "wandb"]],
    }
    answers = run({*EXTRAS}, *works, *(words for commands in fails.values() for words in commands))
    for status, _, errors in answers[: len(works)]:
        assert status == 0, errors
    said = answers[0][1] + answers[0][2]
    assert said.count("tensorboard is not installed: pip install 'colocate[trackers]'") == 1
    assert (folder / "journal.csv").is_file() and not (folder / "tensorboard").exists()
    wanted = [extras for extras, commands in fails.items() for _ in commands]
    for extras, (status, _, errors) in zip(wanted, answers[len(works) :], strict=True):
        assert status == 2 and "Traceback" not in errors
        (sentence,) = [line for line in errors.splitlines() if line.startswith("colocate: ")]
        assert sentence.endswith(f" is not installed: pip install 'colocate[{extras}]'"), sentence
    assert not out.exists()


def slide_in(folder: Path) -> Path:
    """A folder with a slide, as its name says."""
    slide = folder / "slides" / "a.svs"
    slide.parent.mkdir(exist_ok=True)
    slide.write_bytes(b"II*\0")
    return slide.parent


@pytest.mark.slow
def test_slides_alone_need_openslide_and_features_no_decoder(tmp_path: Path) -> None:
    slides, out = slide_in(tmp_path), tmp_path / "out"
    see: list[object] = ["features", "random", slides, "--out", out, "--architecture", "test_resnet", "--mpp", "0.5"]
    absent = {"openslide", "distributed", "imagehash", "segmentation_models_pytorch"}
    cut, cluster, features = run(
        absent, ["tile", slides, out], ["tile", slides, out, "--scheduler", "tcp://nowhere:1"], see
    )
    assert cut[0] == 2 and cut[2].endswith("openslide is not installed: pip install 'colocate[slides]'\n")
    assert cluster[2].endswith("distributed is not installed: pip install 'colocate[slides,cluster]'\n")
    assert features[2].endswith("openslide is not installed: pip install 'colocate[features]'\n")
