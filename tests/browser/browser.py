"""A headless Chromium for the tests of pages: what a page asks for, what its console says, what axe-core finds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, final

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("COLOCATE_AXE") or ROOT / "carry" / "browser" / "node_modules" / "axe-core" / "axe.min.js")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def wanting(what: str) -> NoReturn:
    """Skip a test for want of something; fail where COLOCATE_BROWSER=required says that it must be there."""
    if os.environ.get("COLOCATE_BROWSER") == "required":
        pytest.fail(f"COLOCATE_BROWSER=required, and there is no {what}")
    pytest.skip(f"no {what}")


@contextmanager
def launched() -> Iterator[Browser]:
    """The Chromium that is installed; skips the test where none is."""
    place = next(filter(None, map(shutil.which, NAMES)), None)
    if place is None:
        wanting("Chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=place, args=root)
        yield browser
        browser.close()


def barriers(page: Page, *rules: str) -> list[str]:
    """What axe-core finds serious or critical, by these rules or all, a line each; skips the test where it is not
    installed."""
    if not AXE.is_file():
        wanting("axe-core (make browser)")
    page.evaluate(AXE.read_text())
    only = {"runOnly": {"type": "rule", "values": rules}} if rules else {}
    found: Any = page.evaluate("options => axe.run(options)", only)
    return [
        f"{rule['impact']}: {rule['help']}: {node['html'][:200]}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@final
class Tab:
    """One page of its own context (no cookies, no cache), and what it did."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        """URLs asked for, pictures in the page itself (data:) left out."""
        self.errors: list[str] = []
        """Errors and warnings of the console, exceptions, and requests that failed."""
        page.on("request", lambda asked: self.requests.append(asked.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("requestfailed", lambda asked: self.errors.append(f"{asked.url}: {asked.failure}"))
        page.on("console", lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else None)

    def open(self, place: Path | str) -> Page:
        """Open a file or a URL and wait for all that it loads; returns the page."""
        self.page.goto(place.absolute().as_uri() if isinstance(place, Path) else place, wait_until="load")
        self.requests = [url for url in self.requests if not url.startswith("data:")]
        return self.page


@final
class Tabs:
    """Opens tabs; they are closed at the end of a test."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    def __call__(
        self,
        *,
        javascript: bool = True,
        scheme: Literal["light", "dark"] = "light",
        width: int = 1280,
        height: int = 900,
    ) -> Tab:
        """A new tab: with scripts or without, of a colour scheme, of so many CSS pixels."""
        context = self.browser.new_context(
            java_script_enabled=javascript, color_scheme=scheme, viewport={"width": width, "height": height}
        )
        context.set_default_timeout(20_000)
        return Tab(context.new_page())

    def close(self) -> None:
        for context in self.browser.contexts:
            context.close()
