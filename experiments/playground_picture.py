"""The picture of the playground in the README, made by using it.

    steer play &
    python experiments/playground_picture.py    # writes docs/playground.png

Needs `make venv-play`, and Chromium at /usr/bin/chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from steer.resources import atomic_path

CHROMIUM = "/usr/bin/chromium"
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PATIENCE = 120_000  # ms, for an answer on a busy core


@contextmanager
def browser(
    width: int = 1280, height: int = 800, scheme: str = "light"
) -> Iterator[BrowserContext]:
    """A browser of its own, with nothing of any other session in it."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        context = playwright.chromium.launch_persistent_context(
            folder,
            executable_path=CHROMIUM,
            headless=True,
            args=_ARGUMENTS,
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        try:
            yield context
        finally:
            context.close()


def opened(context: BrowserContext, url: str) -> Page:
    """A page with the playground on it, ready to be touched."""
    page = context.new_page()
    page.goto(f"{url}/play/")
    expect(page.locator("#triangle .pick").first).to_be_visible(timeout=30_000)
    expect(page.locator("#triangle .read")).to_contain_text("%")
    return page


def slide(page: Page, trait: str, value: float) -> None:
    """Put a trait's slider somewhere, by its number."""
    number = page.locator(f"#of-{trait} input[type=number]")
    number.fill(str(value))
    number.press("Enter")


def ask(page: Page, text: str) -> None:
    """Say something, and wait until both have answered."""
    page.fill("#box textarea", text)
    page.press("#box textarea", "Enter")
    expect(page.locator("#box .stop-button")).to_be_visible()
    expect(page.locator("#box .submit-button")).to_be_visible(timeout=_PATIENCE)


def answers(page: Page) -> tuple[list[str], list[str]]:
    """What both have answered so far."""
    steered, unsteered = (
        page.locator(f"#{pane} .bot.message").all_inner_texts() for pane in ("steered", "unsteered")
    )
    return [text.strip() for text in steered], [text.strip() for text in unsteered]


def main() -> None:
    """Use the playground, and write how it looks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--output", type=Path, default=Path("docs/playground.png"))
    options = parser.parse_args()
    with browser(scheme=options.scheme) as context:
        page = opened(context, options.url)
        for trait, value in {
            "brevity": 1.0,
            "simplicity": 0.6,
            "formality": 0,
            "warmth": 0.4,
        }.items():
            slide(page, trait, value)
        page.locator("#triangle .pick.right").select_option("warmth")
        expect(page.locator("#triangle .read")).to_contain_text("warmth 20%")
        ask(page, "How do I sleep better?")
        page.locator("#unsteered .bubble-wrap").evaluate("pane => { pane.scrollTop = 0; }")
        page.locator("#header").click()
        drawn = page.screenshot()
    # 256 colours: a third of the size, and no difference to see.
    reduced = Image.open(io.BytesIO(drawn)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with atomic_path(options.output) as temporary:
        reduced.save(temporary, format="png", optimize=True)


if __name__ == "__main__":
    main()
