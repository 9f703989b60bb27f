"""The stored answers of two models: form, apart from today's training data, and one of the two visibly better."""

import json
import re
from difflib import SequenceMatcher
from pathlib import Path
from statistics import mean

import make_eval_data
import pytest
import torch
from llama import Llama3ModelFast, SmolLM2Tokenizer, find_smollm2, read_gguf

FOLDER = Path(make_eval_data.__file__).parent
KEYS = ["instruction", "input", "output", "model 1 response", "model 2 response"]


@pytest.fixture(scope="module")
def entries():
    return json.loads((FOLDER / "eval-example-data.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data():
    return json.loads(make_eval_data.DATA_FILE.read_text(encoding="utf-8"))


def plain(entry):
    """A question as it is compared: lower case, letters and numbers only."""
    return re.sub(r"\W+", " ", f"{entry['instruction']} {entry['input']}".lower()).strip()


def faults(entries, data):
    """What is wrong with the stored answers, as a list of lines."""
    found = [] if len(entries) == 100 else [f"{len(entries)} entries instead of 100"]
    trained = {plain(entry) for entry in data}
    seen = set()
    for number, entry in enumerate(entries):
        if list(entry) != KEYS:
            found.append(f"{number}: fields {list(entry)}")
        elif not all(isinstance(entry[key], str) and entry[key].strip() for key in (KEYS[0], *KEYS[2:])):
            found.append(f"{number}: an empty text")
        elif plain(entry) in trained:
            found.append(f"{number}: is an entry of the chapter's data")
        elif plain(entry) in seen:
            found.append(f"{number}: is asked twice")
        elif any("<|" in entry[key] for key in KEYS):
            found.append(f"{number}: a control token")
        seen.add(plain(entry) if list(entry) == KEYS else number)
    return found


def likeness(entries, key):
    """Mean likeness (0 to 1) of the answers to the outputs, by the longest common blocks of words."""
    words = lambda text: re.findall(r"\w+", text.lower())  # noqa: E731
    return mean(SequenceMatcher(None, words(entry[key]), words(entry["output"]), autojunk=False).ratio() for entry in entries)


def test_a_hundred_questions_that_the_chapters_data_does_not_ask_have_two_answers(entries, data):
    assert faults(entries, data) == []


def test_planted_faults_are_named(entries, data):
    changes = {
        "99 entries": lambda e: e.pop(),
        "3: an empty text": lambda e: e[3].update({"model 2 response": " "}),
        "5: is an entry of the chapter's data": lambda e: e[5].update(instruction=data[12]["instruction"].upper(), input=data[12]["input"]),
        "6: is asked twice": lambda e: e[6].update(instruction=e[2]["instruction"], input=e[2]["input"]),
        "7: fields": lambda e: e[7].pop("model 1 response"),
        "9: a control token": lambda e: e[9].update({"model 1 response": "<|im_end|>"}),
    }
    for message, change in changes.items():
        planted = json.loads(json.dumps(entries))
        change(planted)
        assert any(message in fault for fault in faults(planted, data)), message


def test_the_page_says_that_the_questions_are_of_the_first_edition(entries, data):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "test entries of the **first edition** of the chapter's data" in card
    assert {plain(entry) for entry in entries}.isdisjoint(map(plain, data[935:]))


def finished(answer):
    """Tell whether an answer ends with a sentence."""
    return answer.rstrip("\"'”").endswith((".", "!", "?"))


def test_model_1_answers_in_visibly_better_form(entries):
    stronger, weaker = (likeness(entries, f"model {number} response") for number in (1, 2))
    assert stronger > weaker + 0.15
    done = [sum(finished(entry[f"model {number} response"]) for entry in entries) for number in (1, 2)]
    assert done[0] > done[1] + 30


def test_the_cards_figures_are_those_of_the_file(entries):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for number in (1, 2):
        key = f"model {number} response"
        words = mean(len(entry[key].split()) for entry in entries)
        done = sum(finished(entry[key]) for entry in entries)
        assert f"| model {number} | {words:.1f} | {done} | {likeness(entries, key):.2f} | " in card


def test_only_answers_are_learned_and_the_end_token_is_one_of_them():
    tokenizer = SmolLM2Tokenizer(read_gguf(find_smollm2())[0])
    entry = {"instruction": "Name a color.", "input": "", "output": "Blue is a color."}
    inputs, targets = make_eval_data.encode(entry, tokenizer)
    learned = [number for number in targets if number != make_eval_data.IGNORE]
    assert tokenizer.decode(learned) == "Blue is a color.<|im_end|>" and len(inputs) == len(targets)
    assert inputs[len(inputs) - len(learned) + 1 :] == learned[:-1]


def test_batches_hold_every_entry_once():
    tokenizer = SmolLM2Tokenizer(read_gguf(find_smollm2())[0])
    entries = [{"instruction": f"Count to {number}.", "input": "", "output": "one " * number} for number in range(1, 12)]
    batches = list(make_eval_data.make_batches(entries, tokenizer, 4, torch.Generator().manual_seed(1)))
    assert [len(inputs) for inputs, _ in batches].count(4) == 2 and sum(len(inputs) for inputs, _ in batches) == 11
    learned = sorted(int((row != make_eval_data.IGNORE).sum()) for _, targets in batches for row in targets)
    assert learned == sorted(len(tokenizer.encode("one " * number)) + 1 for number in range(1, 12))


def test_an_answer_does_not_depend_on_the_batch_it_was_asked_in():
    tokenizer = SmolLM2Tokenizer(read_gguf(find_smollm2())[0])
    cfg = {"vocab_size": 49_152, "context_length": 64, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 32, "n_kv_groups": 1,
           "rope_base": 10_000.0, "rope_freq": None, "dtype": torch.float64}  # fmt: skip
    model = Llama3ModelFast(cfg).double().eval()
    with torch.no_grad():
        for block in model.trf_blocks:  # or a model this small would look at the last token only
            for weight in block.att.parameters():
                weight *= 8
    entries = [{"instruction": "Name " + "one " * length, "input": "", "output": ""} for length in (1, 7, 3)]
    together = make_eval_data.answer_all(model, tokenizer, entries, torch.device("cpu"), max_new_tokens=6)
    alone = make_eval_data.answer_all(model, tokenizer, entries, torch.device("cpu"), batch_size=1, max_new_tokens=6)
    assert together == alone and len(set(together)) == 3


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--limit", "0"], ["--lr", "-1"]])
def test_bad_settings_end_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        make_eval_data.main(arguments)
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
