"""`steer play` as a user opens it: on the packaged model, in headless Chromium.

`make test-play` runs these; they are skipped where playwright or Chromium is missing.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import transformers

if transformers.__version__.startswith("4."):
    pytest.skip("serving needs transformers 5", allow_module_level=True)
pytest.importorskip("gradio", reason="the playground needs pip install 'steer-engine[play]'")
pytest.importorskip("playwright", reason="needs playwright: make test-play")

sys.path.append(str(Path(__file__).parents[1] / "experiments"))

from playground_picture import CHROMIUM, answers, ask, browser, opened, slide
from playwright.sync_api import BrowserContext, Page, expect

from tests.test_serve_real import serving

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not os.path.exists(CHROMIUM), reason=f"needs {CHROMIUM}: apt-get install chromium"
    ),
]

SCREENSHOTS = os.environ.get("STEER_SCREENSHOTS")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(how="play", folder=tmp_path_factory.mktemp("state")) as (address, _):
        yield address


@pytest.fixture
def context(url: str) -> Iterator[BrowserContext]:
    """A browser in which nothing may go wrong, and nobody but the server be asked."""
    wrong: list[str] = []
    with browser() as made:
        made.on("request", lambda asked: wrong.append(asked.url) if outside(asked.url) else None)
        made.on("weberror", lambda error: wrong.append(str(error.error)))
        made.on(
            "console",
            lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None,
        )

        def outside(asked: str) -> bool:
            return not asked.startswith((url, "data:", "blob:"))

        yield made
    assert wrong == []


@pytest.fixture
def page(context: BrowserContext, url: str) -> Page:
    return opened(context, url)


def keep(page: Page, name: str, **more: bool) -> None:
    """Keep a screenshot, where the environment variable STEER_SCREENSHOTS names a folder."""
    if SCREENSHOTS is not None:
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png", **more)


def sliders(page: Page) -> dict[str, float]:
    return {
        trait: float(page.locator(f"#of-{trait} input[type=number]").input_value())
        for trait in ("brevity", "simplicity", "formality", "warmth", "positivity")
    }


def told(page: Page) -> dict[str, int]:
    """What is told beside the triangle, in percent."""
    read = page.locator("#triangle .read").inner_text()
    return {name: int(share) for name, share in re.findall(r"([\w-]+) (\d+)%", read)}


def in_flight(url: str) -> int:
    (found,) = re.findall(r"^steer_in_flight (\S+)", httpx.get(f"{url}/metrics").text, re.M)
    return int(float(found))


def test_sliders_triangle_and_panel_keep_step(page: Page):
    why = page.locator("#why")
    expect(why).to_contain_text("Served by entry")
    for trait in ("simplicity", "formality"):
        slide(page, trait, 0)
    expect(why).to_contain_text("brevity's own edit")
    expect(page.locator("#triangle .read")).to_contain_text("brevity 100%")
    slide(page, "simplicity", 1)
    expect(page.locator("#triangle .read")).to_contain_text("brevity 50% · simplicity 50%")
    expect(why).to_contain_text("ahead of")
    served = re.search(r"entry (\d+)", why.inner_text())
    assert served
    # The map shows the same entry, and where the mixture stands.
    expect(page.locator("#map .dots.serves")).to_have_attribute("data-entry", served.group(1))
    before = page.locator("#map .here").get_attribute("cx")

    shape = page.locator("#triangle svg").bounding_box()
    assert shape
    middle = (shape["x"] + shape["width"] / 2, shape["y"] + 0.62 * shape["height"])
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 20, middle[1], steps=5)
    page.mouse.move(middle[0], middle[1], steps=5)
    page.mouse.up()
    expect(page.locator("#of-formality input[type=number]")).not_to_have_value("0")
    page.wait_for_timeout(500)
    values, shares = sliders(page), told(page)
    assert all(25 < shares[name] < 42 for name in ("brevity", "simplicity", "formality"))
    assert max(values.values()) == 1 and values["warmth"] == values["positivity"] == 0
    total = sum(values.values())
    for name, share in shares.items():
        assert abs(100 * values[name] / total - share) < 1.1
    assert page.locator("#map .here").get_attribute("cx") != before

    page.locator("#triangle svg").focus()
    for _ in range(20):
        page.keyboard.press("ArrowUp")
    expect(page.locator("#triangle .read")).to_contain_text("brevity 100%")
    page.keyboard.press("Home")
    expect(page.locator("#triangle .read")).to_contain_text("brevity 33%")
    # A corner's trait that another corner has already: the two change places.
    page.locator("#triangle .pick.left").select_option("formality")
    expect(page.locator("#triangle .pick.right")).to_have_value("simplicity")
    page.locator("#triangle .pick.top").select_option("humor")
    expect(page.locator("#triangle .regions path")).to_have_count(0)
    # What was not in step yet when another corner was chosen does not change it back.
    slide(page, "warmth", 0.5)
    page.locator("#triangle .pick.top").select_option("warmth")
    page.wait_for_timeout(500)
    expect(page.locator("#triangle .pick.top")).to_have_value("warmth")
    assert told(page)["warmth"] == 20  # of 0.5, 1 and 1
    assert page.locator("#triangle .regions path").count() > 1
    expect(why).to_contain_text("Served by entry")


def test_two_answers_come_live_and_differ(page: Page, url: str):
    page.fill("#box textarea", "How do I sleep better?")
    page.press("#box textarea", "Enter")
    seen = set()
    expect(page.locator("#unsteered .bot.message")).to_have_count(1)
    while page.locator("#box .stop-button").is_visible():
        seen.add(answers(page)[1][0])
        assert in_flight(url) in (0, 2)
        page.wait_for_timeout(100)
    assert len(seen) > 5
    (steered,), (unsteered,) = answers(page)
    assert steered != unsteered and 3 < len(steered.split()) < len(unsteered.split())
    expect(page.locator("#panes .caption").first).to_contain_text("entry")
    keep(page, "light")
    # The same at strength 0: the model as it is, in both panes.
    page.locator("#knob input[type=number]").fill("0")
    page.keyboard.press("Enter")
    expect(page.locator("#why")).to_contain_text("The strength is 0")
    page.click("#again")
    expect(page.locator("#box .stop-button")).to_be_visible()
    expect(page.locator("#box .submit-button")).to_be_visible(timeout=120_000)
    assert answers(page) == ([unsteered], [unsteered])
    # What is said while an answer is written waits in the box.
    page.click("#again")
    expect(page.locator("#again")).to_be_disabled()
    page.fill("#box textarea", "Thanks.")
    page.press("#box textarea", "Enter")
    expect(page.locator("#box .submit-button")).to_be_visible(timeout=120_000)
    assert answers(page) == ([unsteered], [unsteered])
    assert page.locator("#box textarea").input_value() == "Thanks."
    page.click("#clear")
    expect(page.locator("#steered .bot.message")).to_have_count(0)


def test_who_stops_or_leaves_frees_the_rows(page: Page, context: BrowserContext, url: str):
    def busy(other: Page) -> None:
        other.fill("#box textarea", "Tell me a long story about the sea.")
        other.press("#box textarea", "Enter")
        expect(other.locator("#unsteered .bot.message")).not_to_have_text("…")
        assert in_flight(url) == 2

    def free() -> None:
        until = time.monotonic() + 15
        while in_flight(url):
            assert time.monotonic() < until
            time.sleep(0.1)

    busy(page)
    page.click("#box .stop-button")
    expect(page.locator("#box .submit-button")).to_be_visible()
    free()
    written = answers(page)
    assert len(written[1][0].split()) < 120
    leaving = opened(context, url)
    busy(leaving)
    leaving.close()
    free()
    # What was stopped is part of the conversation.
    ask(page, "Shorter.")
    assert [texts[0] for texts in answers(page)] == [texts[0] for texts in written]


def test_questions_end_on_the_sliders(page: Page):
    page.get_by_role("tab", name="Find your manner").click()
    page.click("#begin")
    for number in range(1, 9):
        expect(page.locator("#question")).to_contain_text(re.compile(f"Question {number}|is all"))
        if page.locator("#go").is_visible():
            break
        keep(page, "onboarding")
        lengths = [len(page.locator(f"#answer-{side}").inner_text()) for side in (0, 1)]
        page.click(f"#prefer-{lengths.index(min(lengths))}")
    expect(page.locator("#question")).to_contain_text("That is all")
    known = page.locator("#known").inner_text()
    (served,) = re.findall(r"You are served by (entry \d+)", known)
    page.click("#go")
    expect(page.locator("#why")).to_contain_text(f"Served by {served}")
    values = sliders(page)
    assert max(values.values()) == 1 == values["brevity"]
    shares = {name: int(share) for name, share in re.findall(r"(\w+)\s+(\d+)%", known)}
    total = sum(values.values())
    for name, value in values.items():
        assert abs(100 * value / total - shares[name]) < 1.1
    top = sorted(values, key=lambda name: -values[name])[:3]
    assert set(told(page)) == set(top)


def test_two_pages_do_not_mix(page: Page, context: BrowserContext, url: str):
    other = opened(context, url)
    for trait in ("simplicity", "formality"):
        slide(page, trait, 0)
    for trait in ("brevity", "simplicity"):
        slide(other, trait, 0)
    for one, text in ((page, "What is a comet?"), (other, "Name a good book.")):
        one.fill("#box textarea", text)
        one.press("#box textarea", "Enter")
    for one, text, name in (
        (page, "What is a comet?", "brevity"),
        (other, "Name a good book.", "formality"),
    ):
        # The button is there before the answer begins, too.
        expect(one.locator("#why")).to_contain_text(f"{name}'s own edit", timeout=30_000)
        expect(one.locator("#box .submit-button")).to_be_visible(timeout=120_000)
        for pane in ("#steered", "#unsteered"):
            expect(one.locator(f"{pane} .user.message")).to_have_text([text])
    assert answers(page) != answers(other)
    other.close()


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("dark", 1280, "dark"), ("narrow", 420, "light")]
)
def test_it_fits_the_window(url: str, name: str, width: int, scheme: str):
    with browser(width, 800, scheme) as context:
        page = opened(context, url)
        ask(page, "What is rain?")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("body.dark").count() == (scheme == "dark")
        keep(page, name, full_page=width < 1000)
