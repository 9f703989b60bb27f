"""The quiz in the terminal keeps score at the first try, comes back to what was missed, and ends cleanly.

Run it:  pytest quiz/tests/test_quiz_terminal.py
"""

import builtins
import random
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest
import terminal
from questions import FOLDER, LETTERS, Choice, Question, arrange, find_quizzes, read_quiz
from terminal import Score, main, play, read_answer

FIRST = next(iter(find_quizzes()))
README = FOLDER / "README.md"


def make(n, kind="idea", several=False):
    choices = [
        Choice(f"right {n}", True, f"why right {n}"),
        *(Choice(f"wrong {n}{i}", i == 0 and several, f"why wrong {n}{i}") for i in range(3)),
    ]
    return Question(kind, f"question number {n}", choices)


class Reader:
    """Answers questions as they are shown: `decide` gets the question's number and how often it was asked before."""

    def __init__(self, monkeypatch, decide):
        self.asked, self.decide = Counter(), decide
        monkeypatch.setattr(terminal, "show", self.look)
        monkeypatch.setattr(builtins, "input", self.answer)

    def look(self, question, heading):
        self.question, self.number = question, question.ask.split()[-1]

    def answer(self, prompt=""):
        right = self.decide(self.number, self.asked[self.number])
        self.asked[self.number] += 1
        return "".join(sorted(letter for letter in LETTERS[:4] if (letter in self.question.right) == right)[: 1 if not right else None])


def test_the_score_counts_first_tries_and_what_was_missed_comes_back_until_nothing_is(monkeypatch):
    reader = Reader(monkeypatch, lambda number, before: number not in "03" or before == 2)
    score = Score()
    play([make(n, kind) for n, kind in enumerate(["idea", "idea", "code", "code", "outcome"])], random.Random(1), score)
    assert reader.asked == {"0": 3, "1": 1, "2": 1, "3": 3, "4": 1}
    assert str(score) == "Score at the first try: 3 of 5 (ideas 1 of 2, reading code and shapes 1 of 2, predicting an outcome 1 of 1)"


def test_an_answer_to_several_must_be_complete(monkeypatch):
    reader = Reader(monkeypatch, lambda number, before: True)
    play([make(0, several=True)], random.Random(1), score := Score())
    assert reader.asked["0"] == 1 and sum(score.right.values()) == 1 and len(reader.question.right) == 2
    assert not terminal.explain(reader.question, set(sorted(reader.question.right)[:1]))


@pytest.mark.parametrize("seed", range(5))
def test_the_right_choice_stands_equally_often_at_each_place(seed):
    arranged = arrange([make(n) for n in range(30)], random.Random(seed))
    places = Counter(min(question.right) for question in arranged)
    assert set(places) == set("abcd") and max(places.values()) - min(places.values()) <= 1
    assert [question.ask for question in arranged] == [make(n).ask for n in range(30)]
    assert all(sorted(c.text for c in question.choices) == sorted(c.text for c in make(n).choices) for n, question in enumerate(arranged))


def test_the_order_follows_the_seed():
    orders = [[[c.text for c in q.choices] for q in arrange([make(n) for n in range(9)], random.Random(seed))] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("typed", "several", "chosen"), [("B", False, {"b"}), ("?", False, set()), ("a, c", True, {"a", "c"}), ("ca", True, {"a", "c"})]
)
def test_answers_are_read_as_people_type_them(monkeypatch, typed, several, chosen):
    monkeypatch.setattr(builtins, "input", lambda prompt: typed)
    assert read_answer(make(0, several=several)) == chosen


@pytest.mark.parametrize("typed", ["", "e", "ab", "1", "what?"])
def test_what_is_no_answer_is_asked_again(monkeypatch, capsys, typed):
    answers = iter([typed, "d"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(answers))
    assert read_answer(make(0)) == {"d"}
    assert "one of the letters a, b, c, d" in capsys.readouterr().out


def run_quiz(*arguments, typed="", **options):
    command = [sys.executable, str(FOLDER / "quiz.py"), *arguments]
    return subprocess.run(command, input=typed, capture_output=True, text=True, encoding="utf-8", timeout=30, **options)


def test_piped_answers_work_and_the_end_of_the_input_ends_the_quiz():
    done = run_quiz(FIRST, "--questions", "4", "--seed", "1", typed="a\nb\n")
    assert done.returncode == 0 and done.stderr == ""
    assert re.search(r"first try: \d of 2 ", done.stdout) and "Question 3 of 4" in done.stdout and "Question 4" not in done.stdout


def test_the_reader_can_stop():
    done = run_quiz(FIRST, typed="q\n")
    assert done.returncode == 0 and "first try: 0 of 0" in done.stdout


def test_a_whole_quiz_is_passed_by_typing_what_its_source_says(monkeypatch, capsys):
    source = read_quiz(find_quizzes()[FIRST])
    holds = {(question.ask, choice.text) for question in source.questions for choice in question.choices if choice.right}
    shown = []
    monkeypatch.setattr(terminal, "show", lambda question, heading: shown.append(question))
    right = lambda question: "".join(letter for letter, c in zip("abcd", question.choices) if (question.ask, c.text) in holds)
    monkeypatch.setattr(builtins, "input", lambda prompt: right(shown[-1]))
    assert main([FIRST]) == 0 and len(shown) == 30
    assert "first try: 30 of 30" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal as a terminal does")
def test_ctrl_c_ends_with_the_score_and_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-u", str(FOLDER / "quiz.py"), FIRST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "a)" not in process.stdout.readline():  # the first question is on the screen
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "first try: 0 of 0" in out and err == ""


@pytest.mark.parametrize(
    "arguments", [[], ["99"], [FIRST, "--questions", "0"], [FIRST, "--questions", "two"], [FIRST, "--seed", "x"], [FIRST, "more"]]
)
def test_a_bad_call_gets_one_line_and_code_2(arguments):
    done = run_quiz(*arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "error: " in done.stderr and done.stdout == ""


def test_the_commands_of_the_readme_work():
    commands = re.findall(r"^python quiz/quiz\.py (.*?) *(?:#.*)?$", README.read_text(encoding="utf-8"), flags=re.M)
    assert len(commands) >= 3
    for command in commands:
        assert run_quiz(*command.split()).returncode == 0, command


def test_what_is_shown_fits_the_terminal(capsys):
    for path in find_quizzes().values():
        for question in read_quiz(path).questions:
            terminal.show(question, "--- Question 1 of 30")
            terminal.explain(question, {"a", "b", "c", "d"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 500 and [line for line in lines if len(line) > 100] == []
