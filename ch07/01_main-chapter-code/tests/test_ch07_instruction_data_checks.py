"""Every verifier accepts right answers in any wording and refuses wrong ones; loading, splitting, scoring, command line."""

import json
import random
import subprocess
import sys
from pathlib import Path

import instruction_data_checks as checks
import instruction_data_facts as facts
import pytest
from answer_cases import PERU, RIGHT, WRONG

SCRIPT = Path(checks.__file__).resolve()


def cases(table):
    return [pytest.param(check, answer, id=f"{check['kind']}-{answer[:40]!r}") for check, answers in table for answer in answers]


@pytest.mark.parametrize("check, answer", cases(RIGHT))
def test_a_right_answer_passes_in_any_wording(check, answer):
    assert checks.verify(check, answer)


@pytest.mark.parametrize("check, answer", cases(WRONG))
def test_a_wrong_or_undecided_answer_fails(check, answer):
    assert not checks.verify(check, answer)


@pytest.mark.parametrize("answer", ["", "   ", None, 7, "I do not know.", "?", "yes yes yes yes no no"])
def test_no_answer_is_never_right(answer):
    assert not any(checks.verify(check, answer) for check, _ in RIGHT)


def test_both_tables_cover_every_kind():
    assert {check["kind"] for check, _ in RIGHT} == {check["kind"] for check, _ in WRONG} == set(checks.VERIFIERS)
    assert {check["operation"] for check, _ in RIGHT if check["kind"] == "date"} == set(facts.DATE_VERIFIERS)


def test_an_answer_that_never_ends_is_not_right():
    assert checks.verify(PERU, "Lima. " + "It is a large city. " * 3)
    assert not checks.verify(PERU, "Lima. " + "It is a large city. " * 13)


# ---- the shipped data ----


def entries():
    return [(entry, row) for entry, row in zip(checks.load_data(), checks.load_families()) if row["check"]]


def test_every_shipped_output_passes_and_its_echo_fails():
    for entry, row in entries():
        question = checks.question_of(entry)
        assert checks.verify(row["check"], entry["output"], question), entry
        for echo in (question, entry["instruction"], entry["input"], f"{question} {question}"):
            assert not checks.verify(row["check"], echo, question), entry


def test_answers_to_other_questions_fail():
    """Shuffled within its kind, hardly any answer is right; what is left answers an equal question."""
    generator = random.Random(7)
    rows = entries()
    right = 0
    for _ in range(3):
        for entry, row in rows:
            other = generator.choice([e for e, r in rows if r["family"] == row["family"] and e is not entry])
            right += checks.verify(row["check"], other["output"], checks.question_of(entry))
    assert right < 0.04 * 3 * len(rows)


def kind_of(check):
    return check["kind"], check.get("operation", "").split(":")[0], check.get("want"), check.get("tag")


def test_the_right_answer_among_answers_to_four_like_questions_fails():
    generator = random.Random(9)
    rows, passed, tried = entries(), [], 0
    for entry, row in rows:
        question, mine = checks.question_of(entry), entry["output"].rstrip(".")
        like = [e["output"].rstrip(".") for e, r in rows if kind_of(r["check"]) == kind_of(row["check"])]
        like = generator.sample(like, min(8, len(like)))
        like = [guess for guess in dict.fromkeys(like) if not checks.verify(row["check"], guess, question)]
        if len(like) >= 4 and row["check"]["kind"] != "pick":  # there the guesses would be no items of this list
            guesses = [*generator.sample(like, 4), mine]
            generator.shuffle(guesses)
            tried += 1
            passed += [guesses] if checks.verify(row["check"], ", ".join(guesses), question) else []
    assert tried > 320 and len(passed) < 0.02 * tried, passed


# ---- loading, splitting, scoring ----


def test_the_splits_lose_and_repeat_nothing():
    train, test, val = checks.split(list(range(1100)))
    assert train + test + val == list(range(1100)) and (len(train), len(test), len(val)) == (935, 110, 55)


