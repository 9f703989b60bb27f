"""Start the app as a program and open its page in a browser that can reach this computer only.

python -m tests.browser ../01_main-chapter-code/spam-classifier/review_classifier.pth     # takes screenshot.png again
"""

import sys
from pathlib import Path

from page_tests import open_browser, open_page, running_app
from playwright.sync_api import Page, expect, sync_playwright

ROWS = "[data-testid$=confidence-set]"  # one for each class
ANSWERS = f"{ROWS}, #note p"
FOLDER = Path(__file__).resolve().parent.parent


def ask(page: Page, text: str) -> tuple[dict, str]:
    """Type a message, press the button, and return ({class: percent}, note) as the page then shows them."""
    page.get_by_label("Message").fill(text)
    expect(page.locator(ANSWERS)).to_have_count(0)  # those to the last message are gone
    page.get_by_role("button", name="Classify").click()
    page.locator(ANSWERS).first.wait_for()
    rows = [row.rsplit(maxsplit=1) for row in page.locator(ROWS).all_inner_texts()]
    return {name.strip(): int(percent.rstrip("%")) for name, percent in rows}, page.locator("#note").inner_text().strip()


def main(checkpoint: str) -> None:
    with sync_playwright() as playwright, running_app(FOLDER, "--checkpoint", checkpoint) as address:
        page, _ = open_page(open_browser(playwright), address)
        ask(page, "You have won a free prize! Call 09061701 to claim it.")
        page.screenshot(path=FOLDER / "screenshot.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
