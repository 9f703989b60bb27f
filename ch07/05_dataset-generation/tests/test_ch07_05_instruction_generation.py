"""Requests that a model invents are asked for raw, bad ones are thrown away, and an interrupted run loses nothing.

The server is the course's own; the model behind it is a small one whose words are known, SmolLM2 in the last test.

Run it:  pytest ch07/05_dataset-generation/tests/test_ch07_05_instruction_generation.py
"""

import json
import random
import re
import shlex
from collections import Counter
from pathlib import Path

import instruction_generation
import pytest
from instruction_generation import (
    OPENINGS,
    SEEDS_PER_PAIR,
    extract_instruction,
    fault_of_instruction,
    fault_of_output,
    generate_pairs,
    invent_request,
    main,
    opening_of,
    plain,
    query_model,
    save_pairs,
)
from local_server import create_server

FOLDER = Path(instruction_generation.__file__).parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python instruction_generation\.py (.*)$", README, flags=re.M)


class Scripted:
    """A model for the server, one byte a token, that keeps what it was asked: a raw prompt gets a request, a chat an answer."""

    name, context_length, details = "smollm2:scripted", 2000, {}

    def __init__(self):
        self.asked = []

    def encode_chat(self, messages):
        return list(json.dumps(messages).encode())

    def encode_raw(self, prompt):
        return list(f"raw{prompt}".encode())

    def generate(self, ids, max_new_tokens, seed, temperature, top_k, top_p):
        prompt = bytes(ids).decode()
        self.asked.append((prompt, max_new_tokens, seed, temperature, top_p))
        word = random.Random(seed).choice(["tide", "moon", "boat", "gull"])
        text = f"\n  What is a {word}?\nAnd more." if prompt.startswith("raw") else " It is one of four words. \n"
        yield from text.encode()[:max_new_tokens]

    def stream(self, ids):
        yield from (chr(number) for number in ids)


@pytest.fixture
def served():
    """(a scripted model, the address of its server)."""
    model = Scripted()
    with create_server(port=0, model={name: model for name in ("smollm2:scripted", "smollm2:135m", "llama3")}) as server:
        yield model, f"{server.start()}/api/chat"


# ---- what is sent ----


def test_a_request_is_invented_behind_the_raw_opening(served):
    model, url = served
    assert invent_request(7, "smollm2:scripted", url).startswith("\n  What is a ")
    prompt, max_new_tokens, seed, temperature, top_p = model.asked[0]
    assert prompt == "raw" + OPENINGS["smollm2"] and prompt.endswith("<|im_start|>user\n")
    assert (max_new_tokens, seed, temperature, top_p) == (48, 7, 0.8, 0.9)  # all of them in `options`, or the server had ignored them


def test_a_question_is_asked_in_the_chat_template(served):
    model, url = served
    assert query_model("Why?", "smollm2:scripted", url) == "It is one of four words."
    assert query_model("Because.", "smollm2:scripted", url, role="assistant", options={"temperature": 0.5, "seed": 9, "num_predict": 5})
    (first, *how), (second, *other) = model.asked
    assert json.loads(first) == [{"role": "user", "content": "Why?"}] and how[1:3] == [123, 0.0]
    assert json.loads(second) == [{"role": "assistant", "content": "Because."}] and other[:3] == [5, 9, 0.5]


@pytest.mark.slow
def test_the_opening_is_that_of_the_model_s_template():
    from llama import load_smollm2  # only here: it reads the whole model

    try:
        _, tokenizer = load_smollm2()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    asked = tokenizer.encode_chat([{"role": "user", "content": "Why?"}])
    opening = tokenizer.encode(OPENINGS["smollm2"], allowed_special="all")
    assert asked[: len(opening)] == opening and tokenizer.decode(asked[len(opening) :]).startswith("Why?")


def test_a_model_without_a_known_opening_is_refused():
    assert opening_of("llama3.1:8b") == OPENINGS["llama3"]
    with pytest.raises(ValueError, match="smollm2, llama3: add it"):
        opening_of("phi3")


def test_equal_seeds_give_equal_requests(served):
    _, url = served
    first, second = ([invent_request(seed, "smollm2:scripted", url) for seed in range(6)] for _ in range(2))
    assert first == second and len(set(first)) > 1


