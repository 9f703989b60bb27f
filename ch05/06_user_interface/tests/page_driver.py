"""Start a page as a program and open it in a browser that can reach this computer only."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, Playwright, sync_playwright

# Runs a program like `python PROGRAM OPTIONS`, and reports every address outside this computer that it asks for.
WATCHED = """
import runpy, sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = args[0] if event == "socket.getaddrinfo" else args[1][0] if isinstance(args[1], tuple) else None
        if host not in (None, "", "127.0.0.1", "localhost", "::1", "0.0.0.0"):
            print("OUTSIDE", host, file=sys.stderr, flush=True)
sys.addaudithook(watch)
sys.argv = sys.argv[1:]
sys.path[0] = __import__("os").path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def free_port() -> int:
    """Return a port that nobody uses now. Folder ch05/06."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextlib.contextmanager
def running_app(folder: Path, *options: str, log: Path | None = None, program: str = "app.py") -> Iterator[str]:
    """Run `python PROGRAM OPTIONS --port ...` of a folder until the `with` ends; gives the address that it prints. Folder ch05/06."""
    command = [sys.executable, "-c", WATCHED, str(folder / program), *options, "--port", str(free_port())]
    environment = {**os.environ, "PYTHONUTF8": "1", "GRADIO_ANALYTICS_ENABLED": "True"}  # the app itself must switch it off
    with open(log, "w", encoding="utf-8") if log else contextlib.nullcontext() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            line = process.stdout.readline()
            assert "http://" in line, f"no address, but {line!r}"
            yield re.search(r"http://\S+", line)[0]
        finally:
            process.terminate()
            process.communicate(timeout=30)


def open_browser(playwright: Playwright) -> Browser:
    """Start Chromium if it is installed, else Chrome. playwright's Error if there is neither. Folder ch05/06."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    where = {"executable_path": path} if path else {"channel": "chrome"}
    return playwright.chromium.launch(**where, args=["--no-sandbox", "--disable-background-networking"])


@contextlib.contextmanager
def browser_or_skip() -> Iterator[Browser]:
    """A browser until the `with` ends; without one the test is skipped, but on a CI server it fails. Folder ch05/06."""
    with sync_playwright() as playwright:
        try:
            browser = open_browser(playwright)
        except Error as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"no browser to drive: install Chromium or Chrome ({str(error).splitlines()[0]})")
        yield browser


def open_page(browser: Browser, address: str, height: int = 420) -> tuple[Page, list[str]]:
    """Open the address; requests to anything else are refused and noted in the list that comes with the page. Folder ch05/06."""
    page, refused = browser.new_page(viewport={"width": 960, "height": height}), []

    def decide(route):
        if route.request.url.startswith(address):
            route.continue_()
        else:
            refused.append(route.request.url)
            route.abort()

    page.route("**/*", decide)
    page.goto(address)
    return page, refused
