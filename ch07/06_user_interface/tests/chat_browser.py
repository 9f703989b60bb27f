"""Talk to the page in a browser, as a reader does.

python -m tests.chat_browser ../01_main-chapter-code/instruction-model/gpt2-mini-sft-standalone.pth  # takes screenshot.png again
"""

import sys
from pathlib import Path

from app import EXAMPLES
from page_tests import open_browser, open_page, running_app
from playwright.sync_api import Page, expect, sync_playwright

FOLDER = Path(__file__).resolve().parent.parent
USER, BOT = "[data-testid=user]", "[data-testid=bot]"  # one for each message in the conversation


def send(page: Page, text: str) -> None:
    """Type a message and press Enter; returns when the page has taken it over into the conversation."""
    asked = page.locator(USER).count()
    page.locator("textarea").fill(text)
    page.locator("textarea").press("Enter")
    expect(page.locator(USER)).to_have_count(asked + 1)


def ask(page: Page, text: str) -> str:
    """Send a message and return the answer when the page takes the next message."""
    answered = page.locator(BOT).count()
    send(page, text)
    expect(page.locator(BOT)).to_have_count(answered + 1, timeout=20_000)
    expect(page.locator("textarea")).to_be_enabled(timeout=20_000)
    return page.locator(BOT).last.inner_text().strip()


def main(weights: str) -> None:
    with sync_playwright() as playwright, running_app(FOLDER, "--weights", weights) as address:
        page, _ = open_page(open_browser(playwright), address, height=680)
        for question in EXAMPLES[:2]:
            print(question, "->", ask(page, question))
        page.screenshot(path=FOLDER / "screenshot.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
