"""Check the links and images of every markdown file and notebook.

    python setup/tools/links.py [PATHS]              # relative links, #anchors and images; no network
    python setup/tools/links.py --external [PATHS]   # also asks every http link whether it is alive

Prints one line a finding (file, place, what is wrong, how to mend) and ends with status 1 if there is any. Images must
be local and have alt text; links to files must be relative and must exist; an #anchor must belong to a heading or an
`id=` of the target. `--external` reads CHECK_LINKS_TIMEOUT (10 seconds), CHECK_LINKS_RETRIES (2) and
CHECK_LINKS_RETRY_BACKOFF (1.0 seconds, doubled each time) from the environment.
"""

import argparse
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent.parent
SHOWN_HIDDEN_FOLDERS = {".github", ".devcontainer", ".vscode", ".ci"}
SKIPPED_FOLDERS = {"venv", "node_modules", "__pycache__"}

_INLINE = re.compile(
    r"(?P<bang>!?)\[(?P<text>(?:[^\[\]]|!?\[[^\[\]]*\](?:\([^()]*\))?)*)\]"
    r"\(\s*(?P<target><[^<>]*>|(?:[^\s()]|\([^\s()]*\))*)(?:\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)"
)
_DEFINITION = re.compile(r"^ {0,3}\[(?!\^)[^\]]+\]:\s*<?([^\s>]+)>?", re.MULTILINE)
_TAG = re.compile(r"<(?P<name>a|img|source)\b(?P<attributes>[^>]*)>", re.IGNORECASE)
_AUTOLINK = re.compile(r"<(https?://[^\s<>]+)>")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)
_IDENTIFIER = re.compile(r"<[^>]*\b(?:id|name)\s*=\s*[\"']([^\"']+)[\"']", re.IGNORECASE)


class Piece(NamedTuple):
    """A stretch of markdown: a whole file (`cell` None) or one cell of a notebook."""

    cell: object
    text: str


class Reference(NamedTuple):
    """A link or an image found in a piece; `alt` is None for links."""

    line: int
    target: str
    alt: object


# ---- reading --------------------------------------------------------------------------------------------------------

def find_files(paths: list, root: Path) -> list:
    """Markdown files and notebooks below the paths, without hidden and environment folders."""
    found = set()
    for path in [Path(p) for p in paths] or [root]:
        if path.is_file():
            found.add(path.resolve())
        for folder, subfolders, names in os.walk(path):
            subfolders[:] = [n for n in subfolders if n not in SKIPPED_FOLDERS and (not n.startswith(".") or n in SHOWN_HIDDEN_FOLDERS)]
            found |= {(Path(folder) / name).resolve() for name in names if name.endswith((".md", ".ipynb"))}
    return sorted(found)


def pieces_of(path: Path) -> list:
    """The markdown of a file: one piece for a markdown file, one a markdown cell for a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return [Piece(None, text)]
    cells = json.loads(text)["cells"]
    return [Piece(index, "".join(cell["source"])) for index, cell in enumerate(cells) if cell["cell_type"] == "markdown"]


def without_code(text: str) -> str:
    """Blank out fenced blocks, comments and inline code, keeping every line where it is."""
    lines, fence = [], None
    for line in text.split("\n"):
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if fence is None and mark:
            fence = mark[1]
        elif fence is not None:
            if mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = None
        else:
            lines.append(line)
            continue
        lines.append("")
    text = re.sub(r"<!--.*?-->", lambda match: "\n" * match[0].count("\n"), "\n".join(lines), flags=re.DOTALL)
    return re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", text)


def references(text: str) -> list:
    """All links and images of a stretch of markdown, HTML tags included, in order of appearance."""
    text = without_code(text)
    found = []

    def add(position: int, target: str, alt) -> None:
        found.append(Reference(text.count("\n", 0, position) + 1, target.strip().strip("<>"), alt))

    def scan(part: str, offset: int) -> None:
        for match in _INLINE.finditer(part):
            add(offset + match.start(), match["target"], match["text"].strip() if match["bang"] else None)
            if not match["bang"]:
                scan(match["text"], offset + match.start("text"))  # an image inside the text of a link

    scan(text, 0)
    for match in _DEFINITION.finditer(text):
        add(match.start(), match[1], None)
    for match in _AUTOLINK.finditer(text):
        add(match.start(), match[1], None)
    for match in _TAG.finditer(text):
        attributes = {key.lower(): value for key, _, value in re.findall(r"([\w-]+)\s*=\s*([\"'])(.*?)\2", match["attributes"])}
        target = attributes.get("href" if match["name"].lower() == "a" else "src") or attributes.get("srcset")
        if target is not None:
            alts = {"a": None, "source": "a source carries no alt text of its own"}
            add(match.start(), target, alts.get(match["name"].lower(), attributes.get("alt", "").strip()))
    return sorted(found, key=lambda reference: reference.line)


def anchors(path: Path) -> set:
    """The #anchors one can link to: headings as GitHub names them (in notebooks also as Jupyter does) and explicit ids."""
    names, seen = set(), Counter()
    for piece in pieces_of(path):
        names |= set(_IDENTIFIER.findall(piece.text))
        for heading in _HEADING.findall(_keep_inline_code(piece.text)):
            plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
            plain = re.sub(r"<[^>]+>", "", plain).replace("`", "").replace("*", "").strip()
            slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            names.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
            if path.suffix == ".ipynb":
                names.add(plain.replace(" ", "-"))
    return names


