"""What every test shares: shapes checked as annotated, one thread, repeatable examples, and where the data lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

from tests import checked

# Before anything imports colocate: every annotated shape in it is checked on every call, in tests only.
install_import_hook("colocate", f"{checked.__name__}.checker")
for light in (
    "evaluation.metrics.glas",
    "evaluation.metrics.objects",
    "evaluation.metrics.semantic",
    "evaluation.settings",
    "methods.rules",
    "methods.settings",
    "training.journal",
    "training.optim",
    "training.recipe",
    "prediction.settings",
):
    checked.name_types(import_module(f"colocate.{light}"))

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start, too: several tests share the cores

hypothesis.settings.register_profile(
    "colocate",
    deadline=None,  # the first example pays for lazy initialisation
    max_examples=40,
    derandomize=True,  # CI fails on what a change broke, not on what luck found
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("search", parent=hypothesis.settings.get_profile("colocate"), derandomize=False)
hypothesis.settings.load_profile(os.environ.get("COLOCATE_HYPOTHESIS", "colocate"))

ROOT = Path(__file__).parents[1]


def _folder(variable: str, default: str) -> Path:
    folder = ROOT / os.environ.get(variable, default)
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: name it with {variable}")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference values made by the methods' own published code."""
    return _folder("COLOCATE_GOLDEN", "../shared/golden")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets (its README says what is in it)."""
    folder = _folder("COLOCATE_SHARED", "../shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: name its parent with COLOCATE_SHARED")
    return folder


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 tiles, to be read only."""
    from tests.tiny import write_tiles

    return write_tiles(tmp_path_factory.mktemp("tiles"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium for the tests of a module: while Playwright is at work, nothing else runs asyncio."""
    from tests.browser.browser import launched

    with launched() as browser:
        yield browser
