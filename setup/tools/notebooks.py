"""Clean, execute, check and measure the notebooks of the course.

    python setup/tools/notebooks.py clean [PATHS]              # normalize metadata, so that diffs show content only
    python setup/tools/notebooks.py run [--measure] [PATHS]    # execute in order, offline, and save the outputs
    python setup/tools/notebooks.py check [PATHS]              # the rules of notebook_rules.py; exit 1 on a finding
    python setup/tools/notebooks.py table [--check]            # write measured minutes and memory into the READMEs

PATHS are notebooks or folders; without any, every notebook of the repository. `run` executes a notebook in a fresh
offline kernel (offline_kernel.py) whose working folder is the notebook's own, and replaces the file only after all
cells passed. `--measure` notes wall time and peak memory in budgets.json, beside this file, and in the READMEs' tables.
"""

import argparse
import re
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import notebook_rules
import offline_kernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from notebook_budgets import MAX_SUM_MINUTES, missing_model, peak_memory, read_budgets, record, relative, table, write_atomically
from tqdm import tqdm
from tracked import find_files

ROOT = Path(__file__).resolve().parents[2]
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def as_text(nb) -> str:
    """A notebook as deterministic JSON: sorted keys, one space of indentation, newline at the end."""
    return nbformat.writes(nb, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def clean(nb):
    """Drop what editors and kernels leave in a notebook; keep tags, alt texts, sources, outputs, valid cell ids and `requires`."""
    kept = {"requires": nb.metadata["requires"]} if "requires" in nb.metadata else {}
    nb.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": {"name": "python"}, **kept})
    nb.nbformat, nb.nbformat_minor = 4, 5
    _, nb = nbformat.validator.normalize(nb)  # a new id for a cell that has none or another cell's
    for cell in nb.cells:
        cell["metadata"] = nbformat.from_dict({"tags": list(cell.metadata["tags"])} if cell.metadata.get("tags") else {})
        if not cell.get("attachments"):
            cell.pop("attachments", None)
        if cell.cell_type == "code":
            cell["outputs"] = _merge_streams(cell.outputs)
            for output in cell.outputs:
                if "metadata" in output:
                    notes = {mime: note for mime, note in output.metadata.items() if isinstance(note, dict) and "alt" in note}
                    output["metadata"] = nbformat.from_dict({mime: {"alt": note["alt"]} for mime, note in notes.items()})
                if output.output_type == "execute_result":
                    output["execution_count"] = cell.execution_count
    return nb


def _merge_streams(outputs: list) -> list:
    """Join neighboring pieces of one stream: where a kernel cuts them is chance."""
    merged = []
    for output in outputs:
        if merged and output.output_type == "stream" and merged[-1].get("name") == output.name:
            merged[-1]["text"] += output.text
        else:
            merged.append(output)
    return merged


class CellFailed(Exception):
    """A cell raised; carries the message to show."""


def execute(nb, folder: Path, label: str) -> dict:
    """Run all cells in order in a fresh offline kernel; return {"seconds": ..., "peak_mb": ...}."""
    for cell in notebook_rules.code_cells(nb):
        cell["outputs"], cell["execution_count"] = [], None
    done = threading.Event()
    with tempfile.TemporaryDirectory(prefix="course-jupyter-", ignore_cleanup_errors=True) as data_dir, ThreadPoolExecutor(1) as pool:
        where = {"kernel_name": offline_kernel.announce(Path(data_dir)), "resources": {"metadata": {"path": str(folder)}}}
        client = NotebookClient(nb, timeout=None, record_timing=False, **where)
        start = time.perf_counter()
        with client.setup_kernel():
            peak = pool.submit(peak_memory, client.km.provisioner.pid, done)
            try:
                for index, cell in enumerate(tqdm(nb.cells, desc=label, unit="cell", disable=None)):
                    _execute_cell(client, cell, index)
            finally:
                done.set()
            seconds = time.perf_counter() - start
            return {"seconds": round(seconds, 1), "peak_mb": round(peak.result() / 1e6)}


def _execute_cell(client, cell, index: int) -> None:
    """Raises CellFailed; also for a wrong shape note that the cell's own code swallowed, which is an error output only."""
    try:
        client.execute_cell(cell, index)
        trace = [f"{out.ename}: {out.evalue}" for out in cell.get("outputs", []) if out.output_type == "error"]
        if not trace or notebook_rules.RAISES in notebook_rules.tags_of(cell):
            return
    except CellExecutionError as error:
        trace = re.sub(r"\x1b\[[0-9;]*m", "", error.traceback or str(error)).rstrip().splitlines()[-14:]
    except DeadKernelError:
        trace = ["the kernel died, perhaps out of memory"]
    raise CellFailed("\n    ".join([f"cell {cell.id} failed:", *cell.source.splitlines()[:4], "...", *trace]))


def run(notebooks: dict, root: Path, measure: bool) -> int:
    """Execute notebooks one after the other; save each that passes. Return the number of notebooks that failed."""
    failures = 0
    for path, nb in notebooks.items():
        name, package = relative(path, root), missing_model(nb.metadata)
        if path.name == "exercises.ipynb" or package:  # the learner's edition fails at its checks and is saved without outputs
            print(f"{name}: not run" + (f", the package {package} is not installed" if package else ""))
            continue
        try:
            measured = execute(nb, path.parent, name)
        except CellFailed as failure:
            print(f"{name}: {failure}\n  (the file is unchanged)", file=sys.stderr)
            failures += 1
            continue
        write_atomically(path, as_text(clean(nb)))
        print(f"{name}: passed in {measured['seconds']} s, peak memory {measured['peak_mb']} MB")
        if measure:
            record(name, measured, root)
    if measure:
        table(root)
    return failures


def check(notebooks: dict, root: Path) -> int:
    """Print one line a finding; return how many there are."""
    found, budgets = [], read_budgets(root)
    minutes = sum(row["seconds"] for row in budgets.values()) / 60
    if minutes > MAX_SUM_MINUTES:
        found.append(f"budgets.json: all notebooks take {minutes:.1f} minutes, at most {MAX_SUM_MINUTES}; make the slowest quicker")
    for path, nb in notebooks.items():
        problems = notebook_rules.findings(nb, path, root, budgets)
        if path.read_text(encoding="utf-8") != as_text(clean(nb)):
            problems.append("metadata is not normalized; run notebooks.py clean on this file")
        found += [f"{relative(path, root)}: {problem}" for problem in problems]
    print("\n".join(found), end="\n" if found else "")
    return len(found)


def clean_files(notebooks: dict, root: Path) -> int:
    for path, nb in notebooks.items():
        text = as_text(clean(nb))
        if text != path.read_text(encoding="utf-8"):
            write_atomically(path, text)
            print(f"{relative(path, root)}: cleaned")
    return 0


def main(argv=None) -> int:
    """Run one command; return the exit status (0 fine, 1 findings or failures); bad arguments exit with 2."""
    parser = argparse.ArgumentParser(prog="notebooks.py", description="Clean, execute, check and measure the notebooks of the course.")
    parser.add_argument("command", choices=["clean", "run", "check", "table"], help="explained in the first lines of notebooks.py")
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks or folders (default: the whole repository)")
    parser.add_argument("--measure", action="store_true", help="run: note wall time and peak memory in budgets.json and READMEs")
    parser.add_argument("--check", action="store_true", help="table: write nothing; exit 1 if a table is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository root (default: the one of this file)")
    args = parser.parse_intermixed_args(argv)
    root, notebooks, path = args.root.resolve(), {}, "PATHS"
    try:
        for path in find_files(args.paths, root, ".ipynb"):
            notebooks[path] = nbformat.read(path, as_version=4)
    except (FileNotFoundError, ValueError, nbformat.ValidationError) as error:
        parser.exit(2, f"notebooks.py: cannot read {path}: {str(error).splitlines()[0][:100]}\n")
    commands = {
        "clean": lambda: clean_files(notebooks, root),
        "run": lambda: run(notebooks, root, args.measure),
        "check": lambda: check(notebooks, root),
        "table": lambda: table(root, args.check),
    }
    return min(commands[args.command](), 1)


if __name__ == "__main__":
    sys.exit(main())
