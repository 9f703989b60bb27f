"""The questions of the quizzes: their form in a TOML file, one for each chapter, and the order of their choices."""

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).resolve().parent
KINDS = {"idea": "ideas", "code": "reading code and shapes", "outcome": "predicting an outcome"}
LETTERS = "abcdef"


@dataclass
class Choice:
    """One possible answer, whether it holds, and why or why not."""

    text: str
    right: bool
    why: str


@dataclass
class Question:
    """One question: its kind (a key of KINDS), its text, code to read (may be empty), and its choices.

    `check` is Python that the tests run after `code` to compute the answer; the quiz itself does not use it.
    """

    kind: str
    ask: str
    choices: list[Choice]
    code: str = ""
    check: str = ""

    @property
    def right(self) -> set[str]:
        """The letters of the choices that hold, in their present order."""
        return {letter for letter, choice in zip(LETTERS, self.choices) if choice.right}

    @property
    def hint(self) -> str:
        """What to add to the question if one choice is not enough."""
        return "Several hold: choose all of them." if len(self.right) > 1 else ""


@dataclass
class Quiz:
    """The questions of one chapter. `folder` holds the chapter's modules and `setup` the imports for the checks."""

    title: str
    questions: list[Question]
    folder: str = ""
    setup: str = ""


def read_quiz(path: Path) -> Quiz:
    """Read one TOML file. KeyError or TOMLDecodeError if it is not a quiz."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    questions = []
    for entry in data["question"]:
        choices = [Choice(text, right, why) for right in (True, False) for text, why in entry["right" if right else "wrong"]]
        questions.append(Question(entry["kind"], entry["ask"].strip(), choices, entry.get("code", "").strip("\n"), entry.get("check", "")))
    return Quiz(data["title"], questions, data["folder"], data.get("setup", ""))


def find_quizzes() -> dict[str, Path]:
    """{name on the command line: file}: "2" is ch02.toml, "E" is appendix-E.toml."""
    paths = [*sorted(FOLDER.glob("ch*.toml")), *sorted(FOLDER.glob("appendix-*.toml"))]
    return {path.stem.removeprefix("ch0").removeprefix("appendix-"): path for path in paths}


def arrange(questions: list[Question], rng: random.Random) -> list[Question]:
    """Put the choices of each question in a random order, so that the right one stands equally often at each place."""
    spread = []
    arranged = []
    for question in questions:
        n = len(question.choices)
        if not spread:
            spread = rng.sample(range(n), n)
        right, wrong = ([c for c in question.choices if c.right is value] for value in (True, False))
        choices = rng.sample(wrong, len(wrong))
        if len(right) == 1:
            choices.insert(spread.pop() % n, right[0])
        else:
            choices = rng.sample(question.choices, n)
        arranged.append(Question(question.kind, question.ask, choices, question.code, question.check))
    return arranged


class OneLineParser(argparse.ArgumentParser):
    """argparse that answers a bad call with one line on stderr and exit code 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")
