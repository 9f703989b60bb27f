"""The questions are well formed, give nothing away by their form, and say what a program computes.

Run it:  pytest quiz/tests/test_quiz_sources.py
"""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from answers import plain, problem, problems
from questions import FOLDER, KINDS, Choice, Question, Quiz, find_quizzes, read_quiz

QUIZZES = {path.stem: read_quiz(path) for path in find_quizzes().values()}
each_quiz = pytest.mark.parametrize("name", QUIZZES)


def all_questions():
    return [(name, question) for name, quiz in QUIZZES.items() for question in quiz.questions]


@each_quiz
def test_a_quiz_has_thirty_questions_about_a_third_of_each_kind(name):
    kinds = Counter(question.kind for question in QUIZZES[name].questions)
    assert sum(kinds.values()) == 30 and set(kinds) == set(KINDS)
    assert all(8 <= count <= 12 for count in kinds.values()), kinds


@each_quiz
def test_each_question_has_four_choices_each_with_its_reason(name):
    for question in QUIZZES[name].questions:
        texts = [plain(choice.text) for choice in question.choices]
        assert len(texts) == 4 == len(set(texts)), question.ask
        assert all(len(choice.why.split()) >= 5 for choice in question.choices), question.ask
        assert len({choice.why for choice in question.choices}) == 4, question.ask
        assert 1 <= len(question.right) <= 3, question.ask


def test_a_question_says_if_several_hold():
    counts = Counter((len(question.right) > 1, bool(question.hint)) for _, question in all_questions())
    assert set(counts) <= {(True, True), (False, False)} and counts[False, False] > 25


def test_no_question_is_asked_twice():
    asked = Counter(plain(f"{question.ask} {question.code}").lower() for _, question in all_questions())
    assert [text for text, times in asked.items() if times > 1] == []


def longest_is_right(questions):
    """How many questions have one longest choice, and in how many of them it is the one that holds."""
    found = []
    for question in questions:
        lengths = sorted((len(choice.text), choice.right) for choice in question.choices)
        if len(question.right) == 1 and lengths[-1][0] > lengths[-2][0]:
            found.append(lengths[-1][1])
    return len(found), sum(found)


@each_quiz
def test_the_longest_choice_is_not_the_safe_one(name):
    longest, right = longest_is_right(QUIZZES[name].questions)
    assert right <= 0.4 * longest, f"{right} of {longest}"


def test_no_reason_speaks_of_a_letter():
    """Choices move, so a reason must name what it means."""
    letter = re.compile(r"\b(choice|answer|option) \(?[b-dA-D]\b")
    assert [choice.why for _, question in all_questions() for choice in question.choices if letter.search(choice.why)] == []


@each_quiz
def test_every_question_on_code_is_computed(name):
    assert [question.ask for question in QUIZZES[name].questions if question.kind == "code" and not question.check] == []


@pytest.mark.slow
@each_quiz
def test_what_a_program_can_compute_is_what_the_quiz_says(name):
    folder = FOLDER.parent / QUIZZES[name].folder
    if not folder.is_dir():
        pytest.skip("the chapter's modules do not lie beside the quiz")
    command = [sys.executable, str(Path(__file__).with_name("answers.py")), str(FOLDER / f"{name}.toml")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(FOLDER)]),
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def two_choices(check, code="", kind="code", right="`3`", wrong="`4`"):
    return Question(kind, "?", [Choice(right, True, "because it is"), Choice(wrong, False, "no")], code, check)


@pytest.mark.parametrize(
    ("question", "finding"),
    [
        (two_choices("1 + 2"), ""),
        (two_choices("printed", code="print(3)"), ""),
        (two_choices("2 + 2"), "computed {'4'}"),
        (two_choices("5"), "no choice"),
        (two_choices("1 + 2 == 3"), ""),
        (two_choices("1 + 2 == 4"), "no choice"),
        (two_choices("3", code="1 / 0"), "raises"),
        (two_choices("3 if 'zero' in str(error) else 4", code="1 / 0"), ""),
        (two_choices("['3', '4']"), "computed"),
    ],
)
def test_a_check_that_disagrees_is_seen(question, finding):
    found = problem(question)
    assert (found == "") == (finding == "") and finding in found
    assert len(problems(Quiz("", [question, two_choices("undefined")]))) == 1 + (finding != "")


def test_a_longest_choice_is_seen():
    questions = [two_choices("", right="longer"), two_choices(""), two_choices("", wrong="longer")]
    assert longest_is_right(questions) == (2, 1)
