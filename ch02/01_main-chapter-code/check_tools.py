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
            except Exception as error:
                if not is_stub(error):
                    raise CheckFailed(explain(number, error)) from error
                message = f"exercise {number} is not solved yet: write {answer} in the cell above, run that cell, then run this one"
                raise CheckFailed(message) from None

        CHECKS[number] = (guarded, answer)
        return guarded

    return decorate


def is_stub(error: Exception) -> bool:
    """Whether an exercise not begun raised this: PyTorch, too, raises NotImplementedError, but with a text of its own."""
    return isinstance(error, NotImplementedError) and (not str(error) or str(error).startswith("exercise "))


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


def is_learners(namespace: dict) -> bool:
    """Whether these globals are those of a notebook or of a learner's file: only what was imported has a __spec__."""
    return namespace.get("__spec__") is None


def learner_line(error: Exception) -> str:
    """Return ' (line N of FILE)' for the innermost line that a learner wrote, even if course code or PyTorch raised below it.

    Without such a line, it is the innermost one outside Python, the installed libraries and the checks.
    """
    own = course = ""
    trace = error.__traceback__
    while trace:
        filename = trace.tb_frame.f_code.co_filename
        foreign = "site-packages" in filename or filename.startswith(("<frozen", STANDARD_LIBRARY))
        if not foreign and Path(filename).name not in (Path(__file__).name, "exercise_checks.py"):
            course = f" (line {trace.tb_lineno} of {'your cell' if 'ipykernel' in filename else Path(filename).name})"
            if is_learners(trace.tb_frame.f_globals):
                own = course
        trace = trace.tb_next
    return own or course


def names_used(answer: Callable) -> set[str]:
    """Return the functions, methods and modules that an answer's code mentions, inner and called functions included."""
    names, waiting, seen = set(), [getattr(answer, "__code__", None)], set()
    while waiting:
        code = waiting.pop()
        if code is None or code in seen:
            continue
        seen.add(code)
        names |= set(code.co_names)
        waiting += [constant for constant in code.co_consts if isinstance(constant, type(code))]
        called = [answer.__globals__.get(name) for name in code.co_names]
        waiting += [value.__code__ for value in called if hasattr(value, "__code__") and is_learners(value.__globals__)]
    return names


def forbid(answer: Callable, forbidden: set[str], task: str) -> None:
    """Fail if the answer's code mentions one of the names that the task rules out."""
    used = sorted(names_used(answer) & forbidden)
    if used:
        fail(f"an answer without {', '.join(used)}", f"code that uses {', '.join(used)}", "the code of your answer", task)


def fail(expected: object, got: object, where: str, question: str):
    """Raise CheckFailed with the four things a learner needs: expected, got, where, and a question to think about."""
    raise CheckFailed(f"not right yet\n  where:    {where}\n  expected: {expected}\n  got:      {got}\n  think:    {question}")


def expect_something(got: object, where: str) -> None:
    """Fail with the usual reason if an answer that should return something returned None."""
    if got is None:
        fail("something returned", "None", where, "does your function end with `return`? Printing a result does not hand it over")


def expect_equal(expected: object, got: object, where: str, question: str) -> None:
    """Fail unless got == expected (tensors: same shape and all elements equal)."""
    if expected is not None:
        expect_something(got, where)
    if isinstance(expected, torch.Tensor):
        expect_close(expected, got, where, question, atol=0.0)
    elif type(got) is not type(expected) or got != expected:
        fail(repr(expected), repr(got), where, question)


def expect_close(expected: torch.Tensor | float, got: object, where: str, question: str, atol: float = 1e-5) -> None:
    """Fail unless got has expected's shape and differs nowhere by more than atol; names the worst element."""
    expect_something(got, where)
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
        worst = "" if got.dtype == torch.bool else f" (largest difference {difference.max().item():.2g})"
        fail(f"{element(expected, index)}{at}", f"{element(got, index)}{at}{worst}", where, question)


def element(tensor: torch.Tensor, index: tuple) -> str:
    """One entry as a learner would write it: True and False stay words."""
    value = tensor[index].item()
    return str(value) if isinstance(value, bool) else f"{value:.6g}"


def attempt(answer: Callable, *args, **kwargs) -> object | None:
    """Return answer(*args, **kwargs) for a picture, or None and one line if it is not solved yet or stops with an error."""
    name = getattr(answer, "__name__", "your answer")
    try:
        return answer(*args, **kwargs)
    except Exception as error:
        if is_stub(error):
            print(f"no picture yet: {str(error) or name} is not solved")
        else:
            print(f"no picture: {name} stopped with {type(error).__name__}: {str(error).partition(chr(10))[0]}{learner_line(error)}")
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")  # or the notebook would show a half-drawn one
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
