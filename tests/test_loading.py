"""What is loaded for what: torch and its like take seconds, and come only where they are needed."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import colocate
from colocate.cli.main import COMMANDS, main
from colocate.evaluation.settings import TASKS
from tests.evaluate.made import write_result
from tests.phantom_slide import tissue_slide, write_pyramid
from tests.tiny import write_tiles

HEAVY = {"torch", "torchvision", "timm", "lightning_fabric", "matplotlib"}
LIGHT_TOO = HEAVY | {"numpy", "PIL", "skimage", "scipy", "pyarrow"}
TYPED = """
import contextlib, json
from colocate.cli.main import main
for words in json.loads(sys.argv[1]):
    with contextlib.suppress(SystemExit):
        main(words)
"""


def loaded(code: str, *commands: Iterable[object]) -> set[str]:
    """Names of the modules that a fresh Python has loaded after some code, which may be given commands."""
    given = json.dumps([[str(word) for word in words] for words in commands])
    command = [sys.executable, "-c", f"import sys\n{code}\nprint('loaded:', *sys.modules)", given]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    names = set(said.stdout.rpartition("loaded:")[2].split())
    assert "colocate" in names, said.stderr
    return names


def test_what_needs_no_command_loads_none() -> None:
    assert not loaded(TYPED, ["--help"], ["--version"], ["pretrian", "plm"], []) & LIGHT_TOO


@pytest.mark.parametrize("own", [None, "ACTIVE"])
def test_threads_sleep_while_they_wait_unless_told_otherwise(own: str | None) -> None:
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = "import os\nfrom colocate.cli.main import main\nmain(['--version'])\nprint(os.environ['OMP_WAIT_POLICY'])"
    told = {"OMP_WAIT_POLICY": own} if own else {}
    said = subprocess.run([sys.executable, "-c", code], env=env | told, capture_output=True, text=True, check=True)
    assert said.stdout.split()[-1] == (own or "PASSIVE")


@pytest.mark.slow
def test_tiles_are_cut_without_what_trains(tmp_path: Path) -> None:
    pixels, _ = tissue_slide(640, mpp=1.0)
    slide = write_pyramid(tmp_path / "slide.tif", pixels, mpp=1.0)
    out = tmp_path / "out"
    cut = ["tile", slide, out, "--mpp", 2, "--size", 64, "--min-sharpness", 0.5, "--workers", 1]
    names = loaded(TYPED, ["tile", "--help"], ["tile", tmp_path / "nowhere", out], cut)
    assert "colocate.slides.one_slide" in names and (out / "manifest.parquet").is_file()
    assert not names & HEAVY


HELPED = ("pretrain", "start", "prepare", "evaluate", "features", "predict", "export", "report", "table", "demo")


def test_help_is_there_without_torch() -> None:
    helps = ([name, "--help"] for name in HELPED)
    assert not loaded(TYPED, ["pretrain", "concl", "--help-all"], ["recipes"], *helps) & HEAVY


@pytest.mark.slow
def test_what_is_mistyped_is_refused_without_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiles, used = write_tiles(tmp_path / "tiles", count=1), tmp_path / "used"
    (used / "checkpoints").mkdir(parents=True)
    (used / "checkpoints" / "step000000001.pt").touch()
    (used / "recipe.json").touch()
    run = ["--data", tiles, "--out", tmp_path / "run"]
    mistyped: list[tuple[list[object], str]] = [
        (["pretrain", "mistyped"], "no recipe 'mistyped'"),
        (["pretrain", "plm", *run, "--optim.lr", "fast"], "--optim.lr"),
        (["pretrain", "plm", *run, "--epoch", "3"], "--epoch"),
        (["pretrain", "plm", *run, "--method.dense", "2"], "method.dense is a share"),
        (["pretrain", "plm", "--data", tmp_path / "nowhere", "--out", tmp_path / "run"], "nowhere cannot be opened"),
        (["pretrain", "plm", "--data", tiles, "--out", used], "used holds a run already"),
        (["start", tmp_path / "nowhere", "--out", tmp_path / "out"], "nowhere does not exist"),
        (["predict", "model", tmp_path / "nowhere", "--out", tmp_path / "out"], "nowhere does not exist"),
        (["evaluate", "instance"], "evaluate instance? There are instances, contours"),
        (["evaluate", "probe", "--backbone", "random"], "give --data DATA"),
        (["evaluate", "contours", "--backbone", "random", "--fraction", "2"], "fraction is a share"),
        (["features", "run", tmp_path, "--out", tmp_path / "out", "--of", "rows"], "--of"),
    ]
    assert not loaded(TYPED, *(words for words, _ in mistyped)) & HEAVY
    for words, says in mistyped:
        with pytest.raises(SystemExit, match="2"):
            main([str(word) for word in words])
        assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_results_are_tabulated_without_torch(tmp_path: Path) -> None:
    for task in TASKS:
        write_result(tmp_path, task)
    names = loaded(TYPED, ["table", tmp_path])
    assert "colocate.evaluation.table" in names and not names & HEAVY


def test_slides_are_looked_at_without_torch() -> None:
    names = loaded("import colocate.viewer.server")
    assert names & HEAVY == {"matplotlib"}  # whose colours show what is similar


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_where_the_usage_says_and_what_it_says(name: str) -> None:
    function = COMMANDS[name].load()
    assert function.__name__ == name
    assert (function.__doc__ or "").splitlines()[0] == COMMANDS[name].summary


def test_the_public_names_are_there() -> None:
    assert all(getattr(colocate, name).__name__ == name for name in colocate.__all__)
    assert set(colocate.__all__) <= set(dir(colocate))
    with pytest.raises(AttributeError, match="no attribute 'overlapp'"):
        colocate.overlapp  # noqa: B018


@pytest.mark.parametrize("name", colocate.__all__)
def test_public_names_are_documented_and_typed(name: str) -> None:
    thing = getattr(colocate, name)
    assert thing.__doc__ and not thing.__doc__.startswith(f"{name}(")  # a dataclass's own is no documentation
    if isinstance(thing, type) and issubclass(thing, Exception):
        return
    parameters = inspect.signature(thing).parameters.values()
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)
    assert inspect.isclass(thing) or inspect.signature(thing).return_annotation is not inspect.Signature.empty