# ---- what is kept ----


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        (None, None),
        ("", None),
        (" \n\t\n", None),
        ("One.", "One."),
        ("\n\n  Two words.  \nThree.", "Two words."),
        ("x" * 100_000, "x" * 100_000),
        ("A\r\nB", "A"),
        ("\u2028Name it.\u2028", "Name it."),
    ],
)
def test_the_first_line_with_something_in_it_is_the_request(text, instruction):
    assert extract_instruction(text) == instruction


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        (None, "empty"),
        ("", "empty"),
        ("...", "empty"),
        ("Name a color.", ""),
        ("你 好 吗?", ""),
        ("Hi there.", "too short"),
        ("Write a text about the sea and", "cut off"),
        ("# A heading of three words.", "no sentence"),
        ("<div>What is this here?</div>.", "no sentence"),
        ("What is this?<|im_end|> Really now?", "no sentence"),
        ("name  a COLOR!", "repeated"),
    ],
)
def test_a_bad_request_has_a_name(instruction, fault):
    known = {plain("Name a color.")} if fault == "repeated" else set()
    assert fault_of_instruction(instruction, known) == fault


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (None, "no answer"),
        ("", "no answer"),
        (" \n", "no answer"),
        ("!?", "no answer"),
        ("Blue.", ""),
        ("It is", "answer cut off"),
        ("name a color!", "parroted"),
        ("\n".join(f"{number}. Dark blue" for number in range(1, 9)) + ".", "loop"),
        ("The sea is blue." + " The sea is blue." * 3, "loop"),
        ("The sea is blue." + " The sea is blue." * 2, ""),
        ('He said "blue."', ""),
    ],
)
def test_a_bad_answer_has_a_name(output, fault):
    assert fault_of_output("Name a color.", output) == fault


# ---- the loop ----


def invented(seed: int) -> str:
    """Good requests, empty ones, repeats and cut ones, decided by the seed alone."""
    dice = random.Random(seed)
    return dice.choice(["", "Tell me about", *[f"What is number {dice.randrange(90)}?"] * 6])


def answered(text: str) -> str:
    return "" if "7" in text else f"{text} is a number."


