"""The page of slides that were cut: every slide once over all pages, failures with their reasons, names as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from markupsafe import escape

from colocate.base.tables import write_csv
from colocate.cli.main import main
from colocate.pages.slides import ON_A_PAGE, write_slides
from tests.phantom_slide import write_slides as write_tiffs

ODD = "<script>alert(1)<\\script> a#b?%41 é"
COLUMNS = ("slide", "path", "mpp", "width", "height", "tissue_mm2", "tiles", "blurred", "tile_mpp", "enlarged")


def cut(out: Path, count: int, failed: dict[str, str] | None = None) -> list[str]:
    """What `colocate tile` leaves of so many slides, every seventh of them without a tile; returns their names."""
    names = [f"{ODD} {number}" for number in range(count)]
    rows = [(name, f"{name}.svs", 0.5, 4000, 3000, 1.5, n % 7 and n, n, 0.5, n == 1) for n, name in enumerate(names)]
    write_csv(out / "slides.csv", COLUMNS, rows)
    (out / "tiling.json").write_text(json.dumps({"version": 4, "mpp": 0.5, "size": 256, "min_tissue": 0.5}))
    if failed:
        write_csv(out / "failed.csv", ("slide", "path", "reason"), [(name, "a", why) for name, why in failed.items()])
    return names


def pages(out: Path) -> Iterator[str]:
    """The texts of all pages, in order."""
    for number in range(1, 1 + len(list(out.glob("index*.html")))):
        yield (out / ("index.html" if number == 1 else f"index-{number}.html")).read_text()


@pytest.mark.parametrize("count", [1, ON_A_PAGE, ON_A_PAGE + 1, 3 * ON_A_PAGE - 1])
def test_every_slide_is_shown_once(tmp_path: Path, count: int) -> None:
    names = cut(tmp_path, count)
    assert write_slides(tmp_path) == tmp_path / "index.html"
    texts = list(pages(tmp_path))
    assert len(texts) == -(-count // ON_A_PAGE)
    pictures = [unquote(found) for text in texts for found in re.findall(r'<img src="overlays/([^"]+)\.png"', text)]
    assert pictures == names
    tiles = sum(n for n in range(count) if n % 7)
    for number, text in enumerate(texts, 1):
        assert f"<h1>{tiles:,} tile" in text and "<script" not in text and "min tissue" in text
        linked = set(re.findall(r'<a href="(index[^"]*)"', text))
        others = {"index.html" if other == 1 else f"index-{other}.html" for other in range(1, len(texts) + 1)}
        assert linked == (others - {"index.html" if number == 1 else f"index-{number}.html"})


@pytest.mark.parametrize(("each", "says"), [(0.155, "0.31 mm²"), (1.5, "3 mm²"), (1234.5, "2,469 mm²")])
def test_little_tissue_is_not_none(tmp_path: Path, each: float, says: str) -> None:
    cut(tmp_path, 2)
    table = tmp_path / "slides.csv"
    table.write_text(table.read_text().replace(",1.5,", f",{each},"))
    write_slides(tmp_path)
    assert f"{says} of tissue" in "".join(pages(tmp_path)).partition("<h2")[0]


def test_what_failed_or_has_no_tile_is_said_first_and_pages_of_before_go(tmp_path: Path) -> None:
    cut(tmp_path, 2 * ON_A_PAGE, {ODD: "cut <short>: copy it again"})
    write_slides(tmp_path)
    first, second = pages(tmp_path)
    for words in (ODD, "cut <short>: copy it again", f"{ODD} 7"):
        assert str(escape(words)) in first.partition("<h2>Slides</h2>")[0]
    assert "Slides that failed" not in second and "Slides without a tile" not in second
    cut(tmp_path, 2)
    (tmp_path / "index-of-my-notes.html").touch()
    write_slides(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["index-of-my-notes.html", "index.html"]


def test_the_command_writes_it_when_no_slide_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiffs(tmp_path / "slides", 2, 640)
    words = ["tile", str(tmp_path / "slides"), str(tmp_path / "out"), "--size", "64", "--workers", "1", "--mpp", "2"]
    main([*words, "--part", "1/2"])
    assert not (tmp_path / "out" / "index.html").exists() and "look at" not in capsys.readouterr().out
    main([*words, "--part", "2/2"])
    assert f"look at {tmp_path / 'out' / 'index.html'}" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    assert all((tmp_path / "out" / found).is_file() for found in re.findall(r'<img src="([^"]+)"', page))
