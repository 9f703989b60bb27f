"""Clean, execute, check and measure the notebooks of the course.

    python setup/tools/notebooks.py clean [PATHS]              # normalise metadata, so that diffs show content only
    python setup/tools/notebooks.py run [--measure] PATHS      # execute in order, offline, and save the outputs
    python setup/tools/notebooks.py check [PATHS]              # the rules of notebook_rules.py; exit 1 on a finding
    python setup/tools/notebooks.py table [--check]            # write measured minutes and memory into the READMEs

PATHS are notebooks or folders; without any, every notebook of the repository. `run` executes a notebook in a fresh
offline kernel (offline_kernel.py) whose working folder is the notebook's own, and replaces the file only after all
cells passed. `--measure` notes wall time and peak memory in budgets.json, beside this file.
"""

import argparse
import datetime
import json
import os
import platform
import re
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path

import nbformat

import notebook_rules
import offline_kernel

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent.parent
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
MARK_START, MARK_END = "<!-- budgets:start -->", "<!-- budgets:end -->"


# ---- files ----------------------------------------------------------------------------------------------------------

def find_files(paths: list, root: Path, suffix: str = ".ipynb") -> list:
    """Expand files and folders to a sorted list of files; skip hidden folders, environments and installed packages."""
    found = []
    for path in [Path(p) for p in paths] or [root]:
        if path.is_dir():
            for folder, subfolders, names in os.walk(path):
                subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in ("venv", "node_modules", "__pycache__")]
                found += [Path(folder) / name for name in names if name.endswith(suffix)]
        elif path.is_file():
            found.append(path)
        else:
            raise SystemExit(_complain(f"no such file or folder: {path}"))
    return sorted({path.resolve() for path in found})


def _complain(message: str) -> int:
    print(f"notebooks.py: {message}", file=sys.stderr)
    return 2


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step: a reader, or a crash, sees the old file or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", text=False)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(name, path.stat().st_mode if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def relative(path: Path, root: Path) -> str:
    """Path as shown to people and used as key: relative to the root, with forward slashes."""
    path = Path(path).resolve()
    return path.relative_to(root).as_posix() if root in path.parents else str(path)


def save(nb, path: Path) -> None:
    """Write a notebook as deterministic JSON: sorted keys, one space of indentation, newline at the end."""
    write_atomically(path, nbformat.writes(nb, version=nbformat.NO_CONVERT).rstrip("\n") + "\n")


# ---- clean ----------------------------------------------------------------------------------------------------------

def clean(nb):
    """Drop what editors and kernels leave in a notebook; keep tags, alt texts, sources, outputs and valid cell ids."""
    nb.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": {"name": "python"}})
    nb.nbformat, nb.nbformat_minor = 4, 5
    used = set()
    for index, cell in enumerate(nb.cells):
        cell["metadata"] = nbformat.from_dict({"tags": list(cell.metadata["tags"])} if cell.metadata.get("tags") else {})
        cell["id"] = _cell_id(cell.get("id"), index, used)
        cell.pop("attachments", None) if not cell.get("attachments") else None
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

class MemoryWatch(threading.Thread):
    """Samples the resident memory of a process and its children twice a second; `peak` is in bytes."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.peak, self._done = pid, 0, threading.Event()

    def run(self):
        while not self._done.wait(0.5):
            self.sample()

    def sample(self) -> None:
        import psutil

        try:
            process = psutil.Process(self.pid)
            members = [process, *process.children(recursive=True)]
        except psutil.Error:
            return
        total = 0
        for member in members:
            try:
                total += member.memory_info().rss
            except psutil.Error:
                pass  # a child that has just ended
        self.peak = max(self.peak, total, _high_water_mark(self.pid))

    def stop(self) -> int:
        self.sample()
        self._done.set()
        return self.peak


def _high_water_mark(pid: int) -> int:
    """The kernel process's own maximum as Linux keeps it (0 elsewhere): catches peaks between two samples."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(match[1]) * 1024 if match else 0


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
                except CellExecutionError as error:
                    raise CellFailed(_describe_failure(cell, index, error)) from None
                except DeadKernelError:
                    raise CellFailed(f"cell {index}: the kernel died, perhaps out of memory\n{_head(cell)}") from None
            seconds = time.perf_counter() - start
            peak = watch.stop()
    return {"seconds": round(seconds, 1), "peak_mb": round(peak / 1e6)}


def _head(cell, lines: int = 4) -> str:
    return "\n".join(f"    {line}" for line in cell.source.splitlines()[:lines])


