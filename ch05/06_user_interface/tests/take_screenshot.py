"""Takes the picture of README.md again: two messages to gpt2-mini, the second one goes on with the text above.

python tests/take_screenshot.py
"""

import re
from pathlib import Path

from page_driver import open_browser, open_page, running_app
from playwright.sync_api import expect, sync_playwright

FOLDER = Path(__file__).resolve().parent.parent


def main() -> None:
    with sync_playwright() as playwright, running_app(FOLDER, program="app_orig.py") as address:
        page, _ = open_page(open_browser(playwright), address, height=980)
        page.get_by_text("Additional Inputs").click()
        for label, value in (("Length", "30"), ("Temperature", "0.8"), ("Top-k", "40")):
            number = page.get_by_label(re.compile(f"number input for {label}"))
            number.fill(value)
            number.press("Enter")
        for number, message in enumerate(("The old woman went into the forest and", " The next morning"), start=1):
            box = page.locator("textarea").first
            box.fill(message)
            box.press("Enter")
            expect(page.locator("[data-testid=bot]")).to_have_count(number, timeout=60_000)
            expect(box).to_be_enabled(timeout=60_000)
            page.get_by_label("Go on with the text above").check()
        page.screenshot(path=FOLDER / "screenshot.png")


if __name__ == "__main__":
    main()
