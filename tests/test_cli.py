"""The command line: what it does when all is well, and its one sentence when something is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from colocate.base.errors import UserError
from colocate.cli.main import COMMANDS, main
from colocate.training.recipe import differences, from_json, read_recipe, to_json
from colocate.training.recipes import RECIPES, find_recipe, summary
from tests.tiny import tiny_recipe, write_tiles

TINY = ["--backbone", "test_resnet", "--views.size", "64", "--batch", "8", "--steps", "2", "--workers", "0"]
TINY += ["--accelerator", "cpu", "--journals", "--method.norm-group", "4", "--method.queue-length", "16"]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("data") / "tiles")


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a-long-name-of-a-run"
    main(["pretrain", "plm", "--data", str(tiles), "--out", str(out), *TINY, "--optim.lr", "0.01"])
    return out


def sentence(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a failing command says: one line on stderr after notes, exit status 2, no traceback."""
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("colocate: ")]
    assert len(lines) == 1
    return lines[0]


def test_tiles_in_a_backbone_out(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = tmp_path / "again"
    recipe = read_recipe(run / "recipe.json")
    assert recipe.optim.lr == 0.01 and recipe.method.match is not None and recipe.name == "plm"
    main(["pretrain", "--from", str(run / "recipe.json"), "--out", str(again)])
    assert (run / "backbone.safetensors").read_bytes() == (again / "backbone.safetensors").read_bytes()
    main(["export", str(run), str(tmp_path / "out.pth"), "--to", "timm"])
    assert (tmp_path / "out.pth").exists()
    said = capsys.readouterr().out
    assert f"done: {again}" in said and "labels" not in said


@pytest.mark.slow
def test_runs_are_compared_in_whole_rows_on_any_terminal(
    tiles: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "a-long-name-of-a-moco-v2"
    main(["pretrain", "moco-v2", "--data", str(tiles), "--out", str(other), *TINY])
    monkeypatch.setenv("COLUMNS", "40")
    capsys.readouterr()
    pictures = ["--out", str(tmp_path / "both.html"), "--png", str(tmp_path / "both.png")]
    main(["report", str(other), str(run), *pictures])
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("| a-long-name")]
    assert len(rows) == 2 and all(row.endswith("% |") for row in rows)
    assert f"page: {tmp_path}/both.html" in said and (tmp_path / "both.html").is_file()
    with Image.open(tmp_path / "both.png") as page:
        assert page.width > 900


def test_a_recipe_of_the_users_own_on_pictures_of_every_kind(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles", count=4)
    picture = Image.open(tiles / "00.png")
    picture.convert("L").save(tiles / "grey.png")
    picture.convert("RGBA").save(tiles / "clear.png")
    picture.convert("L").convert("I;16").save(tiles / "deep.tif")
    picture.resize((100, 80)).save(tiles / "large.bmp")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\nfrom colocate.training.recipes import moco_v2\n"
        "def fast():\n    return replace(moco_v2(), name='', steps=1, seed=5)\n"
    )
    main(["pretrain", f"{tmp_path}/mine.py:fast", "--data", str(tiles), "--out", str(tmp_path / "run"), *TINY[:-4]])
    recipe = read_recipe(tmp_path / "run" / "recipe.json")
    assert (recipe.name, recipe.seed, recipe.method.match) == ("fast", 5, None)
    assert not (tmp_path / "run" / "skipped.csv").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.name == name
    assert from_json(to_json(recipe), "there") == recipe
    assert differences(recipe, recipe) == {}


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    listed = capsys.readouterr().out
    assert all(f"{name}: {summary(recipe)}" in listed for name, recipe in RECIPES.items())


POSITIONAL = {"inspect": "TILES", "export": "RUN FILE", "report": "RUN ...", "table": "RESULTS ..."}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what stands without an option; a class of settings is wrapped as a function is (see below)."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert f"colocate {command}" in said and POSITIONAL.get(command, "") in said.splitlines()[0]
    assert command != "predict" or "A smaller picture is one window of its own size." in said


def test_help_is_wrapped_where_the_terminal_ends() -> None:
    """Not where the source breaks its lines. In a process of its own: the tests' checks of shapes wrap functions."""
    command = [sys.executable, "-m", "colocate", "view", "--help"]
    done = subprocess.run(command, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True, check=True)
    assert "wrote, or runs; in any order." in done.stdout


def test_the_short_help_names_every_option_once(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("plm", "concl", "distil"):
        with pytest.raises(SystemExit):
            main(["pretrain", name, "--help"])
        text = capsys.readouterr().out
        assert len(text.splitlines()) < 50 and max(map(len, text.splitlines())) <= 120
        with pytest.raises(SystemExit):
            main(["pretrain", name, "--help-all"])
        options = set(re.findall(r"^\W{1,3}(--[a-z][\w.-]*)", capsys.readouterr().out, re.M))
        assert len(options) > 40
        for option in options:
            group, dot, rest = option.partition(".")
            row = f"{group}.NAME" if dot else "--NAME"
            listed = text.partition(f"  {row} ")[2].partition("  --")[0].replace(",", " ").split()
            assert (f"  {option} " in text) != ((rest if dot else group[2:]) in listed), option


def test_shells_are_told_every_command_and_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--tyro-print-completion", "bash"])
    (tmp_path / "complete.sh").write_text(capsys.readouterr().out)

    def completed(*words: str) -> set[str]:
        typed = " ".join(f"'{word}'" for word in words)
        script = f"source {tmp_path}/complete.sh; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _tyro_colocate; "
        script += r'printf "%s\n" "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        return set(done.stdout.split("\n")) - {""}

    assert completed("colocate", "") >= COMMANDS.keys()
    assert completed("colocate", "pretrain", "plm", "--da") == {"--data", "--data-licence"}
    assert completed("colocate", "evaluate", "instances", "--back") == {"--backbone"}
    assert completed("colocate", "tile", "SLIDES", "OUT", "--m") >= {"--mpp", "--manifest-only", "--min-tissue"}
    main(["--tyro-print-completion", "zsh"])
    assert capsys.readouterr().out.startswith("#compdef colocate")
    with pytest.raises(SystemExit):
        main(["--tyro-print-completion", "fish"])
    assert "bash (or zsh)" in capsys.readouterr().err


def test_every_option_of_a_recipe_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "plm", "--help-all"])
    text = capsys.readouterr().out.replace("│", "").split("--")
    options = [part for part in text if "(default:" in part or "STR" in part]
    assert len(options) > 45
    unexplained = [part for part in options if len(part.split("(default:")[0].split()) < 4]
    assert unexplained == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pretrian"], "no command 'pretrian': did you mean pretrain?"),
        (["pretrain", "--from", "{empty}"], "empty/recipe.json cannot be read"),
        (["pretrain", "plm", "--data", "{tiles}", "--out", "{tmp}/run", "--tile-mpp", "250"], "--tile-mpp: 250 micro"),
        (["pretrain"], "which recipe?"),
        (["pretrain", "pml", "--data", "x", "--out", "y"], "no recipe 'pml': did you mean plm?"),
        (["pretrain", "plm", "--out", "y"], "give --data TILES"),
        (["pretrain", "plm", "--data", "x"], "give --out RUN"),
        (["pretrain", "plm", "--from", "r.json"], "not both"),
        (["pretrain", "plm", "--cache=memory"], "--cache and --cache-gb are gone"),
        (["bench", "plm"], "colocate bench is gone"),
        (["pretrain", "plm", "--hold-out", "a=1", "--hold-out=b=2"], "--hold-out is given twice, and only the last"),
        (["evaluate", "probe", "--backbone", "random", "--backbone", "{empty}"], "--backbone is given twice"),
        (["pretrain", "plm", "--hold_out", "a=1", "--data", "x", "--hold-out", "a=2"], "--hold-out is given twice"),
        (["pretrain", "plm", "--data", "{tiles}", "--out", "{tmp}/run", "--probe-every=-1"], "probe_every must be"),
        (["pretrain", "--from", "nowhere.json"], "nowhere.json cannot be read"),
        (["pretrain", "plm", "--data", "nowhere", "--out", "{tmp}/run"], "nowhere"),
        (["pretrain", "plm", "--data", "{empty}", "--out", "{tmp}/run"], "empty"),
        (["pretrain", "plm", "--data", "{table}", "--out", "{tmp}/run"], "path"),
        (["pretrain", "plm", "--data", "{tiles}", "--out", "{tmp}/run"], "20 tiles, fewer than a batch"),
        (["pretrain", "plm", "--data", "{tiles}", "--out", "{tmp}/run", "--optim.lr", "-1"], "lr must be positive"),
        (
            ["pretrain", "plm", "--data", "{tiles}", "--out", "{tmp}/run", "--batch", "8", "--views.mpp", "0.5"],
            "--tile-mpp",
        ),
        (["export", "{empty}", "out.pth"], "backbone.json"),
        (["report", "{empty}"], "empty"),
        (["report"], "give the folder of a run"),
        (["report", "{empty}", "{tmp}"], "empty is not the folder of a run"),
        (["compare", "{empty}"], "colocate compare is now colocate report RUN RUN ..."),
        (["inspect", "{empty}"], "empty"),
        (["table"], "give folders of results that `colocate evaluate` wrote: colocate table RESULTS ..."),
        (["evaluate", "probe", "glas", "--backbone", "random"], "a data set is given by --data glas"),
        (
            ["evaluate", "probe", "--data", "{empty}", "--backbone", "random"],
            "empty has no dataset.json: give a folder",
        ),
        (["inspect", "nowhere"], "nowhere cannot be opened (No such file or directory): give a folder of tiles"),
        (["inspect", "--data", "{tiles}"], "no option --data: give its value alone: colocate inspect TILES"),
        (["tile", "{tiles}", "--out", "{tmp}/cut"], "no option --out: give its value alone: colocate tile SLIDES OUT"),
        (["prepare", "glas", "{tiles}", "--out=x"], "no option --out: give its value alone: colocate prepare KIND SRC"),
        (["pretrain", "plm", "{tiles}", "--out", "{tmp}/run"], "tiles stands where an option should: tiles are given"),
    ],
)
def test_wrong_words_get_one_sentence(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("file,label\na.png,1\n")
    places = {"tmp": tmp_path, "empty": tmp_path / "empty", "tiles": tiles, "table": tmp_path / "table.csv"}
    assert says in sentence(capsys, *(word.format(**places) for word in words))


def test_a_stored_recipe_with_an_unknown_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(to_json(tiny_recipe(tmp_path / "tiles", tmp_path / "run")))
    content["optim"]["learning_rate"] = 1
    (tmp_path / "old.json").write_text(json.dumps(content))
    said = sentence(capsys, "pretrain", "--from", tmp_path / "old.json")
    assert "old.json: optim.learning_rate" in said


def test_data_that_a_recipe_names_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "recipe.json").write_text(to_json(tiny_recipe(Path("tiles"), tmp_path / "run")))
    said = sentence(capsys, "pretrain", "--from", tmp_path / "recipe.json")
    assert f"tiles cannot be opened (No such file or directory): {tmp_path}/recipe.json names it from" in said
    assert f"another than {tmp_path}/elsewhere: go there, or give --data" in said
    assert "go there" not in sentence(capsys, "pretrain", "--from", tmp_path / "recipe.json", "--data", "none")