def _keep_inline_code(text: str) -> str:
    """Without fenced blocks only: a heading may contain inline code."""
    return re.sub(r"^\s*(`{3,}|~{3,}).*?^\s*\1\s*$", "", text, flags=re.DOTALL | re.MULTILINE)


# ---- checking -------------------------------------------------------------------------------------------------------

def is_remote(target: str) -> bool:
    return target.startswith("//") or bool(re.match(r"[A-Za-z][A-Za-z0-9+.\-]+:", target))


def image_problem(target: str, alt, folder: Path):
    """What is wrong with an image, or None."""
    if target.startswith("data:") or target.startswith("attachment:"):
        return f"image is embedded ({target[:30]}); save it as a file beside and link that"
    if is_remote(target):
        return f"image from another host: {target}; keep a copy in the repository"
    if not target or not (folder / unquote(urlsplit(target).path)).is_file():
        return f"image not found: {target or '(empty)'}; correct the path"
    if not alt:
        return f"image without alt text: {target}; say in a sentence what one sees"
    return None


def link_problem(target: str, path: Path, root: Path):
    """What is wrong with a link to a file or an anchor, or None; http and mail links are not looked at."""
    if is_remote(target):
        return None
    parts = urlsplit(target)
    if parts.path.startswith("/"):
        return f"absolute link: {target}; write it relative to this file"
    goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not goal.exists():
        return f"dead link: {target or '(empty)'}; correct the path or add the file"
    if root not in [goal, *goal.parents]:
        return f"link out of the repository: {target}; link something inside"
    if not parts.fragment:
        return None
    if goal.is_dir():
        goal = goal / "README.md"
    if goal.suffix in (".md", ".ipynb") and goal.exists():
        if unquote(parts.fragment) not in anchors(goal):
            return f"dead anchor: {target}; no heading or id of {goal.name} has that name"
    return None


def findings(path: Path, root: Path) -> list:
    """All problems of one file as `place: what is wrong; how to mend`."""
    found = []
    for piece in pieces_of(path):
        for reference in references(piece.text):
            if reference.alt is None:
                problem = link_problem(reference.target, path, root)
            else:
                problem = image_problem(reference.target, reference.alt, path.parent)
            if problem:
                place = f"line {reference.line}" if piece.cell is None else f"cell {piece.cell}"
                found.append(f"{place}: {problem}")
    return found


# ---- external links -------------------------------------------------------------------------------------------------

def probe(url: str, timeout: float, retries: int, backoff: float):
    """Ask whether a web page exists; return what is wrong, or None. Servers that refuse HEAD are asked with GET."""
    problem = None
    for attempt in range(retries + 1):
        for method in ("HEAD", "GET"):
            request = urllib.request.Request(url, method=method, headers={"User-Agent": "Mozilla/5.0 (link check of a course)"})
            try:
                with urllib.request.urlopen(request, timeout=timeout):
                    return None
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}"
            except (OSError, ValueError) as error:
                problem = str(getattr(error, "reason", error))
        if attempt < retries:
            time.sleep(backoff * 2**attempt)
    return problem


def external_findings(paths: list) -> list:
    """Probe each http link of the files once; return (path, finding) pairs."""
    settings = [float(os.environ.get(name, default)) for name, default in
                [("CHECK_LINKS_TIMEOUT", 10), ("CHECK_LINKS_RETRIES", 2), ("CHECK_LINKS_RETRY_BACKOFF", 1.0)]]
    known, found = {}, []
    for path in paths:
        for piece in pieces_of(path):
            for reference in references(piece.text):
                url = reference.target.split("#")[0]
                if reference.target.startswith(("http://", "https://")):
                    if url not in known:
                        known[url] = probe(url, settings[0], int(settings[1]), settings[2])
                    if known[url]:
                        place = f"line {reference.line}" if piece.cell is None else f"cell {piece.cell}"
                        found.append((path, f"{place}: {url} does not answer ({known[url]}); replace the link"))
    return found


def main(argv=None) -> int:
    """Check and print; return 1 if anything was found."""
    parser = argparse.ArgumentParser(description="Check links and images of markdown files and notebooks.")
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders (default: the whole repository)")
    parser.add_argument("--external", action="store_true", help="also ask every http link whether it is alive (network)")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository root (default: the one of this file)")
    args = parser.parse_args(argv)
    for path in args.paths:
        if not path.exists():
            print(f"links.py: no such file or folder: {path}", file=sys.stderr)
            return 2
    root = args.root.resolve()
    files = find_files(args.paths, root)
    found = [(path, finding) for path in files for finding in findings(path, root)]
    if args.external:
        found += external_findings(files)
    for path, finding in found:
        print(f"{os.path.relpath(path, root)}: {finding}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
