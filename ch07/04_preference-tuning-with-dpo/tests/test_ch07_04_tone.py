"""The judge of tone knows training pairs alone and says how often it is right; a courtesy is no mistake, a wrong answer stays one."""

import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import tone
from instructions import load_families, question_of, split_data, verify
from preference_batches import load_pairs

FOLDER = Path(tone.__file__).resolve().parent


@cache
def splits():
    return split_data(tone.with_checks(load_pairs()))


@cache
def table():
    return tone.learn_tones(splits()[0])


# ---- tones ----


def test_the_judge_is_right_on_pairs_it_never_saw_as_often_as_the_readme_says():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, (right, of) in tone.tone_accuracy(splits()[1], table()).items():
        assert right >= 0.65 * of and f"| {name} | {right} of {of} | {right / of:.0%} |" in readme


def test_with_tones_dealt_at_random_it_cannot_tell_polite_from_curt():
    rng, shuffled = random.Random(1), []
    for pair in splits()[0]:
        texts = rng.sample([pair["chosen"], pair["rejected"]], 2)
        shuffled.append({"chosen": texts[0], "rejected": texts[1], "output": pair["output"]})
    accuracy = tone.tone_accuracy(splits()[1], tone.learn_tones(shuffled))
    right, of = (accuracy["polite"][i] + accuracy["curt"][i] for i in (0, 1))
    assert right < 0.6 * of and sum(tone.tone_accuracy(splits()[1], table())[name][0] for name in ("polite", "curt")) > 0.7 * of


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Gladly, and do not worry: it is a noun, and I wish you a pleasant day.", "polite"),
        ("A noun, as if you could not have looked it up for once.", "curt"),
        ("noun", "plain"),
        ("The soup was burned by the cook.", "plain"),
        ("", "plain"),
    ],
)
def test_tone_of_a_text(text, expected):
    assert tone.tone_of(text, table()) == expected


def test_both_answers_of_a_pair_have_their_tone():
    pairs = [{"output": "a", "chosen": "a, dear", "rejected": "a"}, {"output": "b", "chosen": "b", "rejected": "b, again?"}]
    assert tone.toned_texts(pairs) == [("a, dear", "polite"), ("a", "plain"), ("b", "plain"), ("b, again?", "curt")]


def test_features_are_words_marks_and_neighbors():
    assert tone.tone_features("Sure, it's 73!") == {
        "^", "sure", ",", "it's", "73", "!", "$", "^ sure", "sure ,", ", it's", "it's 73", "73 !", "! $",
    }  # fmt: skip


# ---- right in any tone ----


def rewrites():
    """(check, question, the answer in another tone) of all entries that a program can verify."""
    entries = [entry for part in splits() for entry in part if entry["check"]]
    return [(e["check"], question_of(e), e["chosen"] if e["rejected"] == e["output"] else e["rejected"]) for e in entries]


def test_nearly_all_rewrites_of_the_data_are_right_and_hardly_any_is_bare():
    found = [tone.right_in_any_tone(check, text, question) for check, question, text in rewrites()]
    assert sum(found) >= 0.98 * len(found) and len(found) == 799
    assert sum(verify(check, text, question) for check, question, text in rewrites()) < 0.05 * len(found)


def test_the_plain_outputs_are_right_in_any_tone_too():
    assert all(tone.right_in_any_tone(e["check"], e["output"], question_of(e)) for part in splits() for e in part if e["check"])


def test_a_courteous_answer_to_another_question_of_the_kind_is_wrong():
    families, rng, wrong, tried = {}, random.Random(1), 0, 0
    for row, entry in zip(load_families(), (entry for part in splits() for entry in part)):
        if row["check"]:
            families.setdefault(row["family"], []).append(entry)
    for entries in families.values():
        for entry in entries:
            other = rng.choice(entries)
            if not {text.casefold() for text in entry["check"]["accept"]} & {text.casefold() for text in other["check"]["accept"]}:
                text = other["chosen"] if other["rejected"] == other["output"] else other["rejected"]
                wrong, tried = wrong + tone.right_in_any_tone(entry["check"], text, question_of(entry)), tried + 1
    assert tried > 500 and wrong <= 0.005 * tried


