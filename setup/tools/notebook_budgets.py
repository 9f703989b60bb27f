"""Measured cost of the notebooks: memory watch, budgets.json, and the tables in the READMEs (used by notebooks.py)."""

import datetime
import json
import os
import platform
import re
import tempfile
import threading
from importlib import metadata
from pathlib import Path

import psutil

MARK_START, MARK_END = "<!-- budgets:start -->", "<!-- budgets:end -->"
SKIPPED_FOLDERS = {"venv", "node_modules", "__pycache__"}


# ---- files ----------------------------------------------------------------------------------------------------------

def find_files(paths: list, root: Path, suffix: str = ".ipynb") -> list:
    """Expand files and folders to a sorted list of files; skip hidden folders, environments and installed packages."""
    found = []
    for path in [Path(p) for p in paths] or [root]:
        if path.is_dir():
            for folder, subfolders, names in os.walk(path):
                subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in SKIPPED_FOLDERS]
                found += [Path(folder) / name for name in names if name.endswith(suffix)]
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"no such file or folder: {path}")
    return sorted({path.resolve() for path in found})


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


# ---- memory ---------------------------------------------------------------------------------------------------------

class MemoryWatch(threading.Thread):
    """Samples the resident memory of a process and its children twice a second; `peak` is in bytes."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.peak, self._done = pid, 0, threading.Event()

    def run(self):
        while not self._done.wait(0.5):
            self.sample()

    def sample(self) -> None:
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


# ---- budgets.json and tables ----------------------------------------------------------------------------------------

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
