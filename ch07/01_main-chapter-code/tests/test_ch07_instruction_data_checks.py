"""Every verifier accepts right answers in any wording and refuses wrong ones; form, loading, splitting, scoring, command line."""

import json
import random
import subprocess
import sys
from pathlib import Path

import instruction_data_checks as checks
import pytest
from answer_cases import CASES, number, text, word

SCRIPT = Path(checks.__file__).resolve()


def cases(which):
    return [pytest.param(q, check, answer, id=f"{family}-{answer[:40]!r}") for family, q, check, *sides in CASES for answer in sides[which]]


@pytest.mark.parametrize("question, check, answer", cases(0))
def test_a_right_answer_passes_in_any_wording(question, check, answer):
    assert checks.verify(check, answer, question)


@pytest.mark.parametrize("question, check, answer", cases(1))
def test_a_wrong_or_undecided_answer_fails(question, check, answer):
    assert not checks.verify(check, answer, question)


@pytest.mark.parametrize("answer", ["", "   ", None, 7, "I do not know.", "?", ".", "yes yes yes yes no no", "word " * 61])
def test_no_answer_is_never_right(answer):
    assert not any(checks.verify(check, answer, question) for _, question, check, *_ in CASES)


def test_the_cases_cover_every_family():
    assert {family for family, *_ in CASES} == {row["family"] for row in checks.load_families() if row["check"]}


def test_without_the_question_a_bare_answer_and_a_sentence_pass():
    for answer in ("Paris", "The capital of France is Paris."):
        assert checks.verify(word("Paris"), answer)
    assert (
        checks.verify(number("73"), "48 + 25 = 73") and checks.verify(number("73"), "It is 73.") and not checks.verify(number("73"), "72")
    )


# ---- the shipped data ----


def entries():
    rows = [(entry, row) for entry, row in zip(checks.load_data(), checks.load_families()) if row["check"]]
    return rows + [(entry, entry) for entry in checks.load_verifiable_test()]


def wordings(output, kind):
    """The same answer as people and models write it."""
    bare = output.rstrip(".")
    yield from (bare, f'"{output}"', f"**{output}**", f"Sure! {output}", f"Answer: {output}", f"{output}\n", f"The answer is: {output}")
    if kind in ("word", "number") and bare.count(" ") < 2 and bare != "answer":
        yield f"The answer is {bare}."


def test_every_shipped_output_passes_in_all_wordings():
    for entry, row in entries():
        for answer in wordings(entry["output"], row["check"]["kind"]):
            assert checks.verify(row["check"], answer, checks.question_of(entry)), (entry, answer)


def test_every_shipped_output_with_a_second_guess_fails():
    families = {}
    for entry, row in entries():
        families.setdefault(row["family"], []).append((entry, row["check"]))
    generator = random.Random(7)
    for rows in families.values():
        for entry, check in rows:
            mine, others = entry["output"], (e["output"] for e, _ in generator.sample(rows, len(rows)))
            other = next(output for output in others if not checks.verify(check, output, checks.question_of(entry)))
            for answer in (f"{mine} or {other}", f"{other}, {mine}", f"{mine}\n{other}", f"{mine} {other}", f"not {mine}", f"{other}"):
                assert not checks.verify(check, answer, checks.question_of(entry)), (entry, answer)


def test_every_shipped_output_followed_by_more_text_fails():
    for entry, row in entries():
        for more in ("\n\n### Instruction:\nName a color.", ". The weather is fine today.", " " + "and so on " * 30):
            assert not checks.verify(row["check"], entry["output"] + more, checks.question_of(entry)), entry


# ---- form ----