def test_masks_given_as_tiles_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiles(tmp_path / "set" / "images", count=8)
    for path in sorted((tmp_path / "set" / "images").iterdir()):
        mask = Image.open(path).convert("L").point(lambda value: value // 100)
        (tmp_path / "set" / "masks").mkdir(exist_ok=True)
        mask.save(tmp_path / "set" / "masks" / path.name)
    main(["pretrain", "plm", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "run"), *TINY])
    assert "note: 8 of 16 tiles hold 32 values or fewer, as masks of labels do" in capsys.readouterr().out


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UserError):
        main(["pretrain", "plm", "--debug"])


@pytest.mark.parametrize("word", ["recipes", "--help"])
def test_a_reader_that_has_seen_enough_gets_no_complaint(word: str) -> None:
    command = [sys.executable, "-m", "colocate", word]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--optim.lr", "0,001"], "--optim.lr: 0,001 is not a number: write 0.001"),
        (["--optim.lr=-,5"], "--optim.lr: -,5 is not a number: write -.5"),
        (["--optim.lr", "1,234.5"], "--optim.lr: 1,234.5 is not a number"),
        (["--views.mpp", "0,5"], "--views.mpp: 0,5 is not a number: write 0.5"),
        (["--batch", "1,000"], "--batch: 1,000 is not a whole number"),
        (["--optim.lr", "nan"], "--optim.lr: nan is not valid: give a finite number"),
        (["--method.temperature", "inf"], "--method.temperature: inf is not valid: give a finite number"),
    ],
)
def test_what_is_no_number_is_said(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["pretrain", "plm", "--data", "tiles", "--out", "run", *words])
    said = capsys.readouterr().err
    assert says in said and f"{says}:" not in said