def test_the_score_of_the_test_split_counts_right_answers_by_family():
    data, families = checks.load_data(), checks.load_families()
    test = checks.split(data)[1]
    full = checks.score([entry["output"] for entry in test], data, families, start=935)
    assert sum(total for _, total in full.values()) == 46 and all(right == total for right, total in full.values())
    none = checks.score([None, ""] * 55, data, families, start=935)
    assert {family: total for family, (_, total) in none.items()} == {family: total for family, (_, total) in full.items()}
    assert sum(right for right, _ in none.values()) == 0
    answers = [entry["output"] for entry in test]
    changed = next(i for i, row in enumerate(families[935:]) if row["family"] == "capitals")
    answers[changed] = "Atlantis"
    assert checks.score(answers, data, families, start=935)["capitals"] == (3, 4)
    with pytest.raises(ValueError, match="do not fit"):
        checks.score(answers, data, families, start=991)


def run(capsys, *arguments):
    try:
        code = checks.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    return code, capsys.readouterr()


def test_the_command_verifies_the_shipped_file():
    answer = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, encoding="utf-8")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.endswith("every verifiable output is right\n")
    assert answer.stdout.splitlines()[-2].split() == ["total", "1100", "460", "935", "110", "55"]


def test_the_command_names_wrong_outputs_and_ends_with_1(tmp_path, capsys):
    data = checks.load_data()
    wrong = next(i for i, row in enumerate(checks.load_families()) if row["family"] == "capitals")
    data[wrong]["output"] = "It is Atlantis."
    (tmp_path / "data.json").write_text(json.dumps(data), encoding="utf-8")
    code, said = run(capsys, "--data", tmp_path / "data.json")
    assert code == 1 and f"entry {wrong} (capitals)" in said.out and said.out.endswith("1 entries fail\n")


def test_the_command_scores_a_file_of_answers_in_any_order(tmp_path, capsys):
    test = checks.split(checks.load_data())[1]
    answered = [dict(entry, model_response=entry["output"] if number % 2 else "no idea") for number, entry in enumerate(test)]
    random.Random(5).shuffle(answered)
    (tmp_path / "answers.json").write_text(json.dumps(answered), encoding="utf-8")
    code, said = run(capsys, "--answers", tmp_path / "answers.json", "--key", "model_response")
    assert code == 0
    families = checks.load_families()[935:1045]
    right = sum(row["check"] is not None for number, row in enumerate(families) if number % 2)
    assert said.out.splitlines()[-1].split() == ["total", str(right), "46"]


BAD_ANSWERS = [
    ("not json", "not a JSON file"),
    ("{}", "not a JSON list"),
    ("[1]", "not a JSON list"),
    ('[{"instruction": "x"}]', "entry 0 has no field"),
    ('[{"instruction": "x", "input": "", "model_response": "y"}]', "entry 0 is not in the instruction data"),
    ("[]", "no entry can be verified"),
]


@pytest.mark.parametrize("text, message", BAD_ANSWERS)
def test_bad_answers_end_in_one_line_and_exit_code_2(tmp_path, capsys, text, message):
    (tmp_path / "answers.json").write_text(text, encoding="utf-8")
    code, said = run(capsys, "--answers", tmp_path / "answers.json")
    assert code == 2 and said.out == "" and said.err.count("\n") == 1 and message in said.err


@pytest.mark.parametrize("arguments", [["--data", "nowhere.json"], ["--answers", "nowhere.json"], ["--families", "."], ["--bogus"]])
def test_missing_files_and_unknown_options_end_in_one_line_and_exit_code_2(capsys, arguments):
    code, said = run(capsys, *arguments)
    assert code == 2 and said.err.count("\n") == 1 and "error:" in said.err


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"instruction": "x", "input": ""}], "no text field 'output'"),
        ([{"instruction": "x", "input": "", "output": "y"}], "1 entries; the splits need 1100"),
    ],
)
def test_a_broken_data_file_is_named(tmp_path, capsys, rows, message):
    (tmp_path / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    code, said = run(capsys, "--data", tmp_path / "data.json")
    assert code == 2 and message in said.err


BROKEN_ROWS = [{"family": "x"}, {"family": 3, "check": None}, {"family": "x", "check": {"kind": "magic"}}, {"check": None}]


@pytest.mark.parametrize("row", BROKEN_ROWS)
def test_a_broken_families_file_is_named(tmp_path, capsys, row):
    (tmp_path / "families.json").write_text(json.dumps([row]), encoding="utf-8")
    code, said = run(capsys, "--families", tmp_path / "families.json")
    assert code == 2 and "entry 0" in said.err
