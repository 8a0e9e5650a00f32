"""The pages in a browser: nothing from elsewhere, no error, no barrier; light, dark, printed, without scripts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from colocate.cli.main import main
from colocate.core.settings import ViewConfig
from colocate.data.phantom import write_phantom
from colocate.training.loop import pretrain
from colocate.training.recipe import EncoderConfig
from tests.browser.browser import Tabs, barriers
from tests.evaluate.made import write_result
from tests.tiny import tiny_recipe

pytestmark = pytest.mark.slow

ODD = "<script>alert(1)<!--&amp;\"'{{ 7 * 7 }} a b#?%41"
KINDS = ("run", "runs", "table", "slides")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind, whose files and backbones have odd names."""
    folder = tmp_path_factory.mktemp("pages")
    tissue, run = folder / ODD, folder / "run"
    write_phantom(tissue, 40, size=64, mpp=2.0)
    for place in (tissue / "images" / "slide00").iterdir():
        odd = place.with_name(f"{ODD}{place.name}")
        place.rename(odd)
        (tissue / "glands" / "slide00" / place.name).rename(tissue / "glands" / "slide00" / odd.name)
    encoder, views = EncoderConfig("resnet18", output_stride=16), ViewConfig(size=32, area=(0.25, 1.0))
    recipe = tiny_recipe(tissue / "images", run, encoder=encoder, views=views, steps=3, data_licence=ODD)
    pretrain(recipe)
    pretrain(replace(recipe, steps=2, out=str(folder / f"other {ODD}")))
    main(["report", str(run), "--out", str(folder / "run.html")])
    main(["report", str(run), str(folder / f"other {ODD}"), "--out", str(folder / "runs.html")])
    for label, skill in (("random", 0.4), (ODD, 0.6)):
        for seed in range(2):
            write_result(folder / "results", "probe", label.replace("/", ""), seed, skill)
    main(["table", str(folder / "results"), "--out", str(folder / "table")])
    slides = folder / "slides"
    slides.mkdir()
    with Image.open(sorted((tissue / "images" / "slide01").iterdir())[0]) as picture:
        picture.resize((700, 500)).save(slides / f"{ODD}.png")
    (slides / f"broken {ODD}.svs").write_bytes(b"no slide")
    lines = ["path,mpp", *(f'"{path.name.replace(chr(34), chr(34) * 2)}",0.5' for path in sorted(slides.iterdir()))]
    (slides / "slides.csv").write_text("\n".join(lines) + "\n")
    main(["tile", str(slides / "slides.csv"), str(folder / "tiles"), "--size", "64", "--workers", "1"])
    return {
        "run": folder / "run.html",
        "runs": folder / "runs.html",
        "table": folder / "table" / "index.html",
        "slides": folder / "tiles" / "index.html",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_needs_nothing_fits_and_has_no_barrier(pages: dict[str, Path], new_tab: Tabs, kind: str) -> None:
    tab = new_tab()
    page = tab.open(pages[kind])
    own = pages[kind].absolute().parent.as_uri()
    assert all(url.startswith(f"{own}/") for url in tab.requests)
    assert len(tab.requests) == (2 if kind == "slides" else 1)  # the overlay lies beside the page
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    light = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(part => part > 128)"
    assert barriers(page) == [] and page.evaluate(light)
    page.emulate_media(color_scheme="dark")
    assert barriers(page, "color-contrast") == [] and not page.evaluate(light)
    assert tab.errors == []


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_text_all_is_there_without_scripts_and_prints_black_on_white(
    pages: dict[str, Path], new_tab: Tabs, kind: str
) -> None:
    with_scripts, without = (new_tab(javascript=on, scheme="dark").open(pages[kind]) for on in (True, False))
    text = without.inner_text("body")
    assert text == with_scripts.inner_text("body") and ODD in text
    assert without.locator("script").count() == 0
    assert pages[kind].stat().st_size < 5_000_000
    assert without.pdf(format="A4").startswith(b"%PDF")
    with_scripts.emulate_media(media="print")
    style = "getComputedStyle(document.body)"
    colours = with_scripts.evaluate(f"[{style}.backgroundColor, {style}.color]")
    assert colours == ["rgb(255, 255, 255)", "rgb(29, 36, 51)"]


def test_a_curve_tells_its_value_under_the_pointer(pages: dict[str, Path], new_tab: Tabs) -> None:
    page = new_tab(javascript=False).open(pages["run"])
    stop = page.locator("svg.chart .stop").first
    words = stop.locator("title").text_content() or ""
    assert re.fullmatch(r"step 1: total \d+(\.\d+)?(, \w+ \d+(\.\d+)?)*", words)
    stop.hover()
    shown = stop.locator("text")
    assert shown.evaluate("one => getComputedStyle(one).opacity") == "1" and shown.text_content() == words
