"""A real browser: what people click and press, and that nothing is asked of any other host."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from colocate.viewer.pairs import pair, read_run
from tests.browser.browser import barriers
from tests.viewer.conftest import World
from tests.viewer.test_command import viewing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(world: World, chromium: Browser) -> Iterator[Page]:
    """The page of a world, opened as it is printed; at the end no error was told and no other host asked."""
    with viewing(*world.all, "--port", 0) as (_, address):
        page = chromium.new_page(viewport={"width": 1300, "height": 800}, reduced_motion="reduce")
        page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        wrong: list[str] = []
        asked: list[str] = []
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        yield page
        page.close()
        base = address.partition("/?")[0] + "/"
        assert wrong == [] and len(asked) > 20
        assert [url for url in asked if not url.startswith((base, f"blob:{base}"))] == []


def slide(page: Page) -> Page:
    page.get_by_role("link", name="phantom").click()
    expect(page.get_by_role("heading", name="phantom")).to_be_visible()
    expect(page.locator(".scale span")).to_contain_text("µm")
    return page


def run(page: Page) -> Page:
    slide(page)  # from where it is opened anew
    page.get_by_role("link", name="run", exact=True).click()
    expect(page.get_by_role("heading", name="View 1, row")).to_be_visible()
    return page


def test_the_token_leaves_the_address(page: Page) -> None:
    slide(page)
    assert "token" not in page.url and "token" not in page.evaluate("JSON.stringify(history.state) + document.cookie")
    page.reload()
    slide(page)


def um_per_pixel(page: Page) -> float:
    seen: list[str] = []
    while len(seen) < 4 or len({*seen[-4:]}) > 1:  # until it has come to rest, on a slow machine too
        page.wait_for_timeout(300)
        seen.append(page.locator(".scale span").inner_text())
    return float(re.findall(r"[\d.]+", seen[-1])[-1])


def test_a_slide_can_be_zoomed_by_mouse_and_by_keyboard(page: Page) -> None:
    slide(page)
    page.get_by_role("button", name="Whole slide").click()
    whole = um_per_pixel(page)
    page.get_by_role("button", name="Zoom in").click()
    assert um_per_pixel(page) < 0.8 * whole
    page.get_by_role("button", name="Whole slide").click()
    assert um_per_pixel(page) == pytest.approx(whole, rel=0.01)
    page.get_by_role("application", name="The slide").focus()
    page.keyboard.press("+")
    assert um_per_pixel(page) < 0.95 * whole
    page.keyboard.press("0")
    assert um_per_pixel(page) == pytest.approx(whole, rel=0.01)


def test_the_scale_bar_is_as_long_as_it_says(page: Page) -> None:
    slide(page).wait_for_timeout(900)
    um, per_pixel = (float(number) for number in re.findall(r"[\d.]+", page.locator(".scale span").inner_text()))
    assert abs(page.locator(".scale i").bounding_box()["width"] - um / per_pixel) < 0.02 * um  # type: ignore[index]


@pytest.mark.parametrize("layer", ["Tissue", "Tiles, tiles", "Found, predictions"])
def test_layers_are_shown_and_hidden(page: Page, layer: str) -> None:
    slide(page)
    with page.expect_response(lambda answer: "/0/0_0" in answer.url or ("/1/" in answer.url and answer.ok)):
        page.get_by_label(layer).check()
    page.get_by_label(layer).uncheck()


def test_an_object_is_asked_by_click_and_by_enter(page: Page) -> None:
    slide(page)
    page.get_by_label("Tiles, tiles").check()
    place = page.locator(".view").bounding_box()
    assert place is not None
    page.wait_for_timeout(500)
    page.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    expect(page.get_by_role("row", name=re.compile("sharpness"))).to_be_visible()
    expect(page.locator(".marks path.over")).to_have_count(1)
    page.get_by_role("application", name="The slide").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("row", name=re.compile("sharpness"))).to_have_count(1)
    page.get_by_label("Tiles, tiles").uncheck()


def test_the_least_score_and_the_classes_filter(page: Page) -> None:
    slide(page)
    page.get_by_label("Found, predictions").check()
    with page.expect_response(lambda answer: "classes=0,1&score=0.9" in answer.url and answer.ok):
        page.get_by_label("Least score").fill("0.9")
    with page.expect_response(lambda answer: "classes=1&score=0.9" in answer.url and answer.ok):
        page.get_by_label("gland").uncheck()
    page.get_by_label("Found, predictions").uncheck()


def test_a_cell_of_features_lights_those_like_it(page: Page) -> None:
    slide(page)
    page.get_by_label("Similarity, features").check()
    page.get_by_text("click one to see which are like it").wait_for()
    place = page.locator(".view").bounding_box()
    assert place is not None
    with page.expect_response(lambda answer: re.search(r"/similar/0/\d+/\d/", answer.url) is not None and answer.ok):
        page.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    expect(page.get_by_text("Most similar elsewhere")).to_be_visible()
    page.get_by_label("Similarity, features").uncheck()


def test_what_is_below_1_is_not_told_as_1(page: Page) -> None:
    """Features of an untrained network are all alike: "1.00 or less" would say that there is nothing to see."""
    asked = [[0.9961, 2], [0.99996, 3], [0.5, 2], [-0.25, 2], [1, 2], [12.5, 2]]
    told = page.evaluate(
        "some => import('/static/page.js').then(({ share }) => some.map((one) => share(...one)))", asked
    )
    assert told == ["0.996", "0.99996", "0.50", "-0.25", "1.00", "12.50"]


def test_the_shares_of_a_clicked_cell_are_the_exact_ones(page: Page, world: World) -> None:
    run(page)
    high, wide = read_run(world.run).grid
    epoch = int(re.findall(r"views of epoch (\d+)", page.locator("aside").inner_text())[0]) - 1
    own = pair(world.run, 0, epoch)
    for view in (0, 1):
        for cell in range(0, high * wide, 3):
            page.locator(f"svg[data-view='{view}'] rect[data-cell='{cell}']").click()
            row, col = cell // wide + 1, cell % wide + 1
            expect(page.get_by_role("heading", name=f"View {view + 1}, row {row}, column {col}")).to_be_visible()
            told = own.cell(view, cell)
            shares = {f"row {n // wide + 1}, column {n % wide + 1}": f"{100 * s:.1f} %" for n, s in told["shares"]}
            lines = page.locator("aside tbody tr").all_inner_texts()
            seen = dict(line.replace(" ★", "").split("\t")[:2] for line in lines)
            assert {name: share for name, share in seen.items() if name in shares} == shares
            assert len(seen) - len(shares) in (0, 1)  # the most similar cell may share nothing


def test_a_run_by_keyboard(page: Page) -> None:
    run(page)
    page.keyboard.press("n")
    expect(page.get_by_label("Tile", exact=True)).to_have_value("2")
    page.keyboard.press("p")
    expect(page.get_by_label("Tile", exact=True)).to_have_value("1")
    first = page.locator("aside .soft").first
    before = first.inner_text()
    page.keyboard.press("e")
    expect(first).not_to_have_text(before)
    page.get_by_role("application", name="View 2").focus()
    for key in ("ArrowUp",) * 9 + ("ArrowLeft",) * 9:
        page.keyboard.press(key)
    expect(page.get_by_role("heading", name="View 2, row 1, column 1")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", name="View 2, row 1, column 2")).to_be_visible()
    page.keyboard.press("s")
    expect(page.get_by_label("Similarity")).to_be_checked()
    page.keyboard.press("s")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("show", [slide, run])
def test_no_barrier_is_found(page: Page, show: Callable[[Page], Page], scheme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=scheme)
    assert barriers(show(page)) == []
