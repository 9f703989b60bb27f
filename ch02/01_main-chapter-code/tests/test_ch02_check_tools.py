"""The checker's plumbing: what passes, what fails, what a learner reads, and the command line."""

import math
import re

import check_tools
import matplotlib.pyplot as plt
import pytest
import torch
from check_tools import (
    CheckFailed,
    attempt,
    exercise,
    expect_close,
    expect_equal,
    fail,
    forbid,
    learner_line,
    names_used,
    passed,
    run_checks,
)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Two exercises of our own, and none of the chapter's."""
    monkeypatch.setattr(check_tools, "CHECKS", {})

    @exercise("9.1", answer="double")
    def check_9_1(double):
        """Doubles numbers."""
        expect_equal(4, double(2), "double(2)", "did you add?")
        passed("9.1", "well done")

    return check_9_1


def test_a_right_answer_passes_and_says_so(registry, capsys):
    registry(lambda x: 2 * x)
    assert capsys.readouterr().out == "exercise 9.1: passed (well done)\n"
    assert registry.__doc__ == "Doubles numbers."


def test_a_wrong_answer_shows_where_expected_got_and_a_question(registry):
    with pytest.raises(CheckFailed) as error:
        registry(lambda x: x + 3)
    for part in ("where:    double(2)", "expected: 4", "got:      5", "think:    did you add?"):
        assert part in str(error.value)


def test_an_unsolved_stub_says_what_to_write(registry):
    def double(x):
        raise NotImplementedError("exercise 9.1")

    with pytest.raises(CheckFailed, match="9.1 is not solved yet: write double"):
        registry(double)


def test_an_error_in_the_answer_becomes_one_message_with_its_line(registry):
    def double(x):
        return x / 0

    with pytest.raises(CheckFailed, match=r"stopped with ZeroDivisionError: division by zero \(line \d+ of test_ch02_check_tools.py\)"):
        registry(double)


def test_the_line_is_the_learners_own_when_python_itself_raises(registry):
    def double(x):
        return re.split(",", x)

    with pytest.raises(CheckFailed, match=r"stopped with TypeError: .* \(line \d+ of test_ch02_check_tools.py\)"):
        registry(double)


def test_an_error_that_pytorch_raises_is_not_taken_for_an_exercise_not_begun(registry):
    def double(x):
        return torch.nn.Module()(x)  # has no forward: NotImplementedError with a text of PyTorch's

    with pytest.raises(CheckFailed, match="your code stopped with NotImplementedError"):
        registry(double)
    assert attempt(lambda: double(1)) is None


def test_the_line_is_the_learners_own_when_course_code_raises(registry):
    names = {"expect_equal": expect_equal, "course": lambda x: x / 0}  # a lambda of this file stands for a module of the course
    exec(compile("def double(x):\n    y = x\n    return course(y)", "answer.py", "exec"), names)
    with pytest.raises(CheckFailed, match=r"ZeroDivisionError: division by zero \(line 3 of answer.py\)"):
        registry(names["double"])


def test_names_used_follows_inner_functions_and_the_learners_own_helpers():
    names = {"math": math}
    source = "def helper(x):\n    return math.sqrt(x)\ndef answer(x):\n    return [(lambda y: y.numel())(z) for z in x] + [helper(1)]"
    exec(compile(source, "answer.py", "exec"), names)
    assert {"math", "sqrt", "numel", "helper"} <= names_used(names["answer"])
    assert names_used(4) == set()
    forbid(names["answer"], {"item"}, "why?")
    with pytest.raises(CheckFailed, match="an answer without numel, sqrt"):
        forbid(names["answer"], {"sqrt", "numel", "item"}, "why?")


def test_nothing_returned_is_said_plainly(registry):
    for got in (lambda x: None, print):
        with pytest.raises(CheckFailed, match="does your function end with `return`"):
            registry(got)
    with pytest.raises(CheckFailed, match="does your function end with `return`"):
        expect_close(torch.ones(2), None, "here", "why?")


def test_true_and_false_stay_words():
    with pytest.raises(CheckFailed, match=r"expected: True at \[1\]\n  got:      False at \[1\]\n"):
        expect_close(torch.tensor([True, True]), torch.tensor([True, False]), "here", "why?")


def test_a_picture_that_fails_leaves_no_figure_behind(capsys):
    def draw():
        plt.subplots()
        raise ValueError("no rows\nsecond line")

    assert attempt(draw) is None and plt.get_fignums() == []
    assert "ValueError: no rows (line" in capsys.readouterr().out


PAIR_CHECK = """
@exercise("9.2", answer="pair")
def check_9_2(pair):
    left, right = pair(1)
"""


