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
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil
from notebook_budgets import missing_model, read_budgets
from tracked import git, tracked

ROOT = Path(__file__).resolve().parents[2]
TOOLS = "setup/tools"
BYTES_EACH = 3 * 10**9  # memory that a test process may need
HEAVY_SECONDS, HEAVY_MEGABYTES = 60, 2000  # a notebook above either runs alone, with all threads
CELL_SECONDS = 600  # a cell that takes longer hangs; pyproject.toml says the same of a test
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
    """What one command did: how many of its parts passed, failed and were skipped, and for how long it ran."""

    name: str
    passed: int
    failed: int
    skipped: int = 0
    seconds: float = 0.0
    lines: list = field(default_factory=list)


def possible_workers():
    """How many test processes the cores and the memory of this machine carry."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().total // BYTES_EACH))


def is_reference_platform():
    """True where stored outputs are compared exactly: Linux on x86-64, the pinned torch and numpy."""
    if platform.system() != "Linux" or platform.machine().lower() not in ("x86_64", "amd64") or sys.version_info < (3, 11):
        return False
    pins = (ROOT / "setup/constraints.txt").read_text(encoding="utf-8").split()
    return all(f"{name}=={version(name).split('+')[0]}" in pins for name in ("torch", "numpy"))


def find_notebooks():
    """(name, measured cost) of every notebook but the learner editions (they fail on purpose, in tests of their own), slowest first."""
    costs = read_budgets(ROOT)
    names = [name for name in tracked(ROOT, new=False) if name.endswith(".ipynb") and not name.endswith("exercises.ipynb")]
    found = [(name, costs.get(name, {"seconds": 0.0, "peak_mb": 0})) for name in names]
    return sorted(found, key=lambda pair: (-pair[1]["seconds"], pair[0]))


def count(lines, returncode):
    """(passed, failed, skipped) of one command: from pytest's closing line if there is one, else 1 or 0 by its exit code.

    An expected failure is neither. A command that fails without naming a failed test counts as one failure.
    """
    for line in reversed(lines):
        if re.search(r"\b(passed|failed|error|errors|skipped|no tests ran)\b.* in [\d.:]+s", line):
            numbers = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", line)}
            failed = numbers.get("failed", 0) + numbers.get("error", 0)
            return numbers.get("passed", 0), failed or int(returncode != 0), numbers.get("skipped", 0)
    return int(returncode == 0), int(returncode != 0), 0


def run(name, command, env=None):
    """Run one command from the root, show its output as it comes, and count what passed."""
    print(f"\n--- {name}: {' '.join(Path(part).name if part == sys.executable else part for part in command)}", flush=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **OFFLINE, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip("\n"))
    result = Result(name, *count(lines, process.wait()), time.perf_counter() - started, lines)
    print(f"--- {name}: {'FAILED' if result.failed else 'ok'}, {result.seconds / 60:.1f} min", flush=True)
    return result


def pytest(name, *arguments, env=None):
    return run(name, [sys.executable, "-m", "pytest", "-q", "--color=no", *arguments], env)


def lint_stage(args):
    excluded = [part for name in unknown_files() for part in ("--extend-exclude", name)]
    yield run("ruff", [sys.executable, "-m", "ruff", "check", *excluded, "."])


def proofs_stage(args):
    proofs = ["copies.py --check", "notebooks.py check", "notebooks.py table --check", "links.py", "alone.py"]
    for proof in proofs[:1] if args.fast else proofs:
        yield run(proof, [sys.executable, *f"{TOOLS}/{proof}".split()], ONE_THREAD)
    yield run("make_pages.py --check", [sys.executable, "quiz/make_pages.py", "--check"])


def unit_stage(args):
    selection = "not network and not gpu" + (" and not slow" if args.fast else "")
    with tempfile.TemporaryDirectory() as ran:  # where every process writes which shape notes it met
        env = {**ONE_THREAD, "COURSE_SHAPES_RAN": ran}
        yield pytest("unit tests", "-n", str(args.workers), "--dist", "loadfile", "--durations=10", "-m", selection, env=env)
        if not args.fast:
            yield run("shape notes", [sys.executable, f"{TOOLS}/shapes.py", ran])


def notebooks_stage(args):
    """Light notebooks spread over the workers, each whole on one; heavy ones one at a time with all threads."""
    light, heavy, missing = [], [], []
    for name, cost in find_notebooks():
        package = missing_model(json.loads((ROOT / name).read_text(encoding="utf-8"))["metadata"])
        if package:
            missing.append(f"{name}: not run, because the package {package} is not installed")
        else:
            (heavy if cost["seconds"] > HEAVY_SECONDS or cost["peak_mb"] > HEAVY_MEGABYTES else light).append(name)
    how = ["--nbval" if is_reference_platform() and not args.lax else "--nbval-lax", f"--nbval-cell-timeout={CELL_SECONDS}"]
    if light:
        yield pytest("notebooks", *how, "-n", str(args.workers), "--dist", "loadfile", "--no-loadscope-reorder", *light, env=ONE_THREAD)
    for name in heavy:
        yield pytest(Path(name).name, *how, "-p", "no:xdist", name)
    if missing:
        print("\n".join(["", *missing]))
        failed = len(missing) if os.environ.get("CI") == "true" else 0  # there the package must be installed
        yield Result("notebooks without a model", 0, failed, len(missing) - failed)


STAGES = {"lint": lint_stage, "proofs": proofs_stage, "unit": unit_stage, "notebooks": notebooks_stage}


def unknown_files():
    """Files that git would add but does not know: a learner's own, or a new part of the course that waits for `git add`."""
    return sorted(set(tracked(ROOT)) - set(tracked(ROOT, new=False)))


