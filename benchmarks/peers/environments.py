"""A virtual environment for each peer, at pinned versions: nothing of a peer is ever a dependency of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from colocate.base.errors import UserError

OURS = "colocate"


@dataclass(frozen=True)
class Peer:
    """What a lab would pick instead."""

    name: str
    requirements: tuple[str, ...]  # as pip takes them, pinned
    licence: str


def environment(peer: Peer, root: Path) -> Path:
    """The Python of a peer's environment, made where it is not there yet; this one's where nothing is to be installed.

    Raises:
        UserError: it does not install, with the installer's own words.
    """
    if not peer.requirements:
        return Path(sys.executable)
    folder = root / peer.name
    python, mark = folder / "bin" / "python", folder / "requirements.json"
    wanted = json.dumps(peer.requirements)
    if mark.is_file() and mark.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    uv = Path(sys.executable).parent / "uv"
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, folder],
        [uv, "pip", "install", "--quiet", "--python", python, *peer.requirements],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{peer.name} does not install: {' '.join(done.stderr.split())[:600]}")
    mark.write_text(wanted)
    return python


def size_gb(python: Path) -> float:
    """What an environment takes on disk, in gigabytes; hard links count once."""
    seen = {}
    for path in python.parents[1].rglob("*"):
        if path.is_file() and not path.is_symlink():
            stat = path.stat()
            seen[stat.st_ino] = stat.st_size
    return sum(seen.values()) / 1e9