FORMS = [
    (text("x"), ["The soup was burned.", "Is it late?", '"Stop!"', "2 dogs ran."], ["the soup was burned.", "The soup", "One.\nTwo.", ""]),
    (text("X", case=True), ["WET PAINT", "STOP!"], ["Wet paint", "42", "WET\nPAINT"]),
    (word("x"), ["cold", "The opposite of hot is cold."], ["one two three four five six seven eight nine ten eleven", "a\nb"]),
    (number("7"), ["7", "It is 7.", "3 + 4 = 7", "Double 31 is 62.", "seven"], ["7 or 8", "none of them", "3 + 4", "7\n8"]),
    ({"kind": "list", "accept": ["1, 2"]}, ["1, 2", "1 < 2", "1 and 2", "1\n2"], ["12", "1 2", "1"]),
    (None, ["Anything goes.", "- a\n- b"], ["word " * 81, " "]),
]


@pytest.mark.parametrize("check, good, bad", FORMS)
def test_the_form_is_judged_whatever_the_content(check, good, bad):
    assert all(checks.well_formed(check, answer) for answer in good)
    assert not any(checks.well_formed(check, answer) for answer in [*bad, None])


# ---- loading, splitting, scoring ----


def test_the_splits_lose_and_repeat_nothing():
    train, test, val = checks.split(list(range(1100)))
    assert train + test + val == list(range(1100)) and (len(train), len(test), len(val)) == (935, 110, 55)
    with pytest.raises(ValueError, match="1099 entries.*1100"):
        checks.split(list(range(1099)))


def test_the_score_of_the_test_split_counts_right_answers_by_family():
    data, families = checks.load_data(), checks.load_families()
    test = checks.split(data)[1]
    full = checks.score([entry["output"] for entry in test], data, families, start=935)
    assert len(full) == 17 and all(counts == (5, 5) for counts in full.values())
    none = checks.score([None, ""] * 55, data, families, start=935)
    assert set(none.values()) == {(0, 5)}
    answers = [entry["output"] for entry in test]
    answers[next(i for i, row in enumerate(families[935:]) if row["family"] == "capitals")] = "Atlantis"
    assert checks.score(answers, data, families, start=935)["capitals"] == (4, 5)
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
    assert answer.stdout.splitlines()[-2].split() == ["total", "1100", "799", "935", "110", "55"]


def test_the_command_names_wrong_outputs_and_ends_with_1(tmp_path, capsys):
    data = checks.load_data()
    wrong = next(i for i, row in enumerate(checks.load_families()) if row["family"] == "capitals")
    data[wrong]["output"] = "It is Atlantis."
    (tmp_path / "data.json").write_text(json.dumps(data), encoding="utf-8")
    code, said = run(capsys, "--data", tmp_path / "data.json")
    assert code == 1 and f"entry {wrong} (capitals)" in said.out and said.out.endswith("1 entries fail\n")


@pytest.mark.parametrize("asked, total", [("test", 85), ("verifiable", 482)])
def test_the_command_scores_a_file_of_answers_in_any_order(tmp_path, capsys, asked, total):
    test = checks.split(checks.load_data())[1] if asked == "test" else checks.load_verifiable_test()
    answered = [dict(entry, model_response=entry["output"]) for entry in test]
    answered[0]["model_response"] = "no idea"
    random.Random(5).shuffle(answered)
    (tmp_path / "answers.json").write_text(json.dumps(answered), encoding="utf-8")
    code, said = run(capsys, "--answers", tmp_path / "answers.json", "--key", "model_response")
    verifiable = asked == "verifiable" or checks.load_families()[935]["check"]
    assert code == 0 and said.out.splitlines()[-1].split() == ["total", str(total - bool(verifiable)), str(total)]


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


@pytest.mark.parametrize(
    "field, value, message", [("group", "other", "none of the groups"), ("check", 3, "unknown kind"), ("output", None, "no text field")]
)
def test_a_broken_verifiable_test_is_named(tmp_path, field, value, message):
    entry = dict(checks.load_verifiable_test()[0], **{field: value})
    (tmp_path / "test.json").write_text(json.dumps([entry]), encoding="utf-8")
    with pytest.raises(ValueError, match=f"entry 0 .*{message}"):
        checks.load_verifiable_test(tmp_path / "test.json")
