"""Prove that every numbered folder runs alone: copy it to an empty place, import its modules, ask its programs for help.

    python setup/tools/alone.py                        every folder (part of make test)
    python setup/tools/alone.py --tests --notebooks    also its quick tests and its notebooks there (the weekly job)
    python setup/tools/alone.py ch05/07_gpt_to_llama   one folder

Beside the copy lie only pytest's settings and plumbing. The weights of gpt2-mini are found through LLM_COURSE_WEIGHTS.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from run_tests import OFFLINE, ONE_THREAD, possible_workers
from tracked import tracked

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "ch05" / "03_bonus_pretraining_on_gutenberg" / "gpt2-mini"
PLUMBING = ("conftest.py", "pyproject.toml", "setup/tools/offline_kernel.py")
PROBE = """
import contextlib, importlib, io, pathlib, runpy, sys
sys.path.insert(0, "")
for path in sorted(pathlib.Path().glob("*.py")):
    print("import", path.stem)
    importlib.import_module(path.stem)
for path in sorted(pathlib.Path().glob("*.py")):
    if all(word in path.read_text(encoding="utf-8") for word in ("__main__", "Parser(")):
        print(f"{path} --help")
        sys.argv = [str(path), "--help"]
        try:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                runpy.run_path(str(path), run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, f"ended with {stop.code!r}"
        assert "usage" in out.getvalue(), "printed no usage"
"""


def copy_alone(folder: str, place: Path) -> Path:
    """Copy one folder and the plumbing of pytest below `place`; returns the copy."""
    for name in [*PLUMBING, *(path for path in tracked(ROOT, new=False) if path.startswith(f"{folder}/"))]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place / name)
    return place / folder


def commands(copy: Path, tests: bool, notebooks: bool) -> list[list[str]]:
    """What is run in the copy."""
    pytest = [sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:xdist", "-p", "no:cacheprovider"]
    wanted = [[sys.executable, "-c", PROBE]]
    if tests and any(copy.glob("tests/test_*.py")):
        wanted.append([*pytest, "-m", "not network and not gpu and not slow", "tests"])
    if notebooks:
        wanted += [[*pytest, "--nbval-lax", path.name] for path in sorted(copy.glob("*.ipynb")) if path.name != "exercises.ipynb"]
    return wanted


def check(folder: str, tests: bool = False, notebooks: bool = False) -> str:
    """Why a folder does not run alone, or an empty text."""
    env = {**os.environ, **OFFLINE, **ONE_THREAD, "LLM_COURSE_WEIGHTS": str(WEIGHTS), "MPLBACKEND": "Agg"}
    env.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory(prefix="course alone ", ignore_cleanup_errors=True) as place:
        copy = copy_alone(folder, Path(place))
        for command in commands(copy, tests, notebooks):
            done = subprocess.run(command, cwd=copy, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8")
            if done.returncode:
                what = " ".join(command[2:] if command[2] != PROBE else done.stdout.splitlines()[-1:])
                tail = "\n    ".join((done.stderr if command[2] == PROBE else done.stdout).strip().splitlines()[-12:])
                return f"{folder} does not run alone: {what}\n    {tail}"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Check folders side by side, one on each core; 0 if all run alone, 1 if not, 2 for bad arguments."""
    parser = argparse.ArgumentParser(description="Prove that every numbered folder runs alone.", allow_abbrev=False)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="such as ch05/07_gpt_to_llama (default: all)")
    parser.add_argument("--tests", action="store_true", help="also run the folder's quick tests in the copy")
    parser.add_argument("--notebooks", action="store_true", help="also run its notebooks there, outputs not compared")
    args = parser.parse_args(argv)
    matches = (re.match(r"(?:ch\d\d|appendix-[A-E])/\d\d_[^/]+(?=/)", path) for path in tracked(ROOT, new=False))
    known = sorted({match[0] for match in matches if match})
    folders = [folder.rstrip("/") for folder in args.folders] or known
    if not set(folders) <= set(known):
        parser.error(f"no such numbered folder among {', '.join(folders)}")
    with ThreadPoolExecutor(possible_workers()) as pool:
        found = [problem for problem in pool.map(lambda folder: check(folder, args.tests, args.notebooks), folders) if problem]
    print("\n".join(found) if found else f"{len(folders)} folders run alone")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
