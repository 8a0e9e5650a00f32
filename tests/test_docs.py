"""Commands, names and files that the documents show exist; commands with the options that they are shown with."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from colocate.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
SHOWN = re.compile(r"(?:^ {4,}|; )(?:\.venv/bin/)?colocate ([^;\n#`]+)", re.M)


def shown() -> Iterator[str]:
    """Every `colocate ...` in a block of code, without brackets and without what a shell puts in."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for command in SHOWN.findall(text):
            yield re.sub(r"[\[\]]|\$\w+", " ", command)


def first_words(command: str) -> tuple[str, ...]:
    """The command, and the recipe or task that its options depend on."""
    name, *rest = command.split()
    if name not in ("pretrain", "evaluate"):
        return (name,)
    chosen = [word for word in rest[:1] if word.islower() and ":" not in word and not word.startswith("-")]
    return (name, *(chosen or ["plm" if name == "pretrain" else "instances"]))


def test_documented_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = sorted(set(shown()))
    assert len(commands) > 30
    known: dict[tuple[str, ...], str] = {}
    wrong = []
    for command in commands:
        words = first_words(command)
        if words[0] not in COMMANDS:
            wrong.append(command)
            continue
        if words not in known:
            with pytest.raises(SystemExit, match="0"):
                main([*words, "--help-all" if words[0] == "pretrain" else "--help"])
            known[words] = capsys.readouterr().out
        options = re.findall(r"--[a-z][\w.-]*", command)
        if words[-1] not in command.split():  # of another recipe: a file's, or one that a shell's variable names
            options = [option for option in options if not option.startswith("--method.")]
        wrong += [f"{command}: {option}" for option in options if option not in known[words]]
    assert wrong == []


def test_documented_names_and_files_exist() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for name in sorted(set(re.findall(r"\bcolocate(?:\.\w+)+", text))):
        assert pkgutil.resolve_name(name) is not None, name
    source = ROOT / "src" / "colocate"
    for path in sorted(set(re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", text)) - {"methods/NAME.py"}):
        assert any((folder / path).is_file() for folder in (ROOT, source)), path
    for path in sorted(set(re.findall(r"\btests/[\w/]+\.py\b", text))):
        assert (ROOT / path).is_file(), path
    tree = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    shown = set(re.findall(r"\b(\w+\.py)\b", tree))
    assert shown <= {path.name for path in source.rglob("*.py")}
