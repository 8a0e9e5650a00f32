"""Code of the user's own, by name; and stored recipes whose code has gone, changed or cannot be told apart."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from colocate import load_backbone
from colocate.base.errors import UserError
from colocate.base.plugins import load, name_of
from colocate.cli.main import main
from colocate.evaluation.candidates import find_candidate
from colocate.methods.method import Method
from colocate.methods.settings import MethodConfig, Terms
from colocate.models.backbones import Backbone
from colocate.training.loop import pretrain
from colocate.training.recipe import differences, from_json, read_recipe, to_json
from colocate.training.recipes import find_recipe
from tests.test_cli import sentence
from tests.tiny import tiny_recipe, write_tiles

CONFIG = '''
from __future__ import annotations
from dataclasses import dataclass, replace
from pathlib import Path
from colocate.methods import MethodConfig, MostSimilar, Overlap, Rule, Terms
from colocate.training.recipes import moco_v2

@dataclass(frozen=True)
class First:
    """A rule without a name."""

@dataclass(frozen=True)
class Second:
    """Another one."""

@dataclass(frozen=True)
class Config(MethodConfig):
    """Settings."""
    steepness: {kind} = {default}
    """How steep."""

    @property
    def terms(self):
        return Terms("none", "none", "none")

    def build(self, backbone, forwards_per_step=1):
        raise NotImplementedError

def recipe():
    return replace(moco_v2(), name="", method=Config())
'''


def written(path: Path, kind: str = "float", default: str = "1.5") -> Path:
    path.write_text(CONFIG.format(kind=kind, default=default))
    return path


@dataclass(frozen=True)
class Here(MethodConfig):
    """Settings in a module that can be imported."""

    sizes: tuple[int, ...] = (1, 2)

    @property
    def terms(self) -> Terms:
        return Terms("none", "none", "none")

    def build(self, backbone: Backbone, forwards_per_step: int = 1) -> Method:
        raise NotImplementedError


def test_a_file_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text("things = []\n")
    things = load(f"{file}:things")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.py").symlink_to(file)
    assert load("mine.py:things") is things and load("./mine.py:things") is things and load("link.py:things") is things
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text("things = 3\n")
    assert load("other/mine.py:things") == 3  # another file of the same name
    file.write_text("things = 4\n")
    assert load("mine.py:things") == 4  # edited meanwhile


def test_a_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside_package").mkdir()
    (tmp_path / "outside_package" / "__init__.py").write_text("")
    (tmp_path / "outside_package" / "part.py").write_text("thing = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("outside_package.part:thing") == 7
    with pytest.raises(UserError, match=r"^no Python file or installed module 'outside_package\.prat'$"):
        load("outside_package.prat:thing")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.py:thing", r"nowhere\.py is not a Python file"),
        (".py:thing", r"\.py is not a Python file"),
        ("no_such_module:thing", "no Python file or installed module 'no_such_module'"),
        ("../mine:thing", r"no Python file or installed module '\.\./mine'"),
        ("thing", "no Python file or installed module 'thing'"),
        (":thing", "no Python file or installed module ':thing'"),
        ("mine.py:thign", "mine.py holds no 'thign': did you mean thing?"),
        ("mine.py:xyz", "mine.py holds no 'xyz'$"),
        ("mine.py:", "mine.py holds no ''$"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("thing = 1\n")
    with pytest.raises(UserError, match=says.replace("?", r"\?")):
        load(name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f():\n    return unknown\n\nf()\n", r"broken\.py, line 2: NameError: name 'unknown' is not defined"),
        ("x = 1\nx = = 2\n", r"SyntaxError: .*\(broken\.py, line 2\)"),
        ("\nimport no_such_library\n", r"broken\.py, line 2: ModuleNotFoundError: No module named 'no_such_library'"),
        ("import json\njson.loads('')\n", r"broken\.py, line 2: JSONDecodeError"),
    ],
)
def test_an_error_inside_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in (f"{tmp_path}/broken.py:thing", "broken:thing"):
        with pytest.raises(UserError, match=says) as failing:
            load(name)
        assert failing.value.__cause__ is not None
    (tmp_path / "broken.py").write_text("thing = 1  # mended\n")
    assert load(f"{tmp_path}/broken.py:thing") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "def recipe(size):\n    return size\n",
            r"mine\.py:recipe: TypeError: .*missing 1 required positional argument",
        ),
        ("def recipe():\n    return {}['a']\n", r"mine\.py, line 2: KeyError: 'a'"),
        ("from colocate import ViewConfig\ndef recipe():\n    return ViewConfig(size=0)\n", r"^views: sizes must be"),
        ("def recipe():\n    return 3\n", r"mine\.py:recipe returns int, not a colocate Recipe"),
        ("recipe = 3\n", r"mine\.py:recipe is not a function"),
    ],
)
def test_a_function_that_gives_no_recipe_is_told(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=says):
        find_recipe(f"{tmp_path}/mine.py:recipe")


def test_leaving_is_no_error_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("raise KeyboardInterrupt\n")
    for _ in range(2):  # nothing half loaded stays
        with pytest.raises(KeyboardInterrupt):
            load(f"{tmp_path}/leaves.py:thing")


def test_a_class_is_found_by_its_name(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.py")
    for thing in (load(f"{file}:Config"), Here):
        assert load(name_of(thing)) is thing
    assert name_of(load(f"{file}:Config")) == f"{file.resolve()}:Config"
    assert name_of(Here) == "tests.test_outside:Here"


def test_a_class_that_cannot_be_found_again_is_refused() -> None:
    class Local:
        pass

    notebook = type("Typed", (), {"__module__": "colocate_outside_gone"})
    for thing in (Local, notebook):
        with pytest.raises(UserError, match="define it in a file, and not within a function or class"):
            name_of(thing)


def test_a_running_script_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = written(tmp_path / "script.py")
    script.write_text(script.read_text() + "\nraise RuntimeError('ran again')\n")
    main_module = type(sys)("__main__")
    main_module.__file__ = str(script)
    exec(compile(written(tmp_path / "text.py").read_text(), script, "exec"), vars(main_module))
    monkeypatch.setitem(sys.modules, "__main__", main_module)
    recipe = replace(tiny_recipe(Path(), Path()), method=main_module.Config())  # type: ignore[attr-defined]
    assert from_json(to_json(recipe), "there", trust=True) == recipe


def test_a_recipe_of_the_users_own_survives_json(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.py")
    for recipe in (find_recipe(f"{file}:recipe"), replace(tiny_recipe(Path(), Path()), method=Here((3,)))):
        assert from_json(to_json(recipe), "there", trust=True) == recipe and differences(recipe, recipe) == {}
    assert find_recipe(f"{file}:recipe").name == "recipe"


@pytest.mark.parametrize(
    ("kind", "default", "says"),
    [
        ("First | Second", "Second()", "does not come back from JSON .* a `rule` field"),
        ("int", "2.5", "Config: steepness: .* integer"),
        ("Path", "Path('here')", "Config cannot be stored as JSON: .*PosixPath"),
        ("object()", "None", "has a field that JSON cannot hold"),
        ("Missing", "None", "has a field that JSON cannot hold"),
    ],
)
def test_settings_that_would_not_come_back_are_refused(tmp_path: Path, kind: str, default: str, says: str) -> None:
    recipe = find_recipe(f"{written(tmp_path / 'mine.py', kind, default)}:recipe")
    with pytest.raises(UserError, match=says):
        to_json(recipe)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: file.unlink(), "run.json: its method cannot be had: .*mine.py is not a Python file.*method.kind"),
        (lambda file: file.write_text("Confix = 3\n"), "mine.py holds no 'Config': did you mean Confix?"),
        (lambda file: file.write_text("Config = 3\n"), "mine.py:Config, its method.kind, is not a MethodConfig"),
        (lambda file: file.write_text("Config = \n"), "its method cannot be had: .*SyntaxError"),
        (lambda file: file.write_text("Config = {}['a']\n"), "mine.py, line 1: KeyError"),
        (lambda file: written(file, "float", "2.5"), "mine.py:Config has changed since the recipe was stored"),
    ],
)
def test_code_that_has_changed_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, says: str
) -> None:
    file, run = written(tmp_path / "mine.py"), tmp_path / "run.json"
    run.write_text(to_json(find_recipe(f"{file}:recipe")))
    assert type(read_recipe(run, trust=True).method).__name__ == "Config"
    del sys.modules[load(f"{file}:Config").__module__]  # as a new process
    change(file)
    with pytest.raises(UserError, match=says.replace("?", r"\?")):
        read_recipe(run, trust=True)
    assert sentence(capsys, "pretrain", "--from", run, "--trust")
    with pytest.raises(UserError):
        main(["pretrain", "--from", str(run), "--trust", "--debug"])


def test_a_moved_file_is_found_at_its_new_place(tmp_path: Path) -> None:
    file, run = written(tmp_path / "mine.py"), tmp_path / "run.json"
    content = json.loads(to_json(find_recipe(f"{file}:recipe")))
    moved = file.rename(tmp_path / "moved.py")
    content["method"]["kind"] = f"{moved}:Config"
    run.write_text(json.dumps(content))
    assert read_recipe(run, trust=True).method == load(f"{moved}:Config")()


def test_a_method_that_colocate_does_not_have() -> None:
    content = json.loads(to_json(tiny_recipe(Path(), Path())))
    for kind in ("simclr", 3, None, ["moco"]):
        content["method"]["kind"] = kind
        with pytest.raises(UserError, match="there: its method cannot be had: no Python file or installed module"):
            from_json(json.dumps(content), "there", trust=True)


def test_no_command_runs_code_that_a_folder_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run folder from somebody else: a file that leaves a trace when it is run is planted at every place."""
    trace, planted = tmp_path / "trace", tmp_path / "planted.py"
    write_tiles(tmp_path / "tiles")
    run = pretrain(tiny_recipe(tmp_path / "tiles", tmp_path / "run", steps=2))
    planted.write_text(f"{CONFIG.format(kind='float', default='1.5')}\nopen({str(trace)!r}, 'w').close()\n")
    method = {"kind": f"{planted}:Config", "steepness": 1.5}
    for file in (run / "recipe.json", run / "backbone.json"):
        content = json.loads(file.read_text())
        (content if file.name == "recipe.json" else content["recipe"])["method"] = method
        file.write_text(json.dumps(content))
    checkpoint = run / "checkpoints" / "step000000002.pt"
    state = torch.load(checkpoint)
    torch.save(state | {"recipe": (run / "recipe.json").read_text()}, checkpoint)

    main(["report", str(run)])
    main(["export", str(run), str(tmp_path / "backbone.pth")])
    load_backbone(run)
    find_candidate(str(run)).build(0)
    for words in ([], ["--help"], ["--resume"]):
        said = sentence(capsys, "pretrain", "--from", run / "recipe.json", *words)
        assert "planted.py:Config. Look at it, then add --trust" in said
    words = ["plm", "--data", tmp_path / "tiles", "--out", run, "--resume"]
    assert "another recipe" in sentence(capsys, "pretrain", *words)
    assert not trace.exists()
    with pytest.raises(UserError, match="add --trust to run it"):
        pretrain(read_recipe(run / "recipe.json"), resume=True)
    assert not trace.exists()
    read_recipe(run / "recipe.json", trust=True)
    assert trace.exists()  # the plant works
