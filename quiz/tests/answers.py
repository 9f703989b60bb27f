"""Compute the answers of a quiz: run each question's code and check, and compare with the choice that is said to hold.

Run with the folder of the chapter's modules and that of the quiz on PYTHONPATH:  python answers.py ch02.toml
It prints one line for each question whose check disagrees, and ends with 1 if there is any.
"""

import ast
import contextlib
import io
import re
import sys
from pathlib import Path

import torch
from questions import Question, Quiz, read_quiz


def plain(text: str) -> str:
    """A choice as a program would print it: without backticks, spaces made equal."""
    return " ".join(re.sub("`", "", text).split())


def run_code(code: str, namespace: dict) -> None:
    """Run what the reader sees; what it prints becomes `printed`, and what it raises `error`."""
    out = io.StringIO()
    namespace["error"] = None
    with contextlib.redirect_stdout(out):
        try:
            exec(compile(code, "<code>", "exec"), namespace)
        except Exception as error:
            namespace["error"] = error
    namespace["printed"] = out.getvalue().strip()


def evaluate(check: str, namespace: dict):
    """Run the statements of a check and return the value of its last line."""
    *body, last = ast.parse(check.strip()).body
    exec(compile(ast.Module(body, []), "<check>", "exec"), namespace)
    value = eval(compile(ast.Expression(last.value), "<check>", "eval"), namespace)
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def problem(question: Question, setup: str = "") -> str:
    """What is wrong with the answer of a question; empty if its check agrees.

    A check ends in an expression. Its value is the text of the choice that holds (of all that hold, for a list or tuple
    of texts), or True: a claim that was computed.
    """
    namespace = {"torch": torch}
    torch.manual_seed(123)
    exec(setup, namespace)
    run_code(question.code, namespace)
    if namespace["error"] is not None and "error" not in question.check:
        return f"its code raises {namespace['error']!r}, and its check does not expect that"
    value = evaluate(question.check, namespace)
    texts = {plain(choice.text): choice.right for choice in question.choices}
    computed = {plain(str(part)) for part in (value if isinstance(value, list | tuple) and set(map(type, value)) == {str} else [value])}
    if computed & set(texts):
        wanted = {text for text, right in texts.items() if right}
        return "" if computed == wanted else f"computed {computed}, said to hold {wanted}"
    return "" if value is True else f"computed {value!r}, which is no choice"


def problems(quiz: Quiz) -> list[str]:
    """One line for each question whose check disagrees or fails."""
    found = []
    for number, question in enumerate(quiz.questions, 1):
        if question.check:
            try:
                text = problem(question, quiz.setup)
            except Exception as error:
                text = f"its check fails with {error!r}"
            found += [f"question {number} of the source ({' '.join(question.ask.split())[:60]} ...): {text}"] if text else []
    return found


if __name__ == "__main__":
    lines = problems(read_quiz(Path(sys.argv[1])))
    print("\n".join(lines))
    sys.exit(bool(lines))