@pytest.mark.parametrize("pair", [lambda x: None, lambda x: (1, 2, 3), lambda: (1, 2), 4, "four"])
def test_an_answer_that_the_check_cannot_use_is_explained_without_blaming_a_line(pair):
    names = {"exercise": exercise}
    exec(compile(PAIR_CHECK, "exercise_checks.py", "exec"), names)
    with pytest.raises(CheckFailed) as error:
        names["check_9_2"](pair)
    message = str(error.value)
    assert "your code stopped" not in message and "line" not in message
    assert "got:      TypeError" in message or "got:      ValueError" in message
    assert "does it take what the stub takes, and return" in message


def test_jupyter_shows_the_message_alone():
    assert CheckFailed("read me")._render_traceback_() == ["CheckFailed: read me"]


def test_learner_line_passes_over_the_checks_themselves():
    with pytest.raises(CheckFailed) as error:
        expect_equal(1, 2, "", "")
    assert "test_ch02_check_tools.py" in learner_line(error.value)


@pytest.mark.parametrize("expected, got", [(1, 2), (1, 1.0), (1, True), ([1], (1,)), ("a", "b"), (None, 0), ([1, 2], [1])])
def test_expect_equal_refuses_other_values_and_types(expected, got):
    with pytest.raises(CheckFailed):
        expect_equal(expected, got, "here", "why?")


@pytest.mark.parametrize("value", [1, "a", [1, [2]], None, {"a": 1}, torch.tensor([1, 2]), torch.tensor(3)])
def test_expect_equal_accepts_the_same(value):
    expect_equal(value, value, "here", "why?")


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "got", [torch.tensor([1.0, 2.1]), torch.tensor([1.0]), torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, NAN]), [1.0, 2.0], None, "2"]
)
def test_expect_close_refuses_values_shapes_nan_and_other_types(got):
    with pytest.raises(CheckFailed):
        expect_close(torch.tensor([1.0, 2.0]), got, "here", "why?")


def test_expect_close_accepts_small_differences_equal_infinities_and_gradients():
    expect_close(torch.tensor([1.0, -INF]), torch.tensor([1.000001, -INF]), "here", "why?")
    expect_close(torch.tensor([1.0]), torch.tensor([1.0], requires_grad=True), "here", "why?")
    expect_close(2.0, 2, "here", "why?")
    expect_close(torch.empty(0, 3), torch.empty(0, 3), "here", "why?")


def test_expect_close_names_the_worst_element():
    with pytest.raises(CheckFailed, match=r"expected: 5 at \[1, 0\]\n  got:      9 at \[1, 0\] \(largest difference 4\)"):
        expect_close(torch.tensor([[1.0, 2.0], [5.0, 3.0]]), torch.tensor([[1.0, 2.5], [9.0, 3.0]]), "here", "why?")


def test_fail_always_raises():
    with pytest.raises(CheckFailed, match="think:    why"):
        fail(1, 2, "here", "why?")


def test_attempt_returns_the_result_or_none_with_one_line(capsys):
    assert attempt(lambda a, b: a + b, 1, b=2) == 3 and capsys.readouterr().out == ""

    def stub():
        raise NotImplementedError("exercise 9.1")

    assert attempt(stub) is None and capsys.readouterr().out == "no picture yet: exercise 9.1 is not solved\n"
    assert attempt(lambda: [].pop()) is None
    out = capsys.readouterr().out
    assert out.startswith("no picture: <lambda> stopped with IndexError") and out.count("\n") == 1


# ---- command line ----


@pytest.mark.parametrize("answer, code", [("def double(x): return 2 * x", 0), ("def double(x): return x", 1), ("double = 3", 1)])
def test_exit_status_tells_right_from_wrong(answer, code, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(answer, encoding="utf-8")
    assert run_checks(["9.1", "mine.py"]) == code
    captured = capsys.readouterr()
    assert ("passed" in captured.out) == (code == 0) and bool(captured.err) == (code == 1)


BAD_CALLS = {
    "unknown exercise": (["9.9", "mine.py"], "unknown exercise 9.9 (known: 9.1)"),
    "missing file": (["9.1", "absent.py"], "no such file: absent.py"),
    "name missing": (["9.1", "mine.py"], "does not define double"),
    "syntax error": (["9.1", "broken.py"], "SyntaxError"),
    "error while running": (["9.1", "raises.py"], "cannot be run: ValueError: no (line 1 of raises.py)"),
    "no arguments": ([], "required"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_is_one_line_and_exit_2(case, tmp_path, capsys):
    (tmp_path / "mine.py").write_text("other = 1", encoding="utf-8")
    (tmp_path / "broken.py").write_text("def double(x)\n    return 2", encoding="utf-8")
    (tmp_path / "raises.py").write_text("raise ValueError('no')", encoding="utf-8")
    arguments, message = BAD_CALLS[case]
    with pytest.raises(SystemExit) as stop:
        run_checks(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
