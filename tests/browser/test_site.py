"""The site: it builds without a warning, asks no other machine for anything, and has no barrier."""

from __future__ import annotations

import re
from contextlib import chdir
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import colocate
from colocate.cli.main import COMMANDS
from tests.browser.browser import ROOT, Tabs, barriers

pytestmark = pytest.mark.slow

KINDS = ("index", "tutorials/pretrain_and_look", "reference/commands", "reference/methods", "results/journey")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with chdir(ROOT):
        config = load_config("mkdocs.yml", site_dir=str(folder))  # strict: a warning is an error
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return folder


def test_all_is_there_and_nothing_is_asked_of_other_machines(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    assert len(pages) > 40
    for page in pages:
        assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=.?(?:https?:)?//", page.read_text()), page
    shown = (site / "reference/commands.html").read_text()
    assert all(f'id="{name}"' in shown for name in COMMANDS)
    names = (site / "reference/python.html").read_text()
    assert all(f'id="colocate.{name}"' in names for name in colocate.__all__)


def test_pages_of_each_kind_have_no_barrier(site: Path, new_tab: Tabs) -> None:
    light, dark = new_tab(), new_tab(scheme="dark")
    for name in KINDS:
        assert barriers(dark.open(site / f"{name}.html"), "color-contrast") == [], name
        page = light.open(site / f"{name}.html")
        # The theme puts wide tables into boxes that scroll. Browsers let the keyboard in; axe-core asks for tabindex.
        page.evaluate("document.querySelectorAll('.md-typeset__scrollwrap').forEach(box => box.tabIndex = 0)")
        assert barriers(page) == [], name
