"""Write every generated copy of this repository, and prove that repeated definitions agree.

    python setup/tools/copies.py            write every copy (make copies)
    python setup/tools/copies.py --check    rewrite in memory, exit 1 with one line for each difference (part of make test)
    python setup/tools/copies.py --list     show each copy with its sources, and each proof

Numbered folders run alone, so nothing imports across folders: what a folder needs from another lies in it as a copy.
`copies.toml`, beside this file, says what is copied; the comments at its top explain the five kinds of entry.
"""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
from ledger import cell_statements, ledger, redefinitions
from merging import DEFINITIONS, Problem, merge

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG = "setup/tools/copies.toml"
KINDS = {  # kind of entry: required keys, optional keys
    "file": ({"source", "targets"}, set()),
    "merge": ({"targets", "sources"}, set()),
    "exercises": ({"source", "target"}, set()),
    "ledger": ({"module", "notebook"}, {"module_only", "deviations"}),
    "redefines_nothing": ({"module", "notebooks"}, set()),
}
NOTE = (
    "*Generated from `{source}` by `make copies`; do not edit the tasks here. How to use it: work each exercise in its stub cell, "
    "then run the check cell below it; worked solutions are in `{source}`.*"
)


@dataclass
class Copy:
    """One generated file: where it goes, what it is made from, and the function that makes it."""

    target: str
    sources: list[str]
    build: Callable[[], bytes]


def read(root: Path, path: str) -> str:
    """Text of a source, line ends as LF."""
    if not (root / path).is_file():
        raise Problem(f"source {path} does not exist")
    return (root / path).read_bytes().decode("utf-8").replace("\r\n", "\n")


def read_notebook(root: Path, path: str) -> nbformat.NotebookNode:
    text = read(root, path)
    try:
        return nbformat.reads(text, as_version=4)
    except Exception as error:  # nbformat raises several unrelated types
        raise Problem(f"{path} is not a notebook: {str(error).splitlines()[0]}") from None


# ---- kind "file" ----


def build_file(root: Path, source: str) -> bytes:
    """The bytes of `source`; Python files get a header line after a shebang or coding line."""
    text = read(root, source)
    if not source.endswith(".py"):
        return (root / source).read_bytes()
    lines = text.splitlines(keepends=True)
    at = 0
    while at < min(2, len(lines)) and re.match(r"#!|#.*coding[:=]", lines[at]):
        at += 1
    lines.insert(at, f"# Generated from {source} by `make copies`; do not edit.\n")
    return "".join(lines).encode("utf-8")


# ---- kind "merge" ----


def build_merge(root: Path, parts: list[dict]) -> bytes:
    """One module with the named definitions of several (see merging.py)."""
    return merge([(part["path"], read(root, part["path"]), part["names"]) for part in parts]).encode("utf-8")


# ---- kind "exercises" ----


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def refuse_leaks(notebook: nbformat.NotebookNode, source: str) -> None:
    """Problem if a cell redefines what a stub defines without the tag `solution`: it would show the answer to learners."""
    stubs: set[str] = set()
    for number, node, cell in cell_statements(notebook, source):
        name = node.name if isinstance(node, DEFINITIONS) else None
        if "stub" in tags(cell):
            stubs |= {name} - {None}
        elif name in stubs and "solution" not in tags(cell):
            raise Problem(f"{source} cell {number} redefines the stub {name} but lacks the tag `solution`")


def build_exercises(root: Path, source: str) -> bytes:
    """The learner edition: no cells tagged `solution`, no outputs, normalised metadata, a first cell that says so."""
    notebook = read_notebook(root, source)
    refuse_leaks(notebook, source)
    cells = [nbformat.v4.new_markdown_cell(NOTE.format(source=Path(source).name), id="generated-note")]
    for number, cell in enumerate(notebook.cells, 1):
        if "id" not in cell:
            raise Problem(f"{source} cell {number} has no id: the learner edition keeps ids")
        if "solution" in tags(cell):
            continue
        cell.metadata = nbformat.from_dict({"tags": tags(cell)} if tags(cell) else {})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cells.append(cell)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    learner = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    learner.nbformat_minor = 5
    return (nbformat.writes(learner).rstrip("\n") + "\n").encode("utf-8")


# ---- the plan and the command line ----


def load(root: Path) -> dict:
    """The entries of copies.toml by kind; Problem if one has an unknown kind, an unknown key or lacks a key."""
    try:
        config = tomllib.loads(read(root, CONFIG))
    except tomllib.TOMLDecodeError as error:
        raise Problem(f"{CONFIG}: {error}") from None
    for kind, entries in config.items():
        if kind not in KINDS:
            raise Problem(f"{CONFIG}: unknown kind [[{kind}]] (known: {', '.join(KINDS)})")
        required, optional = KINDS[kind]
        for entry in entries:
            if not required <= entry.keys() <= required | optional:
                raise Problem(
                    f"{CONFIG}: a [[{kind}]] entry has the keys {sorted(entry)}, needs {sorted(required)}, may have {sorted(optional)}"
                )
    for entry in config.get("merge", []):
        if not all(part.keys() == {"path", "names"} and part["names"] for part in entry["sources"]):
            raise Problem(f"{CONFIG}: each source of {entry['targets'][0]} needs a path and a list of names")
    return config


