"""What the documents show is true: commands run, Python runs, names and files exist."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import pkgutil
import re
import shlex
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
import tyro

from colocate.cli.main import COMMANDS, main
from colocate.training import loop
from colocate.training.recipe import Recipe
from colocate.training.recipes import find_recipe
from tests.documented import FOUND, JUDGED, LOOKING, PAGES, ROOT, TUNED, blocks, commands, make_world
from tests.notebooks import executed

BLOCKS = [block for page in PAGES for block in blocks(page)]
TAUGHT = ("README.md", "docs/index.md", "docs/tutorials/", "docs/how-to/")  # where commands are not only read but run
ELSEWHERE = "docs/how-to/own-method.md"  # tests/test_extending.py runs it
READ = [block for block in BLOCKS if block.language == "sh" and block.page != ELSEWHERE and not block.lacking()]
SHOWN = sorted({command for block in READ for command in commands(block)})
# Words that stand for something else, or that need a network.
INSTEAD: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"\bRUN RUN\b": "run moco",
    r"\b(TILES|SLIDES|RUN|FEATURES|OBJECTS)\b": lambda word: word[0].lower(),
    r"\bMODEL\b": "results/instances-*-run-*",
    r"\$r(?=.*--method.concepts)": "concl",
    r"\$r(?=.*--method.best)": "vicregl",
    r"\$r\b": "plm",
    r"^(predict \S+) slides": r"\1 slides/s0.tif",
    r"\$SAME": "--data tiles",
    r"\$QUEUE": "",
    r"\$\w+": "1",
    r"\bimagenet\b": "imagenet=weights.safetensors",
    r"\bTASK\b": "probe",
    r"\bRECIPE\b": "plm",
    r"\bKIND\b": "folder",
    r"\[(.*?)\]": r"\1",
    r" \.\.\.": "",
}


def words_of(command: str) -> list[str]:
    """A shown command as words, without what stands for something else."""
    for pattern, word in INSTEAD.items():
        command = re.sub(pattern, word, command)
    return shlex.split(command)


FOLLOWED = {
    "docs/tutorials/pretrain.md": ("tiles",),
    "docs/tutorials/compare.md": ("tiles", "glas"),
    "docs/tutorials/slides-to-qupath.md": ("slides", "annotations"),
}
"""Pages whose commands run one after the other, and what a reader starts with."""
TOLD = {block.page: list[str]() for block in READ if block.page.startswith(TAUGHT)}
for block in READ:
    if block.page in TOLD and "not run" not in block.marks:
        TOLD[block.page] += [shlex.join(words_of(command)) for command in commands(block)]
ALONE = sorted({command for page, told in TOLD.items() if page not in FOLLOWED for command in told})
TRAINED = "--views.size 64 --batch 8 --steps 1 --workers 0 --accelerator cpu --journals --method.norm-group 4"
# What makes a command small; of an option given twice the last counts.
SMALL = {
    "tile": "--mpp 0.5 --size 128 --workers 1",
    "pretrain": f"--backbone test_resnet {TRAINED}",
    "pretrain colocate-continue": f"--backbone test_resnet --init weights.safetensors {TRAINED}",
    "export": "--to timm",
    "evaluate probe": JUDGED,
    "evaluate semantics": TUNED,
    "evaluate instances": FOUND,
    "features": LOOKING,
    "start": "--dry-run",  # tests/test_start.py runs it in full
    "predict": "--accelerator cpu --workers 0 --window 256",
}
# Runs that are left out, and why.
LEFT_OUT = {
    "demo": "three minutes; tests/test_demo.py runs it in small",
    "--scheduler": "needs a cluster; tests/tiling/test_cluster.py",
    "--nodes": "needs SLURM",
}
NEEDED = {name for block in BLOCKS for name in block.marks.get("needs", "").split()}  # may not be there yet


class Reached(Exception):
    """The command understood its words."""


@pytest.fixture
def only_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands understand their words, and then raise `Reached`."""

    def reached(*_: object, **__: object) -> Any:
        raise Reached

    def cli(command: Any, **options: Any) -> Any:
        return parse(functools.wraps(command)(reached) if inspect.isfunction(command) else command, **options)

    parse = tyro.cli
    monkeypatch.setattr(tyro, "cli", cli)
    monkeypatch.setattr("colocate.cli.pretrain.check_is_there", reached)
    stored = replace(find_recipe("plm"), data="tiles", out="run")
    monkeypatch.setattr("colocate.cli.pretrain.read_recipe", lambda *_, **__: stored)
    monkeypatch.setattr("colocate.cli.pretrain.find_recipe", lambda name: find_recipe("plm" if ":" in name else name))
    monkeypatch.setattr("colocate.evaluation.protocol.evaluate", reached)
    monkeypatch.setattr("colocate.evaluation.candidates.find_candidates", lambda words, *_: list(words))
    monkeypatch.setattr("colocate.cli.evaluate.taken", lambda option, words: ("", list(words)))


