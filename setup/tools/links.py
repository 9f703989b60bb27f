"""Check the links and images of every markdown file and notebook, without network.

    python setup/tools/links.py [PATHS]

Prints one line a finding (file, place, what is wrong, how to mend) and ends with status 1 if there is any. Images must
be local and have alt text; links to files must be relative, and lead to files of this project (one that git ignores is
on nobody else's computer); an #anchor must belong to a heading or an `id=` of the target.
"""

import argparse
import json
import re
import sys
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mistune
from notebook_budgets import relative
from tracked import find_files, tracked

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """A stretch of markdown as a browser sees it: its (target, alt text; None for links) pairs and the anchors in it."""

    def __init__(self, markdown: str):
        super().__init__()
        self.references, self.anchors, self.headings, self._heading = [], set(), [], None
        self.feed(mistune.html(markdown))

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = {key: value or "" for key, value in attributes}
        if tag == "a" and "href" in values:
            self.references.append((values["href"], None))
        elif tag == "source":
            self.references.append((values.get("srcset", ""), "the alt text stands in the img beside"))
        elif tag == "img":
            self.references.append((values.get("src", ""), values.get("alt", "").strip()))
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if re.fullmatch("h[1-6]", tag):
            self._heading = ""

    def handle_data(self, text: str) -> None:
        if self._heading is not None:
            self._heading += text

    def handle_endtag(self, tag: str) -> None:
        if re.fullmatch("h[1-6]", tag) and self._heading is not None:
            self.headings.append(self._heading.strip())
            self._heading = None


def pages_of(path: Path) -> list:
    """(place, markdown) of a file: one for a markdown file, one a markdown cell for a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return [("", text)]
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return [(f"cell {cell.get('id')}", "".join(cell["source"])) for cell in cells]


@cache
def anchors(path: Path) -> set:
    """The #anchors one can link to: headings as GitHub names them (in notebooks also as Jupyter does) and explicit ids."""
    names, seen = set(), Counter()
    for page in (Page(text) for _, text in pages_of(path)):
        names |= page.anchors
        for heading in page.headings:
            slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            names.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
            names |= {heading.replace(" ", "-")} if path.suffix == ".ipynb" else set()
    return names


@cache
def known_files(root: Path) -> frozenset:
    """The files of this project and the folders that hold them."""
    files = {root / name for name in tracked(root)}
    return frozenset(files | {folder for file in files for folder in file.parents})


def is_remote(target: str) -> bool:
    return target.startswith("//") or bool(re.match(r"[A-Za-z][A-Za-z0-9+.\-]+:", target))


def image_problem(target: str, alt: str, path: Path, root: Path):
    """What is wrong with an image, or None."""
    if target.startswith(("data:", "attachment:")):
        return f"image is embedded ({target[:30]}); save it as a file beside and link that"
    if is_remote(target):
        return f"image from another host: {target}; keep a copy in the repository"
    goal = (path.parent / unquote(urlsplit(target).path)).resolve()
    if not goal.is_file() or goal not in known_files(root):
        return f"image not found: {target or '(empty)'}; correct the path or add the file to git"
    return None if alt else f"image without alt text: {target}; say in a sentence what one sees"


def link_problem(target: str, path: Path, root: Path):
    """What is wrong with a link to a file or an anchor, or None; http and mail links are not looked at."""
    parts = urlsplit(target)
    if is_remote(target):
        return None
    if parts.path.startswith("/"):
        return f"absolute link: {target}; write it relative to this file"
    goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if root not in [goal, *goal.parents]:
        return f"link out of the repository: {target}; link something inside"
    if not goal.exists() or goal not in known_files(root):
        return f"dead link: {target or '(empty)'}; correct the path or add the file to git"
    goal = goal / "README.md" if goal.is_dir() else goal
    if parts.fragment and goal.suffix in (".md", ".ipynb") and goal.exists() and unquote(parts.fragment) not in anchors(goal):
        return f"dead anchor: {target}; no heading or id of {goal.name} has that name"
    return None


def findings(path: Path, root: Path) -> list:
    """All problems of one file as `place: what is wrong; how to mend`."""
    found = []
    for place, text in pages_of(path):
        for target, alt in Page(text).references:
            problem = link_problem(target, path, root) if alt is None else image_problem(target, alt, path, root)
            if problem:
                line = text[: text.find(unquote(target))].count("\n") + 1
                found.append(f"{place or f'line {line}'}: {problem}")
    return found


def main(argv=None) -> int:
    """Check and print; return 1 if anything was found; a path that is not there exits with 2."""
    parser = argparse.ArgumentParser(description="Check links and images of markdown files and notebooks.")
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders (default: the whole repository)")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository root (default: the one of this file)")
    args = parser.parse_args(argv)
    root = args.root.resolve()
    try:
        files = find_files(args.paths, root, ".md", ".ipynb")
    except FileNotFoundError as error:
        parser.exit(2, f"links.py: {error}\n")
    found = [f"{relative(path, root)}: {finding}" for path in files for finding in findings(path, root)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
