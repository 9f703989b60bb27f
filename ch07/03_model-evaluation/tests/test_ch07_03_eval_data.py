"""The answers to be judged: their form, whose they are, and the program that collects them.

Run it:  pytest ch07/03_model-evaluation/tests/test_ch07_03_eval_data.py
"""

import json
import shutil
from collections import Counter
from pathlib import Path

import make_eval_data
import pytest
from instructions import question_of
from judge_report import SERIES, load_entries, verdicts
from make_eval_data import ASKED, main, make_files

FOLDER = Path(make_eval_data.__file__).parent
KEYS = ["instruction", "input", "output", "model 1 response", "model 2 response"]
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def entries():
    return json.loads((FOLDER / "eval-example-data.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def more():
    return json.loads((FOLDER / "more-answers.json").read_text(encoding="utf-8"))


def faults(entries):
    """What is wrong with the form of the stored answers, as a list of lines."""
    found = [] if len(entries) == ASKED else [f"{len(entries)} entries instead of {ASKED}"]
    asked = Counter(question_of(entry) for entry in entries if list(entry) == KEYS)
    for number, entry in enumerate(entries):
        if list(entry) != KEYS:
            found.append(f"{number}: fields {list(entry)}")
        elif not all(isinstance(entry[key], str) and entry[key].strip() for key in (KEYS[0], *KEYS[2:])):
            found.append(f"{number}: an empty text")
        elif asked[question_of(entry)] > 1:
            found.append(f"{number}: is asked twice")
    return found


def test_a_hundred_different_questions_have_two_answers(entries):
    assert faults(entries) == []


def test_planted_faults_are_named(entries):
    changes = {
        "99 entries": lambda e: e.pop(),
        "3: an empty text": lambda e: e[3].update({"model 2 response": " "}),
        "6: is asked twice": lambda e: e[6].update(instruction=e[2]["instruction"], input=e[2]["input"]),
        "7: fields": lambda e: e[7].pop("model 1 response"),
    }
    for message, change in changes.items():
        planted = json.loads(json.dumps(entries))
        change(planted)
        assert any(message in fault for fault in faults(planted)), message


def test_gemmas_name_and_terms_stand_beside_what_it_wrote(more):
    terms = "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms"
    assert more["terms"] == terms and terms in CARD and "Gemma 3 270M" in more["models"]


def test_the_tuned_model_knows_more_and_every_reference_is_right():
    judged = load_entries()
    right = {series: verdicts(judged, key) for series, key in SERIES.items()}
    assert all(verdict in (True, None) for verdict in right["references"])
    assert {len([verdict for verdict in known if verdict is not None]) for known in right.values()} == {78}
    counts = {series: sum(verdict is True for verdict in known) for series, known in right.items()}
    assert counts["untuned Gemma"] == 0 and counts["tuned Gemma, seed 123"] > 39 and counts["hostile"] == 0
    for number, name in ((1, "tuned Gemma, seed 123"), (2, "untuned Gemma"), (3, "tuned Gemma, seed 7"), (4, "tuned gpt2-mini")):
        words = sum(len(entry[f"model {number} response"].split()) for entry in judged) / ASKED
        assert f"| {number} | {words:.1f} | {counts[name]} |" in CARD.replace("**", "")


@pytest.fixture
def main_folder(tmp_path):
    """A main folder as small as can be: 1,035 entries, the answers of three runs."""
    entries = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(1035)]
    check = {"kind": "number", "accept": ["1"]}
    families = [{"family": "echo", "check": check, "known": True}] * 1035
    runs = [
        {"name": name, "after": {"answers": [f"{name} {n}" for n in range(110)]}}
        for name in ("all weights, seed 7", "all weights, seed 123")
    ]
    log = {"terms": "TERMS", "before": {"answers": [f"before {n}" for n in range(110)]}, "runs": runs}
    mini = [{**entry, "model_response": f"mini {entry['output']}"} for entry in reversed(entries[935:])]
    files = {"instruction-data": entries, "instruction-data-families": families, "gemma-log": log, "instruction-data-with-response": mini}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def test_every_answer_lies_beside_its_own_question(main_folder):
    files = {name: json.loads(text) for name, text in make_files(main_folder).items()}
    data, more = files["eval-example-data.json"], files["more-answers.json"]
    assert len(data) == len(more["entries"]) == ASKED and more["terms"] == "TERMS" and faults(data) == []
    for n in (0, 42, 99):
        assert data[n]["output"] == str(935 + n)
        assert data[n]["model 1 response"] == f"all weights, seed 123 {n}" and data[n]["model 2 response"] == f"before {n}"
        assert more["entries"][n]["model 3 response"] == f"all weights, seed 7 {n}"
        assert more["entries"][n]["model 4 response"] == f"mini {935 + n}" and more["entries"][n]["family"] == "echo"


def test_check_tells_changed_files_apart(main_folder, tmp_path, capsys):
    where = ["--main_folder", str(main_folder), "--output_dir", str(tmp_path / "made")]
    assert main(where) == 0 and main([*where, "--check"]) == 0
    changed = tmp_path / "made" / "more-answers.json"
    changed.write_text(changed.read_text(encoding="utf-8").replace("mini 936", "mine 936"), encoding="utf-8")
    assert main([*where, "--check"]) == 1
    assert "more-answers.json is not what the stored answers say" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "broken", "other run"])
def test_bad_input_ends_in_one_line(main_folder, damage, capsys):
    log = main_folder / "gemma-log.json"
    if damage == "missing":
        shutil.rmtree(main_folder)
    else:
        log.write_text("{" if damage == "broken" else log.read_text(encoding="utf-8").replace("seed 7", "seed 8"), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["--main_folder", str(main_folder), "--check"])
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
