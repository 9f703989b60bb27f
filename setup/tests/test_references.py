"""Appendix B names every paper that the course links, once, with author, year, title and a reason; and every data package.

python -m pytest setup/tests/test_references.py
"""

import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGE = "appendix-B/README.md"
PAPER = re.compile(
    r"https?://(?:arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.[\w./-]*\w|aclanthology\.org/[\w.-]*\w|jmlr\.org/[\w./-]*\w|[\w./-]+\.pdf)"
)
ENTRY = re.compile(r"- (?P<who>[^()]+) \((?P<year>(?:19|20)\d\d)\)\. \[(?P<title>.+?)\]\((?P<link>https?://[^)]+)\)\. (?P<why>.+\.)")


def text_of(name):
    text = (REPO / name).read_text(encoding="utf-8")
    return text if name.endswith(".md") else "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def entries():
    """The lists of the page; the tables of data follow behind them."""
    lines = text_of(PAGE).partition("\n## Data and weights")[0].splitlines()
    return [line for line in lines if line.startswith("- ")]


def test_every_paper_that_the_course_links_is_listed():
    names = subprocess.run(["git", "ls-files", "*.md", "*.ipynb"], cwd=REPO, capture_output=True, text=True).stdout.split()
    if not names:
        pytest.skip("not a git checkout")
    linked = {link: name for name in names if name != PAGE for link in PAPER.findall(text_of(name))}
    listed = set(PAPER.findall(text_of(PAGE)))
    assert len(linked) > 80
    assert {link: name for link, name in linked.items() if link not in listed} == {}, f"add a line each to {PAGE}"


def test_every_entry_has_author_year_title_link_and_a_reason():
    assert len(entries()) > 100 and [line for line in entries() if not ENTRY.fullmatch(line)] == []


def test_nothing_is_listed_twice():
    links = Counter(ENTRY.fullmatch(line)["link"] for line in entries())
    titles = Counter(ENTRY.fullmatch(line)["title"].lower() for line in entries())
    assert {name for name, times in [*links.items(), *titles.items()] if times > 1} == set()


def test_the_year_of_an_arxiv_paper_is_that_of_its_number():
    wrong = []
    for line in entries():
        if number := re.search(r"arxiv\.org/abs/(\d\d)\d\d\.", line):
            wrong += [line] * (int(ENTRY.fullmatch(line)["year"]) != 2000 + int(number[1]))
    assert wrong == []


def test_every_data_package_has_its_license():
    wanted = set()
    for name in ("data-packages.txt", "data-packages-gemma.txt"):
        wanted |= set(re.findall(r"^([a-z0-9-]+)==", (REPO / "setup" / name).read_text(encoding="utf-8"), flags=re.M))
    table = text_of(PAGE).partition("### Installed by pip")[2].partition("\n### ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("| `")]
    named = {re.match(r"`([^`]+)`", row[0])[1] for row in rows}
    assert named == {name for name in wanted if "-part" not in name} and all(len(row) == 3 and len(row[2]) > 5 for row in rows)
