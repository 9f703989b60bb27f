"""The runner counts what pytest reports, never calls a failure a success, and finds every notebook.

    python -m pytest setup/tools/tests/test_run_tests.py
"""

import json
import sys

import pytest
import run_tests


@pytest.mark.parametrize("lines, returncode, expected", [
    (["12 passed in 3.21s"], 0, (12, 0)),
    (["===== 1 failed, 11 passed, 2 skipped in 61.00s (0:01:01) ====="], 1, (11, 1)),
    (["2 failed, 3 passed, 1 error in 0.10s"], 1, (3, 3)),
    (["no tests ran in 0.01s"], 5, (0, 1)),
    (["5 passed in 1.00s"], 3, (5, 1)),
    (["anything"], 0, (1, 0)),
    (["Traceback", "boom"], 1, (0, 1)),
    ([], -9, (0, 1)),
])
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
    run_tests.report([run_tests.Result("notebooks", 0, 1, 2.0, lines), run_tests.Result("unit", 0, 20, 2.0, ["ERROR a.py::b"] * 20)])
    out = capsys.readouterr().out.splitlines()
    assert out.count("FAILED ch03/ch03.ipynb::Cell 4") == 1
    assert out.count("ERROR a.py::b") == 12 and "... and 8 more" in out
    assert "1 failed in 2.0s" not in out


def test_all_notebooks_but_learner_editions_are_found_slowest_first(tmp_path):
    for name in ("ch02/ch02.ipynb", "ch02/exercises.ipynb", "ch03/x.ipynb", ".venv/a.ipynb", "ch03/.ipynb_checkpoints/x.ipynb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert run_tests.find_notebooks(tmp_path) == ["ch02/ch02.ipynb", "ch03/x.ipynb"]
    (tmp_path / run_tests.TOOLS).mkdir(parents=True)
    (tmp_path / run_tests.TOOLS / "budgets.json").write_text(json.dumps({"ch03/x.ipynb": {"seconds": 9.5}}), encoding="utf-8")
    assert run_tests.find_notebooks(tmp_path) == ["ch03/x.ipynb", "ch02/ch02.ipynb"]


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--only", "nothing"], ["--workers", "two"]])
def test_bad_arguments_end_with_status_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        run_tests.main(arguments)
    assert stopped.value.code == 2
    assert run_tests.main(["--workers", "0"]) == 2