def main(argv=None):
    """Run the stages; 0 if all passed, 1 if something failed; bad arguments exit with 2."""
    parser = argparse.ArgumentParser(description="Prove this repository right: lint, proofs, unit tests, notebooks.", allow_abbrev=False)
    parser.add_argument("--fast", action="store_true", help="lint, copies and unit tests not marked slow")
    parser.add_argument("--only", choices=STAGES, nargs="+", help="run these stages only")
    parser.add_argument("--lax", action="store_true", help="run notebooks without comparing stored outputs")
    number = {"type": int, "choices": range(1, 1000), "metavar": "N", "default": possible_workers()}
    parser.add_argument("--workers", **number, help="processes for tests and notebooks (default: %(default)s)")
    args = parser.parse_args(argv)
    if unknown_files():
        print(f"not proven, because git does not know them: {', '.join(unknown_files()[:10])}")
    before = git(ROOT, "status", "--porcelain")
    results = [result for stage in args.only or list(STAGES)[: 3 if args.fast else 4] for result in STAGES[stage](args)]
    if not args.only and not args.fast and before is not None:
        after = git(ROOT, "status", "--porcelain").splitlines()
        left = [f"FAILED left behind: {line}" for line in after if line not in before.splitlines()]
        results.append(Result("working tree unchanged", int(not left), int(bool(left)), lines=left))
    return report(results)


def report(results, most=12):
    """Print one line a command, at most `most` lines of each that name what failed, and the total; return the exit status."""
    total = Result("total", *(sum(getattr(r, key) for r in results) for key in ("passed", "failed", "skipped", "seconds")))
    print(f"\n{'':30} {'passed':>7} {'failed':>7} {'skipped':>7} {'minutes':>8}")
    for r in [*results, total]:
        mark = "   <-- FAILED" if r.failed and r is not total else ""
        print(f"{r.name:30} {r.passed:7d} {r.failed:7d} {r.skipped:7d} {r.seconds / 60:8.1f}{mark}")
    for r in results:
        named = [line for line in r.lines if line.startswith(("FAILED ", "ERROR "))]
        print("".join(f"{line}\n" for line in named[:most]) + (f"... and {len(named) - most} more\n" if len(named) > most else ""), end="")
    print(f"\n{total.passed} passed, {total.failed} failed", flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
