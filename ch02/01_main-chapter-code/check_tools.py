"""The plumbing of `exercise_checks.py`: compare, explain a failure in a few lines, run from the command line.

A check is a function `check_2_1(answer)` decorated with `@exercise("2.1", answer="name_in_the_file")`. It calls the learner's
answer, compares with an independent oracle through `expect_equal` or `expect_close`, and ends with `passed("2.1")`.
Cells that draw a learner's own output call the answer through `attempt`, which survives an exercise not solved yet.
"""

import functools
import runpy
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
from dataloader import OneLineParser

STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]
CHECKS = {}  # exercise number -> (check function, name the answer has in a learner's file)


class CheckFailed(AssertionError):
    """A wrong or missing answer. Jupyter shows its message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"CheckFailed: {self}"]


def exercise(number: str, answer: str) -> Callable:
    """Register a check and turn whatever a learner's code raises into a CheckFailed that says what to do."""

    def decorate(check: Callable) -> Callable:
        @functools.wraps(check)
        def guarded(*answers):
            try:
                return check(*answers)
            except CheckFailed:
                raise
            except NotImplementedError:
                message = f"exercise {number} is not solved yet: write {answer} in the cell above, run that cell, then run this one"
                raise CheckFailed(message) from None
            except Exception as error:
                raise CheckFailed(explain(number, error)) from error

        CHECKS[number] = (guarded, answer)
        return guarded

    return decorate


def explain(number: str, error: Exception) -> str:
    """Say what stopped a check: the learner's code, or what it returned (or did not take), which the check cannot use."""
    what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    where = learner_line(error)
    if where:
        question = "which value in that line is not what you expect? Print it, or its shape and type"
        return f"exercise {number}: your code stopped with {what}{where}\n  think:    {question}"
    question = "does it take what the stub takes, and return (not print) what the task describes, with all its parts?"
    place = f"exercise {number}, between the check and your answer, not inside your code"
    return f"not right yet\n  where:    {place}\n  expected: an answer of the stub's kind\n  got:      {what}\n  think:    {question}"


def learner_line(error: Exception) -> str:
    """Return ' (line N of FILE)' for the innermost traceback entry outside Python, the installed libraries and the checks."""
    place = ""
    trace = error.__traceback__
    while trace:
        filename = trace.tb_frame.f_code.co_filename
        foreign = "site-packages" in filename or filename.startswith(("<frozen", STANDARD_LIBRARY))
        if not foreign and Path(filename).name not in (Path(__file__).name, "exercise_checks.py"):
            place = f" (line {trace.tb_lineno} of {'your cell' if 'ipykernel' in filename else Path(filename).name})"
        trace = trace.tb_next
    return place


def fail(expected: object, got: object, where: str, question: str):
    """Raise CheckFailed with the four things a learner needs: expected, got, where, and a question to think about."""
    raise CheckFailed(f"not right yet\n  where:    {where}\n  expected: {expected}\n  got:      {got}\n  think:    {question}")


def expect_equal(expected: object, got: object, where: str, question: str) -> None:
    """Fail unless got == expected (tensors: same shape and all elements equal)."""
    if isinstance(expected, torch.Tensor):
        expect_close(expected, got, where, question, atol=0.0)
    elif type(got) is not type(expected) or got != expected:
        fail(repr(expected), repr(got), where, question)


def expect_close(expected: torch.Tensor | float, got: object, where: str, question: str, atol: float = 1e-5) -> None:
    """Fail unless got has expected's shape and differs nowhere by more than atol; names the worst element."""
    expected = torch.as_tensor(expected)
    if not isinstance(got, torch.Tensor | float | int):
        fail("a tensor" if expected.dim() else "a number", type(got).__name__, where, question)
    got = torch.as_tensor(got).detach()
    if got.shape != expected.shape:
        fail(f"shape {tuple(expected.shape)}", f"shape {tuple(got.shape)}", where, question)
    difference = (got.double() - expected.double()).abs().nan_to_num(nan=float("inf"))
    difference[got == expected] = 0.0  # equal infinities differ by nothing
    if difference.numel() and difference.max() > atol:
        index = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
        at = f" at {list(index)}" if index else ""
        worst = f"{got[index].item():.6g}{at} (largest difference {difference.max().item():.2g})"
        fail(f"{expected[index].item():.6g}{at}", worst, where, question)


def attempt(answer: Callable, *args, **kwargs) -> object | None:
    """Return answer(*args, **kwargs) for a picture, or None and one line if it is not solved yet or stops with an error."""
    name = getattr(answer, "__name__", "your answer")
    try:
        return answer(*args, **kwargs)
    except NotImplementedError as error:
        print(f"no picture yet: {str(error) or name} is not solved")
    except Exception as error:
        print(f"no picture: {name} stopped with {type(error).__name__}: {error}{learner_line(error)}")
    return None


def passed(number: str, note: str = "") -> None:
    """Say that the answer is right."""
    print(f"exercise {number}: passed" + (f" ({note})" if note else ""))


def run_checks(argv: list[str] | None = None) -> int:
    """`python exercise_checks.py 2.1 my_answer.py`: 0 if right, 1 if not, 2 with one line for a bad call."""
    parser = OneLineParser("Check an answer to an exercise.")
    parser.add_argument("number", help=f"one of: {', '.join(CHECKS)}")
    parser.add_argument("file", help="Python file that defines the answer")
    args = parser.parse_args(argv)
    if args.number not in CHECKS:
        parser.error(f"unknown exercise {args.number} (known: {', '.join(CHECKS)})")
    if not Path(args.file).is_file():
        parser.error(f"no such file: {args.file}")
    check, answer = CHECKS[args.number]
    try:
        names = runpy.run_path(args.file)
    except Exception as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        where = f" (line {line})" if line else learner_line(error)
        parser.error(f"{args.file} cannot be run: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}{where}")
    if answer not in names:
        parser.error(f"{args.file} does not define {answer}")
    try:
        check(names[answer])
    except CheckFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0
