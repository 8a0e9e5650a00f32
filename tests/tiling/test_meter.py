"""Progress as it is seen: in a log a line a slide, on a terminal bars of slides and pieces with their pace."""

from __future__ import annotations

import re
import sys

import pytest

from colocate.slides.runner import Meter


def test_in_a_log_each_slide_gets_a_line_with_its_own_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(3, "tile")
    meter.begin(1200)
    meter.advance(700)
    meter.advance(500)
    meter.end("a")
    meter.advance(5)
    meter.end("b", "b.svs is damaged")
    meter.advance(1)
    meter.end("c")
    a, b, c = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"a: 1,200 tiles, [\d,.]+ tiles/s so far", a)
    assert b == "note: b is left out: b.svs is damaged"
    assert c.startswith("c: 1 tile, ")


@pytest.mark.parametrize("one_at_a_time", [True, False])
def test_on_a_terminal_slides_and_pace_show(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, one_at_a_time: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    meter = Meter(2, "tile")
    with meter.bar:
        for name in "ab":
            if one_at_a_time:
                meter.begin(40)
            meter.advance(30)
            meter.end(name)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"slides .* 2/2 +[\d,.]+ tiles/s", last)
    assert ("30/40" in last) == one_at_a_time
    assert "a: " not in last
