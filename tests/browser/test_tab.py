"""The tab sees what a page does: requests, errors, barriers, scripts, colours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.browser import Tabs, barriers

pytestmark = pytest.mark.slow

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title><link rel="icon" href="data:,">
<style>:root {{ color-scheme: light dark }}</style></head><body><main><h1>Plain</h1>{}</main></body></html>"""


def test_requests_errors_barriers_scripts_colours_and_sizes_are_seen(tmp_path: Path, new_tab: Tabs) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGE.format("<p id=p>without</p><script>p.textContent = 'with'</script>"))
    for javascript, says in ((False, "without"), (True, "with")):
        tab = new_tab(javascript=javascript, scheme="dark", width=400)
        opened = tab.open(page)
        assert opened.text_content("p") == says
        assert opened.evaluate("[innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]") == [400, True]
    assert (tab.requests, tab.errors, barriers(opened)) == ([page.as_uri()], [], [])
    page.write_text(PAGE.format('<img src="gone.png"><script>console.error("odd"); throw new Error("thrown")</script>'))
    tab = new_tab()
    tab.open(page)
    assert (tmp_path / "gone.png").as_uri() in tab.requests
    assert all(any(word in error for error in tab.errors) for word in ("gone.png", "odd", "thrown"))
    assert any("critical: " in found and "gone.png" in found for found in barriers(tab.page))
