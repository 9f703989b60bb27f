"""Write every generated file of this repository, and prove that repeated definitions agree.

    python setup/tools/copies.py            write every generated file, remove what is no longer needed (make copies)
    python setup/tools/copies.py --check    rewrite in memory, exit 1 with one line for each difference (part of make test)

Numbered folders run alone, so nothing imports across folders. What a folder borrows, it imports, and the import is the only
declaration: `from previous_chapters import GPTModel` in a module, notebook or test makes this tool write a module
`previous_chapters.py` with that class and all it uses into the folder. `copies.toml`, beside this file, lists the families of
modules that lend. Data files that borrowed code reads come along; `exercises.ipynb` is made from `exercise-solutions.ipynb`,
and `indexes.py` makes the index of all exercises and chapter 1's map of folders.
"""

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
from borrowing import DEFINITIONS, Family, Problem, Source, parse
from indexes import pages
from ledger import cell_statements, ledger
from tracked import tracked

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG = "setup/tools/copies.toml"
REQUIRED, OPTIONAL = {"module", "notebook"}, {"module_only", "deviations"}  # keys of a [[ledger]]
NUMBERED = re.compile(r"((?:ch\d\d|appendix-[A-E])/\d\d_[^/]+)/(?:tests/)?[^/]+\.(?:py|ipynb)")
MARK = re.compile(r"Generated (?:by|from \S+ by) `make copies`")
SOLUTIONS, EDITION = "exercise-solutions.ipynb", "exercises.ipynb"
NOTE = (
    f"*Work each exercise in its stub cell, then run the check cell below it; worked solutions are in `{SOLUTIONS}`. "
    f"(Generated from `{SOLUTIONS}` by `make copies`.)*"
)


@dataclass
class Copy:
    """One generated file: where it goes, what it is made from, and its bytes."""

    target: str
    sources: list[str]
    content: bytes


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


# ---- borrowed modules ----


def load(root: Path) -> tuple[list[Family], dict]:
    """The families and the proofs of copies.toml; Problem if it is not what its own first lines say."""
    try:
        config = tomllib.loads(read(root, CONFIG))
    except tomllib.TOMLDecodeError as error:
        raise Problem(f"{CONFIG}: {error}") from None
    if unknown := config.keys() - {"families", "ledger"}:
        raise Problem(f"{CONFIG}: unknown kind {', '.join(sorted(unknown))} (known: families, ledger)")
    for entry in config.get("ledger", []):
        if not REQUIRED <= entry.keys() <= REQUIRED | OPTIONAL:
            raise Problem(f"{CONFIG}: a [[ledger]] has the keys {sorted(entry)}, needs {sorted(REQUIRED)}, may have {sorted(OPTIONAL)}")
    families: list[Family] = []
    for name, paths in config.get("families", {}).items():
        sources = [Source(path, read(root, path)) for path in paths]
        families.append(Family(root, name, sources, [family.name for family in families]))
    return families, config


def imported(root: Path, path: str, families: set[str]) -> dict[str, set[str]]:
    """Family -> names that a module or notebook imports from it, wherever the statement stands."""
    if path.endswith(".py"):
        nodes = parse(path, read(root, path)).body
    else:
        nodes = [node for _, node, _ in cell_statements(read_notebook(root, path), path)]
    found: dict[str, set[str]] = {}
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.ImportFrom) and node.module in families:
            names = {alias.name for alias in node.names}
            if "*" in names:
                raise Problem(f"{path} imports * from {node.module}: name what it needs")
            found.setdefault(node.module, set()).update(names)
    return found


def borrowed(root: Path, folder: str, files: list[str], families: list[Family]) -> list[Copy]:
    """The generated modules of one folder, and the data files that they read."""
    born_here = {source.path for family in families for source in family.sources}
    lent = [family for family in families if f"{folder}/{family.name}.py" not in born_here]
    generated = {f"{folder}/{family.name}.py" for family in lent} | {f"{folder}/{EDITION}"}
    wanted: dict[str, set[str]] = {}
    for path in files:
        if path not in generated:
            for name, names in imported(root, path, {family.name for family in lent}).items():
                wanted.setdefault(name, set()).update(names)
    found = []
    for family in reversed(lent):  # the later ones import from the earlier ones
        if names := wanted.get(family.name):
            made = family.borrow(names)
            refuse_later(folder, made.sources)
            for name, more in made.needs.items():
                wanted.setdefault(name, set()).update(more)
            found.append(Copy(f"{folder}/{family.name}.py", made.sources, made.text.encode("utf-8")))
            found += [Copy(f"{folder}/{Path(path).name}", [path], (root / path).read_bytes()) for path in made.data]
    return found


def refuse_later(folder: str, sources: list[str]) -> None:
    """Problem if a source lies in the folder itself or in a later chapter; appendices may lend to any chapter."""
    for source in sources:
        if source.startswith(f"{folder}/"):
            raise Problem(f"borrows from {source}, its own file: import it by its own name")
        if source.startswith("ch") and folder.startswith("ch") and source.split("/")[0] > folder.split("/")[0]:
            raise Problem(f"borrows from {source}, a later chapter")


# ---- learner editions ----


