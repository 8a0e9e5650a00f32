"""What is installed: a wheel with all of the package and nothing else, on systems that lack what Linux has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

from colocate.base import processes
from colocate.base.files import reserve
from colocate.cli.main import main
from colocate.data.index import Index
from colocate.data.loader import tile_loader, tile_order
from tests.tiny import write_tiles

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_the_package_and_the_source_what_builds_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with ZipFile(wheel) as zipped:
        held = {name for name in zipped.namelist() if ".dist-info/" not in name}
        metadata = zipped.read(next(name for name in zipped.namelist() if name.endswith("METADATA"))).decode()
    ours = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert held == ours | {"colocate/py.typed"} | {name for name in held if not name.endswith(".py")}
    assert "colocate/py.typed" in held and all(name.startswith("colocate/") for name in held)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(f"Provides-Extra: {extra}" in metadata for extra in extras)
    with tarfile.open(source) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "src/colocate/py.typed"} <= inside


@pytest.mark.slow
def test_a_system_without_what_linux_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: workers are spawned, and three calls are not there."""
    index = Index.build(write_tiles(tmp_path / "tiles"), tmp_path / "tiles.arrow")
    order = {"batch": 4, "seed": 0, "rank": 0, "world": 1, "order": tile_order(index, "tiles"), "start": 0, "stop": 2}
    here = [batch.images for batch in tile_loader(index, **order, workers=0)]
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.delattr(signal, "sigwaitinfo")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert processes.cores() == os.cpu_count() and processes.start_method() == "spawn"
    with (tmp_path / "file").open("wb") as file:
        reserve(file, 1000)
    assert (tmp_path / "file").stat().st_size == 1000
    there = [batch.images for batch in tile_loader(index, **order, workers=1)]
    assert all(one.equal(other) for one, other in zip(here, there, strict=True))


def test_windows_is_told_where_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("colocate.cli.main.os.name", "nt")
    with pytest.raises(SystemExit):
        main(["recipes"])
    assert "on Windows, install it within WSL 2" in capsys.readouterr().err
