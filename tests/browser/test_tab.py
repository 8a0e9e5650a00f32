"""The tab sees what a page does: requests, errors, barriers, scripts, colours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.browser import Tabs, barriers

pytestmark = pytest.mark.slow

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title><link rel="icon" href="data:,">
<style>:root {{ color-scheme: light dark }}</style></head><body><main><h1>Plain</h1>{}</main></body></html>"""


def written(folder: Path, body: str) -> Path:
    (folder / "page.html").write_text(PAGE.format(body))
    return folder / "page.html"


def test_a_plain_page_has_nothing_to_say(tmp_path: Path, new_tab: Tabs) -> None:
    page, tab = written(tmp_path, "<p>Text</p>"), new_tab()
    tab.open(page)
    assert (tab.requests, tab.errors, barriers(tab.page)) == ([page.as_uri()], [], [])


def test_requests_errors_and_barriers_are_seen(tmp_path: Path, new_tab: Tabs) -> None:
    bad = '<img src="gone.png"><script>console.error("odd"); throw new Error("thrown")</script>'
    tab = new_tab()
    tab.open(written(tmp_path, bad))
    assert (tmp_path / "gone.png").as_uri() in tab.requests
    assert all(any(word in error for error in tab.errors) for word in ("gone.png", "odd", "thrown"))
    assert any("critical: " in found and "gone.png" in found for found in barriers(tab.page))


def test_scripts_colours_and_sizes_are_as_asked(tmp_path: Path, new_tab: Tabs) -> None:
    page = written(tmp_path, "<p id=p>without</p><script>p.textContent = 'with'</script>")
    for javascript, says in ((True, "with"), (False, "without")):
        opened = new_tab(javascript=javascript, scheme="dark", width=400).open(page)
        assert opened.text_content("p") == says
        assert opened.evaluate("[innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]") == [400, True]
