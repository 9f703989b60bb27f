"""Run everything that proves this repository right, stage by stage, and say how long each took.

    python setup/tools/run_tests.py             everything (make test)
    python setup/tools/run_tests.py --fast      lint, proven copies, quick unit tests (make test-fast)
    python setup/tools/run_tests.py --only lint one stage: lint, proofs, unit, notebooks

Works without make and on every system. Nothing needs the network. The last line is `N passed, N failed`.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = "setup/tools"
STAGES = ("lint", "proofs", "unit", "notebooks")
HEAVY = ("ch05/01_main-chapter-code/ch05.ipynb",)  # trains with all threads, so it runs alone
SKIPPED_FOLDERS = {".venv", ".git", ".ipynb_checkpoints", "runs", "build", "node_modules"}
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONUTF8": "1",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass
class Result:
    """What one command did: how many of its parts passed and failed, and for how long it ran."""

    name: str
    passed: int
    failed: int
    seconds: float
    lines: list = field(default_factory=list)

    @property
    def ok(self):
        return self.failed == 0


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_reference_platform():
    """True where stored outputs are compared exactly: Linux on x86-64, the pinned torch and numpy."""
    if platform.system() != "Linux" or platform.machine().lower() not in ("x86_64", "amd64") or sys.version_info < (3, 11):
        return False
    from importlib.metadata import PackageNotFoundError, version

    text = (ROOT / "setup/constraints.txt").read_text(encoding="utf-8")
    for name in ("torch", "numpy"):
        pinned = re.search(rf"^{name}==([^\s;]+)", text, flags=re.M).group(1)
        try:
            if version(name).split("+")[0] != pinned:
                return False
        except PackageNotFoundError:
            return False
    return True


def find_notebooks(root=ROOT):
    """Every notebook but the learner editions (they fail on purpose and have tests of their own), slowest first."""
    found = []
    for path in root.rglob("*.ipynb"):
        inside = path.relative_to(root)
        if path.name != "exercises.ipynb" and not SKIPPED_FOLDERS.intersection(inside.parts):
            found.append(inside.as_posix())
    return sorted(found, key=lambda name: (-measured_seconds(root).get(name, 0.0), name))


def measured_seconds(root=ROOT):
    """Notebook -> seconds, from the measured table; empty before the first measurement."""
    path = root / TOOLS / "budgets.json"
    if not path.exists():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    table = table.get("notebooks", table)
    return {name: float(row["seconds"]) for name, row in table.items() if isinstance(row, dict) and "seconds" in row}


def count(lines, returncode):
    """(passed, failed) of one command: from pytest's closing line if there is one, else 1 or 0 by its exit code.

    A skipped or expected failure is neither. A command that fails without naming a failed test counts as one failure.
    """
    passed = failed = 0
    for line in reversed(lines):
        if re.search(r"\b(passed|failed|error|errors|skipped|no tests ran)\b.* in [\d.:]+s", line):
            numbers = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", line)}
            passed, failed = numbers.get("passed", 0), numbers.get("failed", 0) + numbers.get("error", 0)
            break
    else:
        passed = 1 if returncode == 0 else 0
    return passed, failed if failed or returncode == 0 else 1


def run(name, command, env=None):
    """Run one command from the root, show its output as it comes, and count what passed."""
    print(f"\n--- {name}: {' '.join(Path(part).name if part == sys.executable else part for part in command)}", flush=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **OFFLINE, **(env or {})}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
    )
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip("\n"))
    returncode = process.wait()
    passed, failed = count(lines, returncode)
    result = Result(name, passed, failed, time.perf_counter() - started, lines)
    print(f"--- {name}: {'ok' if result.ok else 'FAILED'}, {result.seconds / 60:.1f} min", flush=True)
    return result


def lint_stage(args):
    yield run("ruff", [sys.executable, "-m", "ruff", "check", "."])
    yield run("double quotes", [sys.executable, ".github/scripts/check_double_quotes.py", "--include-notebooks"])


def proofs_stage(args):
    yield run("copies", [sys.executable, f"{TOOLS}/copies.py", "--check"])
    if args.fast:
        return
    yield run("notebook rules", [sys.executable, f"{TOOLS}/notebooks.py", "check"])
    yield run("measured tables", [sys.executable, f"{TOOLS}/notebooks.py", "table", "--check"])
    yield run("links", [sys.executable, f"{TOOLS}/links.py"])
    yield run("shape notes", [sys.executable, f"{TOOLS}/shapes.py"], env=ONE_THREAD)


def pytest_command(*arguments):
    return [sys.executable, "-m", "pytest", "-q", "--color=no", *arguments]


def unit_stage(args):
    selection = "not network and not gpu" + (" and not slow" if args.fast else "")
    spread = ["-n", str(args.workers), "--dist", "loadfile"]
    yield run("unit tests", pytest_command(*spread, "--durations=10", "-m", selection), env=ONE_THREAD)


def notebooks_stage(args):
    """Light notebooks spread over the cores, each whole on one worker; heavy ones one at a time with all threads."""
    notebooks = find_notebooks()
    light = [name for name in notebooks if name not in HEAVY]
    nbval = "--nbval" if is_reference_platform() and not args.lax else "--nbval-lax"
    spread = ["-n", str(min(args.workers, 4, len(light))), "--dist", "loadfile", "--no-loadscope-reorder"]
    if light:
        yield run("notebooks", pytest_command(nbval, *spread, *light), env=ONE_THREAD)
    for name in HEAVY:
        if name in notebooks:
            yield run(Path(name).name, pytest_command(nbval, "-p", "no:xdist", name))


def tree_state():
    """What git sees as changed or new, or None outside a git checkout."""
    try:
        answer = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return set(answer.stdout.splitlines())


def build_parser():
    parser = argparse.ArgumentParser(description="Prove this repository right: lint, proofs, unit tests, notebooks.", allow_abbrev=False)
    parser.add_argument("--fast", action="store_true", help="lint, copies and unit tests not marked slow")
    parser.add_argument("--only", choices=STAGES, nargs="+", help="run these stages only")
    parser.add_argument("--list", action="store_true", help="print the notebooks that are executed, and stop")
    parser.add_argument("--lax", action="store_true", help="run notebooks without comparing stored outputs")
    parser.add_argument("--workers", type=int, default=cores(), help="processes for tests and notebooks (default: cores, here %(default)s)")
    return parser


def main(argv=None):
    """Run the stages; 0 if all passed, 1 if something failed, 2 for bad arguments."""
    args = build_parser().parse_args(argv)
    if args.workers < 1:
        print(f"run_tests.py: error: --workers {args.workers} is below 1", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(find_notebooks()))
        return 0
    wanted = args.only or (STAGES[:3] if args.fast else STAGES)
    functions = {"lint": lint_stage, "proofs": proofs_stage, "unit": unit_stage, "notebooks": notebooks_stage}
    before, results = tree_state(), []
    for stage in wanted:
        results.extend(functions[stage](args))
    left = sorted((tree_state() or set()) - before) if before is not None else []
    if not args.only and not args.fast and before is not None:
        results.append(Result("working tree unchanged", int(not left), int(bool(left)), 0.0))
        for line in left:
            print(f"left behind: {line}")
    return report(results)


def failures(result, most=12):
    """The lines in which pytest names what failed, so that the end of a long log tells; at most `most` of them."""
    named = [line for line in result.lines if line.startswith(("FAILED ", "ERROR "))]
    return named[:most] + ([f"... and {len(named) - most} more"] if len(named) > most else [])


def report(results):
    """Print one line a command, what failed, and the total; return the exit status."""
    print(f"\n{'':30} {'passed':>7} {'failed':>7} {'minutes':>8}")
    for result in results:
        mark = "" if result.ok else "   <-- FAILED"
        print(f"{result.name:30} {result.passed:7d} {result.failed:7d} {result.seconds / 60:8.1f}{mark}")
    for line in (line for result in results for line in failures(result)):
        print(line)
    passed, failed = sum(r.passed for r in results), sum(r.failed for r in results)
    print(f"{'total':30} {passed:7d} {failed:7d} {sum(r.seconds for r in results) / 60:8.1f}\n")
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