def test_nothing_bad_is_stored_and_everything_is_counted(tmp_path):
    pairs, faults = generate_pairs(60, invented, answered, tmp_path / "log.jsonl", attempts=2)
    assert len(pairs) + faults["skipped"] == 60 and 0 < faults["skipped"] < 50
    assert len({plain(pair["instruction"]) for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert list(pair) == ["instruction", "output"] and "7" not in pair["instruction"]
        assert pair["output"] == answered(pair["instruction"]) and fault_of_instruction(pair["instruction"], set()) == ""
    assert set(faults) == {"empty", "cut off", "repeated", "no answer", "skipped"}
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert [row["number"] for row in rows] == list(range(60))
    assert Counter(fault for row in rows for fault in row["faults"]) == faults - Counter(skipped=60)


def test_each_attempt_has_a_seed_of_its_own(tmp_path):
    seeds = []
    generate_pairs(4, lambda seed: seeds.append(seed) or "", answered, tmp_path / "log.jsonl", seed=5, attempts=3)
    assert seeds == [5 + SEEDS_PER_PAIR * number + attempt for number in range(4) for attempt in range(3)]


def test_a_bad_request_costs_no_answer(tmp_path):
    asked = []
    generate_pairs(20, invented, lambda text: asked.append(text) or answered(text), tmp_path / "log.jsonl")
    assert all(fault_of_instruction(text, set()) == "" for text in asked) and len(set(map(plain, asked))) > 5


@pytest.mark.parametrize("cut", [0, 1, 25])
def test_an_interrupted_run_goes_on_and_gives_the_same(tmp_path, cut):
    whole = generate_pairs(40, invented, answered, tmp_path / "whole.jsonl")
    calls = []

    def failing(seed: int) -> str:
        calls.append(seed)
        if len(calls) == 30:
            raise OSError("the server is gone")
        return invented(seed)

    log = tmp_path / "log.jsonl"
    with pytest.raises(OSError):
        generate_pairs(40, failing, answered, log)
    if cut:
        log.write_bytes(log.read_bytes()[:-cut])  # the machine stopped in the middle of a line
    done = log.read_text(encoding="utf-8").count("\n")
    assert generate_pairs(40, failing, answered, log) == whole
    assert done >= 10 and len(calls) < 30 + len(whole[0]) + sum(whole[1].values()) - 5  # what was there is not made again
    assert generate_pairs(40, lambda seed: pytest.fail("asked again"), answered, log) == whole
    assert generate_pairs(10, invented, answered, log)[0] == whole[0][: len(generate_pairs(10, invented, answered, log)[0])]


def test_pairs_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "pairs.json"
    save_pairs([{"instruction": "a", "output": "ü"}], path)
    assert json.loads(path.read_text(encoding="utf-8")) == [{"instruction": "a", "output": "ü"}]
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_pairs([{"instruction": object()}], path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["pairs.json"]


# ---- the command line ----


def test_the_program_writes_pairs_and_goes_on(served, capsys, tmp_path):
    model, url = served
    how = ["--url", url.removesuffix("/api/chat") + "/", "--model", "smollm2:scripted", "--output", str(tmp_path / "pairs.json")]
    assert main(["--count", "3", *how]) == 0
    pairs = json.loads((tmp_path / "pairs.json").read_text(encoding="utf-8"))
    assert 1 <= len(pairs) <= 3 and {pair["output"] for pair in pairs} == {"It is one of four words."}
    assert f"{len(pairs)} pairs in" in capsys.readouterr().out
    made = len(model.asked)
    assert main(["--count", "3", *how]) == 0 and len(model.asked) == made
    assert main(["--count", "3", "--seed", "9", *how]) == 0 and len(model.asked) > made  # another seed, another log


def stops(capsys, *options: str) -> str:
    """Call main with bad options; returns its one line on stderr, progress left out."""
    with pytest.raises(SystemExit) as stopped:
        main([*options])
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


def test_bad_input_ends_in_one_line(capsys, tmp_path, served):
    output = ["--output", str(tmp_path / "pairs.json")]
    assert "--output" in stops(capsys) and "--count" in stops(capsys, *output, "--count", "0")
    assert "add it to OPENINGS" in stops(capsys, *output, "--model", "phi3")
    assert "no answer from http://127.0.0.1:9" in stops(capsys, *output, "--url", "http://127.0.0.1:9")
    assert "ollama pull" in stops(capsys, *output, "--url", served[1], "--model", "llama3.9")
    assert not (tmp_path / "pairs.json").exists()


def test_no_pair_is_an_error_and_not_an_empty_file(capsys, tmp_path, served, monkeypatch):
    monkeypatch.setattr(Scripted, "generate", lambda *args, **how: iter(()))
    output = tmp_path / "pairs.json"
    assert "no pair is worth keeping" in stops(
        capsys, "--output", str(output), "--url", served[1], "--model", "smollm2:scripted", "--count", "2"
    )
    assert not output.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_run(command, served, monkeypatch, capsys):
    model, url = served
    models = {"smollm2:135m": model}
    monkeypatch.setattr(instruction_generation, "create_server", lambda port: create_server(port=port, model=models))
    options = shlex.split(command)
    if "--url" in options:
        options[options.index("--url") + 1] = url
    assert main(options) == 0 and "pairs in my-pairs.json" in capsys.readouterr().out and model.asked


# ---- what is stored ----


def test_the_stored_pairs_are_those_of_the_log():
    stored = json.loads((FOLDER / "instruction-data-llama3-7b.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (FOLDER / "magpie-smollm2.jsonl").read_text(encoding="utf-8").split("\n") if line]
    kept = [{"instruction": row["instruction"], "output": row["output"]} for row in log if "instruction" in row]
    assert len(stored) == 5 and all(list(pair) == ["instruction", "output"] for pair in stored) and stored == kept[:5]
    assert [row["number"] for row in log] == list(range(len(log))) and len(log) == 12
    for row in log:
        assert ("instruction" in row) == ("output" in row) and len(row["faults"]) <= 3
    for pair in kept:
        assert fault_of_instruction(pair["instruction"], set()) == fault_of_output(**pair) == ""
