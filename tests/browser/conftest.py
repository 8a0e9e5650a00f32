"""Fixtures of the tests in a browser: `new_tab()` opens one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.browser import Tabs


@pytest.fixture
def new_tab(chromium: Browser) -> Iterator[Tabs]:
    """Opens tabs, as `new_tab(scheme="dark", width=400)`, and closes them after the test."""
    tabs = Tabs(chromium)
    yield tabs
    tabs.close()
