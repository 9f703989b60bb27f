"""The checks accept right answers, written in two ways, and reject wrong ones with a question."""

import contextlib
import io
import os
from pathlib import Path

import nbformat
import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("numba", reason="needs numba: python -m pip install numba")

import exercise_checks
from numba import njit
from previous_chapters import CHECKS, CheckFailed

NOTEBOOK = nbformat.read(Path(exercise_checks.__file__).with_name("exercise-solutions.ipynb"), as_version=4)
SOLUTIONS = dict(zip(CHECKS, (c.source for c in NOTEBOOK.cells if c.cell_type == "code" and "solution" in c.metadata.get("tags", []))))


def run_check(number: str, source: str) -> None:
    check, answer = CHECKS[number]
    names = {"__name__": "answer", "np": np, "njit": njit}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(source, f"answer {number}", "exec"), names)
        check(names[answer])


SECOND = {  # an independent answer to each exercise
    "1": """
@njit(fastmath=True)
def int8_product(q, scale, x, y):
    for i in range(len(y)):
        row = q[i]
        y[i] = 0
        for weight, number in zip(row, x):
            y[i] += np.float32(weight) * number
        y[i] *= scale[i]
""",
    "2": """
def best_tokens_per_second(matrices, bits, block, bandwidth, cached_tokens, bytes_per_token):
    per_weight = bits + (16 / block if block else 0)
    total = cached_tokens * bytes_per_token
    for shape in matrices:
        total += shape[0] * shape[1] * per_weight / 8
    return 1 / (total / bandwidth)
""",
    "3": """
def useful_threads(size, operations, one_core, all_cores, rate, cores):
    speeds = [min(min((n + 1) * one_core, all_cores) / size, (n + 1) * rate / operations) for n in range(cores)]
    for n, (before, after) in enumerate(zip(speeds, speeds[1:]), start=1):
        if after < 1.05 * before:
            return n
    return cores
""",
}

MUTANTS = [  # (exercise, what is replaced in the worked solution, by what)
    ("1", " * scale[i]", ""),
    ("1", " * scale[i]", " * scale[0]"),
    ("1", "y[i] = total", "y[i] += total"),
    ("1", "q.shape[0]", "q.shape[0] - 1"),
    ("1", "q.shape[1]", "q.shape[1] // 8 * 8"),
    ("1", "q[i, j]", "abs(q[i, j])"),
    ("1", "        total = np.float32(0)\n", "        total = np.float32(1)\n"),
    ("1", "x[j]", "x[i % len(x)]"),
    ("1", "        y[i] = total", "        scale[i] = 1\n        y[i] = total"),
    ("1", "@njit(fastmath=True)", "@njit"),
    ("1", "@njit(fastmath=True)\n", ""),
    ("2", "rows * columns for", "rows for"),
    ("2", "bits / 8", "bits"),
    ("2", "bits / 8", "4"),
    ("2", "/ block * 2", "/ block"),
    ("2", "/ block * 2", "/ 32 * 2"),
    ("2", "if block is not None", "if False"),
    ("2", " + cached_tokens * bytes_per_token", ""),
    ("2", "cached_tokens * bytes_per_token", "bytes_per_token"),
    ("2", "bandwidth / (", "1e9 / 2 / ("),
    ("2", "return bandwidth / (size + cached_tokens * bytes_per_token)", "return (size + cached_tokens * bytes_per_token) / bandwidth"),
    ("3", "return max(", "return min("),
    ("3", "min(n * one_core, all_cores)", "(n * one_core)"),
    ("3", "min(n * one_core, all_cores)", "all_cores"),
    ("3", "(n * rate)", "rate"),
    ("3", ">= 1.05", ">= 1.6"),
    ("3", ">= 1.05", "> 1"),
    ("3", "n < cores and ", "n < 200 and "),
    ("3", "    return n", "    return n + 1"),
    ("3", "    return n", "    return cores"),
    ("3", "    n = 1", "    n = 2"),
]


@pytest.mark.parametrize("number", SOLUTIONS)
@pytest.mark.slow
def test_the_worked_solution_and_a_second_answer_pass(number):
    run_check(number, SOLUTIONS[number])
    run_check(number, SECOND[number])


@pytest.mark.parametrize(("number", "old", "new"), MUTANTS)
def test_wrong_answers_are_rejected_with_a_question(number, old, new):
    assert old in SOLUTIONS[number]
    with pytest.raises(CheckFailed) as failure:
        run_check(number, SOLUTIONS[number].replace(old, new))
    assert "not solved yet" not in str(failure.value)
    assert "think:" in str(failure.value)


@pytest.mark.parametrize("number", CHECKS)
@pytest.mark.parametrize("body", ["return None", "raise NotImplementedError"])
def test_an_answer_that_returns_nothing_is_told_so(number, body):
    answer = CHECKS[number][1]
    with pytest.raises(CheckFailed):
        run_check(number, f"def {answer}(*args):\n    {body}")


def test_a_check_runs_from_the_command_line(tmp_path, capsys):
    (tmp_path / "answer.py").write_text(SECOND["2"], encoding="utf-8")
    assert exercise_checks.run_checks(["2", str(tmp_path / "answer.py")]) == 0
    assert "exercise 2: passed" in capsys.readouterr().out
