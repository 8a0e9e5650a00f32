"""The house keeps its shape: imports point down only, files are neither long nor crumbs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "colocate"

# From the ground up: a package imports only from those before it (docs/explanation/architecture.md).
PACKAGES = [
    "base",
    "core",
    "models",
    "methods",
    "slides",
    "data",
    "datasets",
    "training",
    "evaluation",
    "pages",
    "prediction",
    "viewer",
    "api",
    "cli",
    "__main__",
]
ORDER = {package: floor for floor, package in enumerate(PACKAGES)}
MOST_LINES, LEAST_LINES = 450, 40


def room(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """The packages of colocate that a file imports: at its head, within functions, or by a name in quotes (cli)."""
    package = ["colocate", *path.relative_to(SOURCE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.:]+", node.value):
            names = [node.value.replace(":", ".")]
        found |= {name.split(".")[1] for name in names if name.startswith("colocate.")}
    return found & ORDER.keys()


def test_imports_point_down() -> None:
    upward = {}
    for path in sorted(SOURCE.rglob("*.py")):
        if path == SOURCE / "__init__.py":
            continue
        assert room(path) in ORDER, f"{path.name}: give it a floor"
        floor = ORDER[room(path)]
        if wrong := {other for other in imports(path) if other != room(path) and ORDER[other] >= floor}:
            upward[str(path.relative_to(SOURCE))] = wrong
    assert upward == {}


def test_no_file_is_too_long_or_a_drawer() -> None:
    files = [path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 20
    assert [str(path) for path in files if len(path.read_text().splitlines()) > MOST_LINES] == []
    assert [str(path) for path in files if path.stem in ("utils", "util", "helpers", "misc", "common")] == []


def test_no_file_is_a_crumb() -> None:
    """A short file that only one other imports belongs into that."""
    sources = {path: path.read_text() for path in SOURCE.rglob("*.py")}
    for path, text in sources.items():
        if path.stem.startswith("__") or len(text.splitlines()) >= LEAST_LINES:
            continue
        module = ".".join(("colocate", *path.relative_to(SOURCE).with_suffix("").parts))
        assert sum(f"from {module} import" in other for other in sources.values()) > 1, path


def test_the_root_is_read_at_a_glance() -> None:
    entries = [path.stem for path in SOURCE.iterdir() if not path.name.startswith("__") and path.name != "py.typed"]
    assert sorted(entries) == sorted(PACKAGES[:-1]) and len(entries) <= 14
    assert (SOURCE / "py.typed").is_file()


def test_the_lock_names_no_index_and_every_pin_has_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pins = re.split(r"\n(?=\S)", lock.strip())
    assert len(pins) > 100 and all("==" in pin and "--hash=sha256:" in pin for pin in pins)