def plan(root: Path, config: dict) -> list[Copy]:
    """Every copy, in the order of the kinds; Problem if a target appears twice or is the source of another copy."""
    found = []
    for entry in config.get("file", []):
        found += [Copy(target, [entry["source"]], partial(build_file, root, entry["source"])) for target in entry["targets"]]
    for entry in config.get("merge", []):
        sources = [part["path"] for part in entry["sources"]]
        found += [Copy(target, sources, partial(build_merge, root, entry["sources"])) for target in entry["targets"]]
    for entry in config.get("exercises", []):
        found.append(Copy(entry["target"], [entry["source"]], partial(build_exercises, root, entry["source"])))
    targets = [c.target for c in found]
    for target in targets:
        if targets.count(target) > 1:
            raise Problem(f"{CONFIG}: {target} is the target of two entries")
        if any(target in c.sources for c in found):
            raise Problem(f"{CONFIG}: {target} is generated, so it cannot be a source: name the file it comes from")
    return found


def is_current(root: Path, target: str, wanted: bytes) -> bool:
    """True if the target holds these bytes; a checkout that turned line ends of code into CRLF is accepted."""
    path = root / target
    if not path.is_file():
        return False
    bytes_there = path.read_bytes()
    return bytes_there == wanted or (path.suffix in (".py", ".ipynb") and bytes_there.replace(b"\r\n", b"\n") == wanted)


def make_copies(root: Path, copies: list[Copy], check: bool) -> list[str]:
    """Write what is out of date, or with `check` only report it; returns problems."""
    problems = []
    for c in copies:
        try:
            wanted = c.build()
        except Problem as problem:
            problems.append(f"{c.target}: {problem}")
            continue
        if is_current(root, c.target, wanted):
            continue
        if check:
            state = "differs from" if (root / c.target).is_file() else "is missing; it is a copy of"
            problems.append(f"{c.target} {state} {', '.join(c.sources)}: run `make copies`")
        else:
            (root / c.target).parent.mkdir(parents=True, exist_ok=True)
            (root / c.target).write_bytes(wanted)
            print(f"wrote {c.target}")
    return problems


def prove(root: Path, config: dict) -> list[str]:
    """Problems of every ledger and every notebook that is to redefine nothing."""
    jobs = []
    for e in config.get("ledger", []):
        exceptions = (e.get("module_only", {}), e.get("deviations", {}))
        jobs.append((ledger, e["module"], e["notebook"], exceptions))
    for e in config.get("redefines_nothing", []):
        jobs += [(redefinitions, e["module"], notebook, ()) for notebook in e["notebooks"]]
    problems = []
    for proof, module, notebook, rest in jobs:
        try:
            problems += proof(module, read(root, module), notebook, read_notebook(root, notebook), *rest)
        except Problem as problem:
            problems.append(f"{proof.__name__} of {module} and {notebook}: {problem}")
    return problems


def show(root: Path, config: dict, copies: list[Copy]) -> None:
    """Print each copy with its sources and each proof with its files; files that do not exist are marked."""

    def mark(path: str) -> str:
        return path if (root / path).is_file() else f"{path} (missing)"

    for c in copies:
        print(f"{mark(c.target)} <- {', '.join(map(mark, c.sources))}")
    for e in config.get("ledger", []):
        print(f"{mark(e['module'])} == {mark(e['notebook'])}")
    for e in config.get("redefines_nothing", []):
        print(f"{', '.join(map(mark, e['notebooks']))} redefines nothing of {mark(e['module'])}")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or 1 after one line for each problem; a wrong copies.toml is exit code 2."""
    parser = argparse.ArgumentParser(description="Write every generated copy, and prove that repeated definitions agree.")
    parser.add_argument("--check", action="store_true", help="write nothing; report copies that differ and definitions that drifted")
    parser.add_argument("--list", action="store_true", help="show each copy and each proof, and what is missing")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="repository to work on (default: this one)")
    args = parser.parse_args(argv)
    try:
        config = load(args.root)
        copies = plan(args.root, config)
    except Problem as problem:
        parser.exit(2, f"{parser.prog}: error: {problem}\n")
    if args.list:
        show(args.root, config, copies)
        return 0
    problems = make_copies(args.root, copies, args.check) + (prove(args.root, config) if args.check else [])
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{len(copies)} copies are up to date" + (", repeated definitions agree" if args.check else ""))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
