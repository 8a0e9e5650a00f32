"""PLACEHOLDER slides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import Peer

PEERS: tuple[Peer, ...] = ()


def measure(peer: Peer, python: Path, data: Path, smoke: bool) -> Iterator[dict[str, Any]]:
    """The rows of one peer."""
    yield from ()


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    return []