def refuse_leaks(notebook: nbformat.NotebookNode, source: str) -> None:
    """Problem if a cell redefines what a stub defines without the tag `solution`: it would show the answer to learners."""
    stubs: set[str] = set()
    for cell_id, node, cell in cell_statements(notebook, source):
        name = node.name if isinstance(node, DEFINITIONS) else None
        tags = cell.metadata.get("tags", [])
        if "stub" in tags:
            stubs |= {name} - {None}
        elif name in stubs and "solution" not in tags:
            raise Problem(f"{source} cell {cell_id} redefines the stub {name} but lacks the tag `solution`")


def learner_edition(root: Path, source: str) -> bytes:
    """No cells tagged `solution`, no outputs, normalized metadata, a first cell that says so."""
    notebook = read_notebook(root, source)
    refuse_leaks(notebook, source)
    cells = [nbformat.v4.new_markdown_cell(NOTE, id="generated-note")]
    for cell in notebook.cells:
        if "id" not in cell:
            raise Problem(f"{source} has cells without ids, which the learner edition keeps")
        tags = cell.metadata.get("tags", [])
        if "solution" in tags:
            continue
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cells.append(cell)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    learner = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    learner.nbformat_minor = 5
    return (nbformat.writes(learner).rstrip("\n") + "\n").encode("utf-8")


# ---- the plan ----


def plan(root: Path, families: list[Family], files_of_project: list[str]) -> tuple[list[Copy], list[str]]:
    """Every generated file that can be made, and a line for each that cannot."""
    folders: dict[str, list[str]] = {}
    for path in files_of_project:
        if match := NUMBERED.fullmatch(path):
            folders.setdefault(match[1], []).append(path)
    found: list[Copy] = []
    problems = []
    for folder, files in sorted(folders.items()):
        try:
            found += borrowed(root, folder, files, families)
            if (source := f"{folder}/{SOLUTIONS}") in files:
                found.append(Copy(f"{folder}/{EDITION}", [source], learner_edition(root, source)))
        except Problem as problem:
            problems.append(f"{folder}: {problem}")
    return found, problems


def indexed(root: Path, files_of_project: list[str]) -> tuple[list[Copy], list[str]]:
    """The pages that hold an index, and a line if one cannot be made, which keeps no other file from being written."""
    try:
        return [Copy(*page) for page in pages(root, files_of_project)], []
    except Problem as problem:
        return [], [str(problem)]


def orphans(root: Path, families: list[Family], copies: list[Copy], files_of_project: list[str]) -> list[str]:
    """Tracked files that call themselves generated, or repeat a lent data file, and are in no plan."""
    planned = {c.target for c in copies}
    data = {Path(path).name: path for family in families for path in family.data}
    found = []
    for path in files_of_project:
        if path in planned or path.startswith("setup/") or not (root / path).is_file():
            continue
        head = (root / path).read_bytes()[:2000].decode("utf-8", "replace") if path.endswith((".py", ".ipynb")) else ""
        if MARK.search(head) or data.get(Path(path).name, path) != path:
            found.append(path)
    return found


def settle(root: Path, copies: list[Copy], unneeded: list[str], check: bool) -> list[str]:
    """Write what is out of date and remove what nothing needs any more; with `check` only return a line for each."""
    problems = []
    for c in copies:
        path = root / c.target
        if path.is_file() and path.read_bytes() == c.content:
            continue
        if check:
            problems.append(f"{c.target} is missing or differs from {', '.join(c.sources)}: run `make copies`")
        else:
            path.write_bytes(c.content)
            print(f"wrote {c.target}")
    for name in unneeded:
        if check:
            problems.append(f"{name} says that it is generated, but nothing needs it: run `make copies`")
        else:
            (root / name).unlink()
            print(f"removed {name}: nothing needs it any more")
    return problems


def prove(root: Path, config: dict) -> list[str]:
    """Problems of every ledger."""
    problems = []
    for e in config.get("ledger", []):
        module, notebook = e["module"], e["notebook"]
        try:
            exceptions = e.get("module_only", {}), e.get("deviations", {})
            problems += ledger(module, read(root, module), notebook, read_notebook(root, notebook), *exceptions)
        except Problem as problem:
            problems.append(f"ledger of {module} and {notebook}: {problem}")
    return problems


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or 1 after one line for each problem; a wrong copies.toml is exit code 2."""
    parser = argparse.ArgumentParser(description="Write every generated file, and prove that repeated definitions agree.")
    parser.add_argument("--check", action="store_true", help="write nothing; report files that differ and definitions that drifted")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="repository to work on (default: this one)")
    args = parser.parse_args(argv)
    try:
        families, config = load(args.root)
        for family in families:
            family.home  # noqa: B018 (two meanings of one name are a fault even where nobody borrows it)
    except Problem as problem:
        parser.exit(2, f"{parser.prog}: error: {problem}\n")
    files = tracked(args.root, new=not args.check)  # what git does not know may be a learner's own: it is served, not judged
    copies, problems = plan(args.root, families, files)
    index_pages, unindexed = indexed(args.root, files)
    if args.check or not problems:  # with a folder missing from the plan, its files would look like orphans
        problems += settle(args.root, copies + index_pages, orphans(args.root, families, copies, files), args.check)
    problems += unindexed
    problems += prove(args.root, config) if args.check else []
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{len(copies + index_pages)} generated files are up to date" + (", repeated definitions agree" if args.check else ""))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