def test_every_shown_command_is_understood(only_parsing: None, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for command in SHOWN:
        words = [word for word in words_of(command) if word != "options"]
        if words[0] not in COMMANDS and words[0] != "COMMAND":
            wrong.append(f"{command}: no such command")
        elif not {"COMMAND", "--help"} & set(words):
            try:
                main(words)
            except (Reached, SystemExit) as end:
                if isinstance(end, SystemExit):
                    wrong.append(f"{command}: {capsys.readouterr().err[:600]}")
    assert len(SHOWN) > 60
    assert wrong == [], "\n".join(wrong)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def inside(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world of the pages, where one may write."""
    for entry in world.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made_by(words: list[str]) -> list[str]:
    """The files and folders that a command makes: they must not be there before."""
    out = [words[place + 1] for place, word in enumerate(words) if word == "--out"]
    return out + (words[2:3] if words[0] == "tile" else words[3:4] if words[0] == "prepare" else [])


def run(command: str, before: Collection[str] = ()) -> set[str]:
    """Run a command in small, here, and see that it made what it was told to; what was made `before` may be there."""
    words = [path for word in shlex.split(command) for path in sorted(map(str, Path().glob(word))) or [word]]
    if left := [why for word, why in LEFT_OUT.items() if word in words]:
        pytest.skip(left[0])
    resumes = "--resume" in words or "--from" in words
    for name in () if resumes else made_by(words):
        if name not in before:
            Path(name).unlink(missing_ok=True)
    assert not {*made_by(words)} & {entry.name for entry in Path().iterdir()} - {*before} or resumes
    small = "" if resumes else SMALL.get(" ".join(words[:2]), SMALL.get(words[0], ""))
    main([*words, *small.split()])
    for name in [] if "--dry-run" in small else made_by(words):
        assert Path(name).exists(), name
    return {*made_by(words)}


@pytest.mark.slow
@pytest.mark.parametrize("command", ALONE)
def test_taught_commands_run(command: str, inside: Path) -> None:
    run(command)


@pytest.mark.slow
@pytest.mark.parametrize("page", FOLLOWED)
def test_tutorials_can_be_followed(page: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom: each command finds what those before it left, and is not refused for it."""
    for name in FOLLOWED[page]:
        (tmp_path / name).symlink_to(world / name)
    monkeypatch.chdir(tmp_path)
    made = set[str]()
    for command in TOLD[page]:
        if not {*made_by(shlex.split(command))} & {*FOLLOWED[page]}:
            made |= run(command, made)


README = """
import torch
tiles = torch.randint(0, 256, (4, 3, 256, 256), dtype=torch.uint8)
encoder = torch.nn.Conv2d(3, 16, kernel_size=32, stride=32)
negatives = torch.randn(64, 16)
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "python"} - {ELSEWHERE}))
def test_python_runs(page: str, world: Path, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of one page run in order in one namespace."""
    names: dict[str, Any] = {"__name__": "page"}
    if page == "README.md":  # it says what these are in words
        exec(README, names)
    train = loop.pretrain
    monkeypatch.setattr(loop, "pretrain", lambda recipe, resume=False: train(shrunk(recipe), resume))
    for block in [block for block in BLOCKS if block.page == page and block.language == "python"]:
        code = compile(block.text, page, "exec")
        if "not run" not in block.marks and not block.lacking():
            made = [name for pair in MADE.findall(block.text) for name in pair if (inside / name).is_symlink()]
            for name in made:
                (inside / name).unlink()
            exec(code, names)
            for name in made:  # the next block finds the world's again
                shutil.rmtree(inside / name)
                (inside / name).symlink_to(world / name)


# What a call writes: out=..., or its last word without a name.
MADE = re.compile(
    r'\bout="([\w-]+)"|colocate\.(?:tile|prepare|features|predict)\((?:[^,]*, )+?"([\w-]+)"(?:, \w+=.*)?\)'
)


def shrunk(recipe: Recipe) -> Recipe:
    """The recipe for a step on a few tiles."""
    machine = replace(recipe.machine, accelerator="cpu", workers=0, journals=())
    encoder = replace(recipe.encoder, backbone="test_resnet")
    method = replace(recipe.method, norm_group=4)
    return replace(recipe, encoder=encoder, machine=machine, method=method, batch=8, steps=1, epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/**/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    """In small: after the cell of parameters others are set."""
    notebook = nbformat.read(path, as_version=4)
    place = next(n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("STEPS, TILES = 2, 32"))
    executed(notebook, resources={"metadata": {"path": str(tmp_path)}})
    assert path.stat().st_size < 300_000


def load(path: Path) -> Any:
    """A Python file of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_are_what_the_functions_draw() -> None:
    """But for photographs within, which other versions of Pillow compress otherwise."""
    drawn = load(ROOT / "docs/pictures/draw.py").pictures()
    for name, text in drawn.items():
        committed = (ROOT / "docs/pictures" / name).read_text()
        assert re.sub(r'base64,[^"]*', "", text) == re.sub(r'base64,[^"]*', "", committed), name


def test_documented_names_and_files_exist() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for name in sorted(set(re.findall(r"\bcolocate(?:\.\w+)+", text))):
        if name not in NEEDED:
            assert pkgutil.resolve_name(name) is not None, name
    source = ROOT / "src" / "colocate"
    for path in sorted(set(re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", text)) - {"methods/NAME.py"}):
        assert any((folder / path).is_file() for folder in (ROOT, source)), path
    for path in sorted(set(re.findall(r"\btests/[\w/]+\.py\b", text))):
        assert (ROOT / path).is_file(), path
    tree = (ROOT / "docs/explanation/architecture.md").read_text().split("```")[1]
    shown = set(re.findall(r"\b(\w+\.py)\b", tree))
    assert shown <= {path.name for path in source.rglob("*.py")}


def test_paths_of_documents_in_the_code_exist() -> None:
    """Messages, docstrings and comments name pages that are there."""
    for folder in ("src", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for named in re.findall(r"\bdocs/[\w/-]+\.(?:md|png|jsonl)\b", path.read_text()):
                assert (ROOT / named).is_file(), f"{path}: {named}"
