"""A quiz in the terminal: it keeps score at the first try and then asks again what was missed, until nothing is."""

import argparse
import random
import shutil
import sys
import textwrap
from dataclasses import dataclass, field

from questions import KINDS, LETTERS, OneLineParser, Question, arrange, find_quizzes, read_quiz


@dataclass
class Score:
    """How many questions of each kind were asked, and how many answered right at the first try."""

    asked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, question: Question, right: bool) -> None:
        self.asked[question.kind] += 1
        self.right[question.kind] += right

    def __str__(self) -> str:
        parts = [f"{KINDS[kind]} {self.right[kind]} of {n}" for kind, n in self.asked.items() if n]
        total = f"Score at the first try: {sum(self.right.values())} of {sum(self.asked.values())}"
        return f"{total} ({', '.join(parts)})" if parts else total


class Stop(Exception):
    """The reader wants to stop, or the input has ended."""


def wrap(text: str, indent: str = "", first: str | None = None) -> str:
    """Paragraphs (between empty lines) filled to the width of the terminal, at most 88 columns."""
    width = min(88, shutil.get_terminal_size().columns - 1)
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    options = {"width": width, "break_long_words": False, "break_on_hyphens": False, "subsequent_indent": indent}
    filled = [textwrap.fill(p, initial_indent=indent if i or first is None else first, **options) for i, p in enumerate(paragraphs)]
    return "\n\n".join(filled)


def show(question: Question, heading: str) -> None:
    print(f"\n{heading} ({KINDS[question.kind]})\n\n{wrap(question.ask)}")
    if question.code:
        print(f"\n{textwrap.indent(question.code, '    ')}")
    print(f"\n{question.hint}" if question.hint else "")
    for letter, choice in zip(LETTERS, question.choices):
        print(wrap(choice.text, "     ", f"  {letter}) "))


def read_answer(question: Question) -> set[str]:
    """Ask until the answer is letters of choices, and return them; none for "?". Stop for q and at the end of the input."""
    letters = LETTERS[: len(question.choices)]
    while True:
        try:
            answer = input("\nYour answer: ").strip().lower()
        except EOFError:
            print()
            raise Stop from None
        if answer == "q":
            raise Stop
        chosen = set(answer) - set(" ,")
        if answer == "?" or chosen and chosen <= set(letters) and (question.hint or len(chosen) == 1):
            return chosen - {"?"}
        several = "one or more" if question.hint else "one"
        print(f"Type {several} of the letters {', '.join(letters)}, or ? to see the answer, or q to stop.")


def explain(question: Question, chosen: set[str]) -> bool:
    """Say whether the answer is right and why; return whether it is."""
    right = chosen == question.right
    print("\nRight." if right else "\nNot yet.")
    for letter, choice in zip(LETTERS, question.choices):
        if choice.right or letter in chosen:
            print(wrap(choice.why, "     ", f"  {letter}) {'right' if choice.right else 'wrong'}: "))
    return right


def play(questions: list[Question], rng: random.Random, score: Score) -> None:
    """Ask all questions, then those that were missed, until none is; the first try counts. Stop ends it early."""
    for round_number in range(1, 100):
        missed = []
        for number, question in enumerate(arrange(questions, rng), 1):
            show(question, f"--- Question {number} of {len(questions)}")
            right = explain(question, read_answer(question))
            if round_number == 1:
                score.add(question, right)
            if not right:
                missed.append(question)
        if round_number == 1:
            print(f"\n{score}")
        if not missed:
            return
        questions = rng.sample(missed, len(missed))
        print(f"\nOnce more, what you missed: {len(missed)}")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """Command line; 0, also if the reader stops early; 2 and one line for a bad call; 130 after Ctrl-C."""
    quizzes = find_quizzes()
    parser = OneLineParser(description="Take the quiz of a chapter or appendix.", allow_abbrev=False)
    parser.add_argument("chapter", type=str.upper, choices=quizzes, help="which quiz: %(choices)s")
    parser.add_argument("--questions", type=positive, metavar="N", help="ask N of them, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, help="the same number gives the same order (default: another order each time)")
    args = parser.parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows ? for what it lacks
    quiz, rng, score = read_quiz(quizzes[args.chapter]), random.Random(args.seed), Score()
    questions = rng.sample(quiz.questions, min(args.questions or len(quiz.questions), len(quiz.questions)))
    print(wrap(f"{quiz.title}: {len(questions)} questions. Answer with a letter; ? shows the answer, q stops."))
    try:
        play(questions, rng, score)
    except (Stop, KeyboardInterrupt) as end:
        print(f"\n{score}")
        return 130 if isinstance(end, KeyboardInterrupt) else 0
    print("\nNothing is left to repeat.")
    return 0