def _describe_failure(cell, index: int, error) -> str:
    trace = re.sub(r"\x1b\[[0-9;]*m", "", error.traceback or str(error)).rstrip().splitlines()
    return "\n".join([f"cell {index} failed:", _head(cell), "  ...", *(f"    {line}" for line in trace[-14:])])


def run(paths: list, root: Path, measure: bool = False, quiet: bool = False) -> int:
    """Execute notebooks one after the other; save each that passes. Return the number of notebooks that failed."""
    failures = 0
    for path in find_files(paths, root):
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


# ---- budgets --------------------------------------------------------------------------------------------------------

def budgets_file(root: Path) -> Path:
    return root / "setup" / "tools" / "budgets.json"


def read_budgets(root: Path) -> dict:
    path = budgets_file(root)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def describe_machine() -> str:
    """Cores, processor, Python and torch: what one needs to know to read a time."""
    model = platform.processor() or platform.machine()
    try:
        model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))[1].strip()
    except (OSError, TypeError):
        pass
    try:
        torch_version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch_version = "absent"
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}, torch {torch_version}"


def record(key: str, measured: dict, path: Path) -> None:
    """Store one measurement under the notebook's relative path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    budgets = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    budgets[key] = {**measured, "machine": describe_machine(), "date": datetime.date.today().isoformat()}
    write_atomically(path, json.dumps(budgets, indent=1, sort_keys=True) + "\n")


def budget_rows(folder: Path, root: Path, budgets: dict) -> str:
    """The measured table for the notebooks below `folder`, as markdown with links."""
    below = relative(folder, root) + "/" if folder != root else ""
    keys = sorted(key for key in budgets if key.startswith(below) and (root / key).exists())
    lines = ["| notebook | minutes | peak memory |", "|---|---|---|"]
    for key in keys:
        name = key[len(below):]
        lines.append(f"| [{name}]({name}) | {max(budgets[key]['seconds'] / 60, 0.1):.1f} | {budgets[key]['peak_mb'] / 1000:.1f} GB |")
    machines = sorted({budgets[key]["machine"] for key in keys})
    return "\n".join([*lines, "", *(f"Measured alone on: {machine}." for machine in machines)]).rstrip()


def table(root: Path, check_only: bool = False) -> int:
    """Rewrite the table between the marks of every README; return how many were out of date."""
    stale, budgets = 0, read_budgets(root)
    for path in find_files([], root, "README.md"):
        text = path.read_text(encoding="utf-8")
        if MARK_START not in text or MARK_END not in text:
            continue
        before, rest = text.split(MARK_START, 1)
        after = rest.split(MARK_END, 1)[1]
        new = f"{before}{MARK_START}\n{budget_rows(path.parent, root, budgets)}\n{MARK_END}{after}"
        if new != text:
            stale += 1
            print(f"{relative(path, root)}: the table of measured times is {'stale: run notebooks.py table' if check_only else 'written'}")
            if not check_only:
                write_atomically(path, new)
    return stale


# ---- command line ---------------------------------------------------------------------------------------------------

def check(paths: list, root: Path, strict_budgets: bool = False) -> int:
    """Print one line a finding; return how many there are."""
    count, budgets = 0, read_budgets(root)
    for path in find_files(paths, root):
        for finding in notebook_rules.findings(path, root, budgets, strict_budgets):
            print(f"{relative(path, root)}: {finding}")
            count += 1
    return count


def clean_files(paths: list, root: Path) -> int:
    for path in find_files(paths, root):
        before = path.read_text(encoding="utf-8")
        nb = clean(nbformat.reads(before, as_version=4))
        if nbformat.writes(nb, version=nbformat.NO_CONVERT).rstrip("\n") + "\n" != before:
            save(nb, path)
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
            command.add_argument("paths", nargs="+" if name == "run" else "*", type=Path, help="notebooks or folders")
        if name == "run":
            command.add_argument("--measure", action="store_true", help="note wall time and peak memory in budgets.json")
            command.add_argument("--quiet", action="store_true", help="no progress bar")
        if name == "check":
            command.add_argument("--strict-budgets", "--strict_budgets", action="store_true", help="a notebook without a measurement is a finding")
        if name == "table":
            command.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is out of date")
    return parser


def main(argv=None) -> int:
    """Run one command; return the exit status (0 fine, 1 findings or failures, 2 bad arguments)."""
    args = build_parser().parse_args(argv)
    root = args.root.resolve()
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