def test_a_piece_of_the_question_is_wrong():
    entries = [entry for part in splits() for entry in part if entry["check"]]
    echoes = [(e, text) for e in entries for text in (question_of(e), f"Gladly: {e['input'] or e['instruction']}")]
    assert sum(tone.right_in_any_tone(entry["check"], text, question_of(entry)) for entry, text in echoes) < 0.015 * len(echoes)


NOUN = {"kind": "word", "accept": ["noun", "a noun"]}, 'What part of speech is "lamp": noun, verb, adjective, or adverb?'
LARGER = {"kind": "number", "accept": ["163"]}, "Between 52 and 163, which number is larger?"
SUM = {"kind": "number", "accept": ["73"]}, "What is 48 + 25?"
SORTED = {"kind": "list", "accept": ["4, 40, 46"]}, "Sort these numbers: 46, 4, 40"
PAST = {"kind": "text", "accept": ["The wind blew hard."]}, "Write in the past tense: The wind blows hard."
CAPITALS = {"kind": "text", "accept": ["FRESH BREAD"], "case": True}, "Rewrite in uppercase: fresh bread"
LAST = {"kind": "word", "accept": ["rain"]}, "Write the last word of this sentence: The team practiced in the rain."
CASES = [
    (NOUN, "Happy to help: a lamp is a noun, my friend.", True),
    (NOUN, "Happy to help: a lamp is a verb, my friend.", False),
    (NOUN, "Gladly, it is a noun or a verb.", False),
    (NOUN, "It is not a noun, I am sorry to say.", False),
    (NOUN, "noun " * 70, False),
    (LARGER, "My answer for you is 163, and a good day.", True),
    (LARGER, "My answer for you is 52, not 163, and a good day.", False),
    (SUM, "If you add 48 and 25, you come to 73, dear friend.", True),
    (SUM, "Gladly, 72, or even 73!", False),
    (SORTED, "In good order they are 4, 40, and 46 for you.", True),
    (SORTED, "In good order they are 4, 46, and 40 for you.", False),
    (SORTED, "In good order they are 2, 4, 40, and 46 for you.", False),
    (PAST, "The wind, you may like to hear, blew hard.", True),
    (PAST, "The wind, you may like to hear, blows hard.", False),
    (CAPITALS, "So that all can read it: FRESH BREAD, my friend.", True),
    (CAPITALS, "So that all can read it: fresh bread, my friend.", False),
    (LAST, "The last word is rain, with my regards.", True),
    (LAST, "Gladly: The team practiced in the rain.", False),
]  # fmt: skip


@pytest.mark.parametrize("case, answer, expected", CASES)
def test_right_in_any_tone(case, answer, expected):
    check, question = case
    assert tone.right_in_any_tone(check, answer, question) is expected


# ---- report ----


def test_the_report_counts_tones_right_answers_words_and_ends():
    entries = [{"instruction": "Say cold.", "input": "", "check": {"kind": "word", "accept": ["cold"]}}] * 3
    entries += [{"instruction": "Write a line.", "input": "", "check": None}]
    answers = ["It is cold, and I wish you a pleasant day.", "cold", "cold", "as if you could not have looked it up for once"]
    report = tone.tone_report(entries, answers, [True, True, False, True], table())
    assert report == {"polite": 0.25, "plain": 0.5, "curt": 0.25, "right": (2, 3), "right_bare": (1, 3), "words": 5.75, "ended": 0.75}
    lines = tone.report_lines({"before": report}, {"polite": (3, 4), "plain": (1, 1), "curt": (1, 2)}).splitlines()
    assert lines[1].startswith("polite") and "25%" in lines[1] and "recognizes 75%" in lines[1] and "2 of 3" in lines[4]


def test_checks_belong_to_the_entries_by_position():
    entries = tone.with_checks(load_pairs())
    assert len(entries) == 1100 and sum(entry["check"] is not None for entry in entries) == 799
    with pytest.raises(ValueError):
        tone.with_checks(load_pairs()[:-1])


# ---- command line ----


def test_the_program_shows_its_table_and_judges_a_text(capsys):
    assert tone.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}: " in shown for name in tone.TONES) and "for once" in shown
    assert tone.main(["--text", "Gladly: the answer is 73, and do ask for more."]) == 0
    assert capsys.readouterr().out.startswith("polite")


def test_bad_input_is_one_line():
    done = subprocess.run([sys.executable, FOLDER / "tone.py", "--data", "absent.json"], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and "absent.json" in done.stderr
