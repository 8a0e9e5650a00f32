"""Commands answer at once: what can be said or refused without torch is, before it is loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from colocate.cli.main import COMMANDS, main
from colocate.training.recipes import RECIPES
from tests.tiny import write_tiles

HEAVY = ("torch", "timm", "torchvision", "lightning_fabric", "scipy", "skimage", "matplotlib")
ASK = """
import sys
from colocate.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as leaving:
    print(leaving.code or 0, end=" ")
print(*({heavy} & sys.modules.keys()))
"""


def loads(*words: object) -> tuple[int, list[str], str]:
    """Exit status of a command in a fresh process, which heavy packages it loaded, and what it said."""
    code = ASK.format(heavy=set(HEAVY))
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True)
    *said, last = done.stdout.splitlines()
    status, *heavy = last.split() if last[:1].isdecimal() else ("0", *last.split())
    return int(status), heavy, "\n".join(said) + done.stderr


def test_the_package_loads_nothing() -> None:
    code = "import sys, colocate; print([name for name in sys.modules if name.partition('.')[0] not in known])"
    code = f"import sys; known = {{*sys.stdlib_module_names, 'colocate'}}; {code}"
    before = subprocess.run([sys.executable, "-c", code.replace(", colocate;", ";")], capture_output=True, text=True)
    after = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert after.stdout == before.stdout != ""  # what the interpreter's own start loads (.pth files)


@pytest.mark.parametrize(
    "words", [["--help"], ["pretrain", "--help"], ["pretrain", "concl", "--help-all"], ["recipes"]]
)
def test_help_is_there_without_torch(words: list[str]) -> None:
    status, heavy, said = loads(*words)
    assert (status, heavy) == (0, []) and "colocate" in said


def test_what_is_mistyped_is_refused_without_torch(tmp_path: Path) -> None:
    tiles, used = write_tiles(tmp_path / "tiles", count=1), tmp_path / "used"
    (used / "checkpoints").mkdir(parents=True)
    (used / "checkpoints" / "step000000001.pt").touch()
    (used / "recipe.json").touch()
    run = ["--data", tiles, "--out", tmp_path / "run"]
    for words, says in (
        (["pretrian"], "did you mean pretrain"),
        (["pretrain", "mistyped"], "no recipe 'mistyped'"),
        (["pretrain", "plm", *run, "--optim.lr", "fast"], "--optim.lr"),
        (["pretrain", "plm", *run, "--epoch", "3"], "--epoch"),
        (["pretrain", "plm", *run, "--method.dense", "2"], "method.dense is a share"),
        (["pretrain", "plm", "--data", tmp_path / "nowhere", "--out", tmp_path / "run"], "nowhere cannot be opened"),
        (["pretrain", "plm", "--data", tiles, "--out", used], "used holds a run already"),
    ):
        status, heavy, said = loads(*words)
        assert (status, heavy) == (2, []), words
        assert says in said
    assert not (tmp_path / "run").exists()


def test_the_short_help_names_every_option_once(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("plm", "concl", "distil"):
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


def test_every_recipe_builds_what_its_settings_name() -> None:
    """Settings name their network in an import of their own, which nothing else looks at."""
    from colocate.models.backbones import Backbone

    for name in ("plm", "vicregl", "concl", "colocate-continue"):
        method = RECIPES[name]().method
        assert type(method.build(Backbone("test_resnet"))).__name__ + "Config" == type(method).__name__
