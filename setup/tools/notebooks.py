"""Clean, execute, check and measure the notebooks of the course.

    python setup/tools/notebooks.py clean [PATHS]              # normalise metadata, so that diffs show content only
    python setup/tools/notebooks.py run [--measure] [PATHS]    # execute in order, offline, and save the outputs
    python setup/tools/notebooks.py check [PATHS]              # the rules of notebook_rules.py; exit 1 on a finding
    python setup/tools/notebooks.py table [--check]            # write measured minutes and memory into the READMEs

PATHS are notebooks or folders; without any, every notebook of the repository. `run` executes a notebook in a fresh
offline kernel (offline_kernel.py) whose working folder is the notebook's own, and replaces the file only after all
cells passed. `--measure` notes wall time and peak memory in budgets.json, beside this file.
"""

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import notebook_rules
import offline_kernel
from notebook_budgets import MemoryWatch, budgets_file, find_files, read_budgets, record, relative, table, write_atomically

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent.parent
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


# ---- clean ----------------------------------------------------------------------------------------------------------

def as_text(nb) -> str:
    """A notebook as deterministic JSON: sorted keys, one space of indentation, newline at the end."""
    return nbformat.writes(nb, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def save(nb, path: Path) -> None:
    write_atomically(path, as_text(nb))


def clean(nb):
    """Drop what editors and kernels leave in a notebook; keep tags, alt texts, sources, outputs and valid cell ids."""
    nb.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": {"name": "python"}})
    nb.nbformat, nb.nbformat_minor = 4, 5
    used = set()
    for index, cell in enumerate(nb.cells):
        cell["metadata"] = nbformat.from_dict({"tags": list(cell.metadata["tags"])} if cell.metadata.get("tags") else {})
        cell["id"] = _cell_id(cell.get("id"), index, used)
        if not cell.get("attachments"):
            cell.pop("attachments", None)
        if cell.cell_type == "code":
            cell["outputs"] = _merge_streams(cell.outputs)
            for output in cell.outputs:
                _clean_output(output, cell.execution_count)
    return nb


def _cell_id(current, index: int, used: set) -> str:
    """Keep an id that is valid and new in this notebook, else number the cell by its position."""
    if not current or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", current) or current in used:
        current, extra = f"cell-{index:03d}", 0
        while current in used:
            extra += 1
            current = f"cell-{index:03d}-{extra}"
    used.add(current)
    return current


def _merge_streams(outputs: list) -> list:
    """Join neighbouring pieces of one stream: where a kernel cuts them is chance."""
    merged = []
    for output in outputs:
        if merged and output.output_type == "stream" and merged[-1].output_type == "stream" and merged[-1].name == output.name:
            merged[-1]["text"] += output.text
        else:
            merged.append(output)
    return merged


def _clean_output(output, execution_count) -> None:
    if "metadata" in output:
        alts = {mime: {"alt": value["alt"]} for mime, value in output.metadata.items() if isinstance(value, dict) and "alt" in value}
        output["metadata"] = nbformat.from_dict(alts)
    if output.output_type == "execute_result":
        output["execution_count"] = execution_count


# ---- run ------------------------------------------------------------------------------------------------------------

class CellFailed(Exception):
    """A cell raised; carries the message to show."""


def execute(nb, folder: Path, label: str, quiet: bool = False) -> dict:
    """Run all cells in order in a fresh offline kernel; return {"seconds": ..., "peak_mb": ...}."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from tqdm import tqdm

    with tempfile.TemporaryDirectory(prefix="course-jupyter-", ignore_cleanup_errors=True) as data_dir:
        kernel_name = offline_kernel.announce(Path(data_dir))
        client = NotebookClient(
            nb, timeout=None, kernel_name=kernel_name, record_timing=False, resources={"metadata": {"path": str(folder)}}
        )
        start = time.perf_counter()
        with client.setup_kernel():
            watch = MemoryWatch(client.km.provisioner.pid)
            watch.start()
            for index, cell in enumerate(tqdm(nb.cells, desc=label, unit="cell", file=sys.stderr, disable=quiet)):
                try:
                    client.execute_cell(cell, index)
                    _refuse_error_output(cell, index)
                except CellExecutionError as error:
                    raise CellFailed(_describe_failure(cell, index, error)) from None
                except DeadKernelError:
                    raise CellFailed(f"cell {index}: the kernel died, perhaps out of memory\n{_head(cell)}") from None
            seconds = time.perf_counter() - start
            peak = watch.stop()
    return {"seconds": round(seconds, 1), "peak_mb": round(peak / 1e6)}


def _refuse_error_output(cell, index: int) -> None:
    """A wrong shape note that the cell's own code swallowed arrives as an error output only."""
    for output in cell.get("outputs", []):
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
            raise CellFailed(f"cell {index} failed: {output.ename}: {output.evalue}\n{_head(cell)}")


def _head(cell, lines: int = 4) -> str:
    return "\n".join(f"    {line}" for line in cell.source.splitlines()[:lines])


def _describe_failure(cell, index: int, error) -> str:
    trace = re.sub(r"\x1b\[[0-9;]*m", "", error.traceback or str(error)).rstrip().splitlines()
    return "\n".join([f"cell {index} failed:", _head(cell), "  ...", *(f"    {line}" for line in trace[-14:])])


def run(paths: list, root: Path, measure: bool = False, quiet: bool = False) -> int:
    """Execute notebooks one after the other; save each that passes. Return the number of notebooks that failed."""
    failures = 0
    for path in find_files(paths, root):
        if path.name == "exercises.ipynb" and path not in [Path(p).resolve() for p in paths]:
            continue  # the learner's edition fails at its checks, on purpose, and is saved without outputs
        nb = nbformat.read(path, as_version=4)
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell["outputs"], cell["execution_count"] = [], None
        try:
            measured = execute(nb, path.parent, relative(path, root), quiet)
        except CellFailed as failure:
            print(f"{relative(path, root)}: {failure}\n  (the file is unchanged)", file=sys.stderr)
            failures += 1
            continue
        save(clean(nb), path)
        print(f"{relative(path, root)}: passed in {measured['seconds']} s, peak memory {measured['peak_mb']} MB")
        if measure:
            record(relative(path, root), measured, budgets_file(root))
    return failures


# ---- command line ---------------------------------------------------------------------------------------------------

def check(paths: list, root: Path, strict_budgets: bool = False) -> int:
    """Print one line a finding; return how many there are."""
    count, budgets = 0, read_budgets(root)
    for path in find_files(paths, root):
        found = notebook_rules.findings(path, root, budgets, strict_budgets)
        if not is_clean(path):
            found.append("metadata is not normalised; run notebooks.py clean on this file")
        for finding in found:
            print(f"{relative(path, root)}: {finding}")
            count += 1
    return count


def is_clean(path: Path) -> bool:
    return path.read_text(encoding="utf-8") == as_text(clean(nbformat.read(path, as_version=4)))


def clean_files(paths: list, root: Path) -> int:
    for path in find_files(paths, root):
        if not is_clean(path):
            save(clean(nbformat.read(path, as_version=4)), path)
            print(f"{relative(path, root)}: cleaned")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="notebooks.py", description="Clean, execute, check and measure the notebooks of the course.")
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "clean": "normalise metadata", "run": "execute in order and save the outputs",
        "check": "check the rules for notebooks", "table": "write measured times into the READMEs",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--root", type=Path, default=ROOT, help="repository root (default: the one of this file)")
        if name != "table":
            command.add_argument("paths", nargs="*", type=Path, help="notebooks or folders")
        if name == "run":
            command.add_argument("--measure", action="store_true", help="note wall time and peak memory in budgets.json")
            command.add_argument("--quiet", action="store_true", help="no progress bar")
        if name == "check":
            command.add_argument("--strict-budgets", action="store_true", help="a notebook without a measurement is a finding")
        if name == "table":
            command.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is out of date")
    return parser


def _unreadable(paths: list, root: Path):
    """Why the notebooks cannot be read, as one line, or None."""
    path = None
    try:
        for path in find_files(paths, root):
            nbformat.read(path, as_version=4)
    except FileNotFoundError as error:
        return str(error)
    except (ValueError, nbformat.ValidationError) as error:
        return f"{path} is not a readable notebook: {(str(error).splitlines() or ['?'])[0][:100]}"
    return None


def main(argv=None) -> int:
    """Run one command; return the exit status (0 fine, 1 findings or failures, 2 bad arguments)."""
    args = build_parser().parse_args(argv)
    root = args.root.resolve()
    problem = _unreadable(getattr(args, "paths", []), root)
    if problem:
        print(f"notebooks.py: {problem}", file=sys.stderr)
        return 2
    if args.command == "run":
        return min(run(args.paths, root, args.measure, args.quiet), 1)
    if args.command == "check":
        return min(check(args.paths, root, args.strict_budgets), 1)
    if args.command == "table":
        stale = table(root, args.check)
        return min(stale, 1) if args.check else 0
    return clean_files(args.paths, root)


if __name__ == "__main__":
    sys.exit(main())
