"""Rewrites: the coin is seeded, entries stay as they are, prompts read well, and a program finds what went wrong."""

import copy
import json

import pytest
import rewrite_answers as rewrites
from preference_batches import load_pairs
from tone import with_checks

ENTRIES = [
    {"instruction": "What is 48 + 25?", "input": "", "output": "73", "check": {"kind": "number", "accept": ["73"]}},
    {"instruction": "Give the opposite of the word.", "input": "hot", "output": "cold", "check": {"kind": "word", "accept": ["cold"]}},
]


@pytest.fixture
def asked(monkeypatch):
    """The requests that reach the server, which answers with a line around the output."""
    seen = []

    def answer(prompt, model, url, timeout):
        seen.append({"prompt": prompt, "model": model, "url": url, "timeout": timeout})
        return f" Gladly: {prompt.rpartition('Answer: ')[2]} "

    monkeypatch.setattr(rewrites, "query_model", answer)
    return seen


def test_the_coin_is_seeded_and_fair():
    manners = rewrites.toss_manners(1100)
    assert manners == rewrites.toss_manners(1100) != rewrites.toss_manners(1100, seed=1) and manners[:10] == rewrites.toss_manners(10)
    assert 0.45 < manners.count("polite") / 1100 < 0.55


@pytest.mark.parametrize("manner", rewrites.MANNERS)
def test_the_prompt_holds_question_and_answer_in_sentences_of_their_own(manner):
    prompt = rewrites.rewrite_prompt(ENTRIES[1], manner)
    assert "Question: Give the opposite of the word.\nhot\n\nAnswer: cold" in prompt and rewrites.MANNERS[manner] in prompt
    first = prompt.split("\n\n")[0]
    assert first.count(". ") == 4 and ".K" not in first and "  " not in prompt


def test_entries_become_pairs_and_stay_as_they_are(asked):
    before = copy.deepcopy(ENTRIES)
    pairs = rewrites.generate_model_responses(ENTRIES * 5, url="http://127.0.0.1:1/api/chat")
    assert ENTRIES == before and len(asked) == 10 and {request["model"] for request in asked} == {"llama3.1:70b"}
    assert all(request["timeout"] >= 300 for request in asked)
    for pair, manner in zip(pairs, rewrites.toss_manners(10)):
        better, worse = ("chosen", "rejected") if manner == "polite" else ("rejected", "chosen")
        assert pair[worse] == pair["output"] and pair[better] == f"Gladly: {pair['output']}"


@pytest.mark.parametrize(
    "rewrite, fault",
    [
        ("", "empty"),
        ("73", "copy"),
        ("Gladly, that makes 37.", "lost number"),
        ("It is 73," + " really" * 31, "rambles"),
        ("Gladly, 73 or 74.", "lost answer"),
        ("Gladly: it is 73, dear friend.", ""),
    ],
)
def test_faults_are_named(rewrite, fault):
    assert rewrites.fault_of(rewrites.as_pair(ENTRIES[0], "polite", rewrite)) == fault
    assert rewrites.fault_of(rewrites.as_pair(ENTRIES[0], "impolite", rewrite)) == fault


def test_the_courses_own_pairs_have_next_to_no_fault():
    faults = [rewrites.fault_of(pair) for pair in with_checks(load_pairs())]
    assert set(faults) == {"", "lost answer"} and faults.count("lost answer") < 0.02 * len(faults)


def test_the_program_writes_pairs_once(tmp_path, asked, capsys):
    assert rewrites.main(["--limit", "3", "--output", "pairs.json"]) == 0
    pairs = json.loads((tmp_path / "pairs.json").read_text(encoding="utf-8"))
    assert [list(pair) for pair in pairs] == [["instruction", "input", "output", "chosen", "rejected"]] * 3
    assert "3 pairs in pairs.json" in capsys.readouterr().out
    for options in (
        ["--limit", "3", "--output", "pairs.json"],
        ["--limit", "0", "--output", "b.json"],
        ["--data", "no.json", "--output", "b.json"],
    ):
        with pytest.raises(SystemExit) as stop:
            rewrites.main(options)
        assert stop.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "b.json").exists()


def test_without_a_server_it_says_what_to_do(capsys):
    with pytest.raises(SystemExit) as stop:
        rewrites.main(["--limit", "1", "--url", "http://127.0.0.1:9/api/chat", "--output", "pairs.json"])
    assert stop.value.code == 2 and "Ollama" in capsys.readouterr().err
