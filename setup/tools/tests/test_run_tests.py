"""The runner counts what pytest reports, never calls a failure a success, and finds every notebook.

python -m pytest setup/tools/tests/test_run_tests.py
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import notebook_budgets
import pytest
import run_tests

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.mark.parametrize(
    "lines, returncode, expected",
    [
        (["12 passed in 3.21s"], 0, (12, 0, 0)),
        (["===== 1 failed, 11 passed, 2 skipped in 61.00s (0:01:01) ====="], 1, (11, 1, 2)),
        (["2 failed, 3 passed, 1 error in 0.10s"], 1, (3, 3, 0)),
        (["no tests ran in 0.01s"], 5, (0, 1, 0)),
        (["5 passed in 1.00s"], 3, (5, 1, 0)),
        (["anything"], 0, (1, 0, 0)),
        (["Traceback", "boom"], 1, (0, 1, 0)),
        ([], -9, (0, 1, 0)),
    ],
)
def test_counts(lines, returncode, expected):
    assert run_tests.count(lines, returncode) == expected


def test_a_command_that_fails_is_reported_and_the_last_line_is_the_total(capsys):
    good = run_tests.run("good", [sys.executable, "-c", "print('7 passed in 0.10s')"])
    bad = run_tests.run("bad", [sys.executable, "-c", "raise SystemExit(4)"])
    assert (good.passed, good.failed, bad.passed, bad.failed) == (7, 0, 0, 1)
    assert run_tests.report([good]) == 0
    assert run_tests.report([good, bad]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "7 passed, 1 failed"


def test_the_report_names_what_failed(capsys):
    lines = ["FAILED ch03/ch03.ipynb::Cell 4", "1 failed in 2.0s"]
    run_tests.report([run_tests.Result("notebooks", 0, 1, lines=lines), run_tests.Result("unit", 0, 20, lines=["ERROR a.py::b"] * 20)])
    out = capsys.readouterr().out.splitlines()
    assert out.count("FAILED ch03/ch03.ipynb::Cell 4") == 1
    assert out.count("ERROR a.py::b") == 12 and "... and 8 more" in out
    assert "1 failed in 2.0s" not in out


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project whose notebooks are measured, and the commands that the stages would run in it."""
    costs = {"light": (9.5, 300), "long": (61.0, 300), "large": (9.0, 2001), "gemma": (3.0, 300)}
    for name in ("light", "long", "large", "gemma", "new", "exercises", ".venv/a", ".ipynb_checkpoints/light"):
        path = tmp_path / "ch02" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"metadata": {"requires": "gemma"} if name == "gemma" else {}}), encoding="utf-8")
    (tmp_path / run_tests.TOOLS).mkdir(parents=True)
    table = {f"ch02/{name}.ipynb": {"seconds": seconds, "peak_mb": peak} for name, (seconds, peak) in costs.items()}
    (tmp_path / run_tests.TOOLS / "budgets.json").write_text(json.dumps(table), encoding="utf-8")
    (tmp_path / "setup" / "constraints.txt").write_text("torch==0.0\n", encoding="utf-8")
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    monkeypatch.setattr(run_tests, "run", lambda name, command, env=None: command)
    monkeypatch.setitem(notebook_budgets.REAL_MODELS, "gemma", "a-package-that-nobody-has")
    return tmp_path


def notebooks_of(command):
    return [part.removeprefix("ch02/").removesuffix(".ipynb") for part in command if part.endswith(".ipynb")]


def run_notebooks():
    return list(run_tests.notebooks_stage(SimpleNamespace(workers=2, lax=False)))


def test_heavy_notebooks_run_alone_the_others_together_slowest_first(project):
    light, *heavy, _ = run_notebooks()
    assert notebooks_of(light) == ["light", "new"] and "-n" in light and "--nbval-lax" in light
    assert [notebooks_of(command) for command in heavy] == [["long"], ["large"]]
    assert all("no:xdist" in command and "--nbval-cell-timeout=600" in command for command in heavy)


@pytest.mark.parametrize("ci, counted", [("", (0, 0, 1)), ("true", (0, 1, 0))])
def test_a_notebook_without_its_model_is_counted_as_skipped_and_fails_in_ci(project, monkeypatch, capsys, ci, counted):
    monkeypatch.setenv("CI", ci)
    last = run_notebooks()[-1]
    assert (last.passed, last.failed, last.skipped) == counted
    assert "ch02/gemma.ipynb: not run, because the package a-package-that-nobody-has" in capsys.readouterr().out


def test_a_notebook_with_its_model_is_run(project, monkeypatch):
    monkeypatch.setitem(notebook_budgets.REAL_MODELS, "gemma", "pytest")
    assert notebooks_of(run_notebooks()[0]) == ["light", "gemma", "new"]


def test_memory_limits_the_workers(monkeypatch):
    monkeypatch.setattr(run_tests.os, "sched_getaffinity", lambda pid: range(64), raising=False)
    for gigabytes, workers in ((2, 1), (8, 2), (64, 21), (1000, 64)):
        monkeypatch.setattr(run_tests.psutil, "virtual_memory", lambda: SimpleNamespace(total=gigabytes * 10**9))  # noqa: B023
        assert run_tests.possible_workers() == workers


def test_a_learners_files_are_not_linted(project, monkeypatch):
    for arguments in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *arguments], cwd=project, check=True)
    (project / "my-notes.ipynb").write_text("", encoding="utf-8")
    (command,) = run_tests.lint_stage(None)
    assert command[-3:] == ["--extend-exclude", "my-notes.ipynb", "."]


HANGS = "import time\n\ndef test_waits_for_ever():\n    time.sleep(600)\n\ndef test_other():\n    assert True\n"


@pytest.mark.slow
@pytest.mark.parametrize("spread", [["-p", "no:xdist"], ["-n", "1"]])
def test_a_test_that_hangs_ends_with_a_traceback_and_as_a_failure(tmp_path, spread):
    settings = Path(run_tests.__file__).parents[2] / "pyproject.toml"
    shutil.copy(settings, tmp_path)
    (tmp_path / "test_hanging.py").write_text(HANGS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", *spread, "-o", "faulthandler_timeout=3", "test_hanging.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode != 0 and "in test_waits_for_ever" in done.stderr + done.stdout
    assert run_tests.count(done.stdout.splitlines(), done.returncode)[1] == 1
    settings = tomllib.loads(settings.read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert run_tests.CELL_SECONDS < settings["faulthandler_timeout"] < 1200


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--only", "nothing"], ["--workers", "two"], ["--workers", "0"]])
def test_bad_arguments_end_with_status_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        run_tests.main(arguments)
    assert stopped.value.code == 2
