"""Every command that goes on where it stopped, killed with SIGKILL at random moments and started again at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.killed import Command, Running, contents, survive
from tests.phantom_slide import tissue_slide, write_pyramid

CUT = ["--mpp", "1", "--size", "64", "--min-tissue", "0.1", "--min-sharpness", "0"]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for seed in range(4):
        write_pyramid(folder / f"s{seed}.tif", tissue_slide(1024, mpp=1.0, seed=seed)[0], mpp=1.0)
    return folder


def tile(slides: Path, *more: str) -> Command:
    return Command(lambda out: ["tile", str(slides), str(out), *CUT, *more])


@pytest.mark.parametrize("workers", ["1", "3"])
def test_tile(slides: Path, tmp_path: Path, workers: str) -> None:
    survive(tile(slides, "--workers", workers), tmp_path)


def test_two_calls_of_tile_share_the_slides(slides: Path, tmp_path: Path) -> None:
    """Each ends well, and says so when all is there."""
    command = tile(slides, "--workers", "1")
    Running(command.words(tmp_path / "alone")).end()
    both = [Running(command.words(tmp_path / "shared")) for _ in range(2)]
    for running in both:
        assert "done: " in running.end()
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
