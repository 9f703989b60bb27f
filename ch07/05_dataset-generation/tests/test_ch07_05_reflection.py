"""Replies are read whatever a model makes of the form; without a usable reply an entry stays as it is, and no reply is lost.

The client is the ordinary one of openai's package, at the course's own server; the model behind it answers with what a test says.

Run it:  pytest ch07/05_dataset-generation/tests/test_ch07_05_reflection.py
"""

import copy
import json
import random
import re
import shlex
import time
from pathlib import Path

import pytest
import reflection
from local_server import create_server
from openai import OpenAI
from reflection import (
    SAMPLE_ANSWER,
    SAMPLE_BETTER,
    SAMPLE_INSTRUCTION,
    build_instruction_reflection_prompt_no_input,
    build_response_reflection_prompt_no_input,
    build_response_reflection_prompt_with_input,
    extract_instruction,
    extract_instruction_segment,
    extract_output_segment,
    extract_response,
    main,
    reflect_instructions,
    reflect_responses,
    run_chatgpt,
    verdict,
)

FOLDER = Path(reflection.__file__).parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python reflection\.py (.*)$", README, flags=re.M)
ENTRIES = [
    {"instruction": "Name a color.", "input": "", "output": "Blue."},
    {"instruction": "Put it in the plural.", "input": "boat", "output": "boats"},
    {"instruction": "Name a fish.", "input": "", "output": "Cod."},
]
BETTER = "It is vague.\n[New Instruction] Name a color of the sea. [End]\n[New Answer] Blue, or green. [End]"


class Replying:
    """A model for the server, one byte a token: `reply(messages)` says what it answers."""

    name, context_length, details = "replying", 4000, {}

    def __init__(self, reply):
        self.reply, self.asked = reply, []

    def encode_chat(self, messages):
        self.asked.append(messages)
        return list(json.dumps(messages).encode())

    def generate(self, ids, max_new_tokens, seed, temperature, top_k, top_p):
        self.how = (seed, temperature)
        yield from self.reply(json.loads(bytes(ids))).encode()[:max_new_tokens]

    def stream(self, ids):
        yield bytes(ids).decode("utf-8", "replace")


@pytest.fixture
def serve():
    """Call it with a function from messages to a reply; gives (model, client of the ordinary package)."""
    servers = []

    def start(reply):
        model = Replying(reply)
        servers.append(create_server(port=0, model=model))
        return model, OpenAI(base_url=f"{servers[-1].start()}/v1", api_key="none", max_retries=0)

    yield start
    for server in servers:
        server.server_close()


# ---- reading replies ----


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (BETTER, ["Name a color of the sea.", "Blue, or green."]),
        ("[New Instruction] A. [New Answer] B. [End]", ["A.", "B."]),
        ("[New Answer] B. [End] [New Instruction] A. [End]", ["A.", "B."]),
        ("**[New Instruction]:** A.\n**[End]**\n**[New Answer]:**\nB.\n**[End]**", ["A.", "B."]),
        ("[new instruction] A. [END] [NEW ANSWER] B. [end]", ["A.", "B."]),
        ("[New Instruction]\nA\n\nof two lines. [End][New Answer]1. B\n2. C[End]", ["A\n\nof two lines.", "1. B\n2. C"]),
        ("[New Instruction] A. [End] [New Answer] B, cut off in the mid", ["A.", None]),
        ("[New Instruction] A. [End]", ["A.", None]),
        ("[New Answer] B. [End]", [None, "B."]),
        ("New Instruction: A. New Answer: B.", [None, None]),
        ("[New Instruction] [End] [New Answer]  \n [End]", [None, None]),
        (f"[New Instruction] {SAMPLE_INSTRUCTION} [End]\n[New Answer] {SAMPLE_ANSWER}. [End]", [None, None]),
        (f"[New Instruction] {SAMPLE_INSTRUCTION} [End] [New Instruction] A. [End] [New Answer] B. [End]", ["A.", "B."]),
        ("[New Instruction] A. [End] [New Answer] B. [End] [New Instruction] C. [End] [New Answer] D. [End]", ["A.", "B."]),
        ("[New Instruction] Sort [3, 1] and [End of list] [End] [New Answer] [1, 3] [End]", ["Sort [3, 1] and [End of list]", "[1, 3]"]),
        ("[New Instruction] Sum it up. [New Input] a text [End] [New Answer] B. [End]", [None, None]),
        (
            "[New Instruction] Write **bold** words. [End] [New Answer] They are **bold** now. [End]",
            ["Write **bold** words.", "They are **bold** now."],
        ),
        ("[[New Instruction]] A. [[End]] [New Answer] B. [End]", ["A.", "B."]),
        ("\\[New Instruction\\] A. \\[End\\]", [None, None]),
        ("", [None, None]),
        (None, [None, None]),
        ("I am sorry, I cannot do that.", [None, None]),
        ("[New Instruction] 写一首诗。[End] [New Answer] 🌊 [End]", ["写一首诗。", "🌊"]),
    ],
)
def test_instruction_and_answer_are_read(text, found):
    assert extract_instruction(text) == found == [extract_instruction_segment(text), extract_output_segment(text)]


def test_an_input_of_its_own_is_allowed_where_it_is_asked_for():
    text = "[New Instruction] Sum it up. [New Input] a text [End] [New Answer] B. [End]"
    assert (extract_instruction_segment(text, no_input=False), extract_output_segment(text, no_input=False)) == ("Sum it up.", "B.")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is short. [Better Answer] Blue, like the sea. [End]", ["Blue, like the sea."]),
        ("[Better Answer] A. [Better Answer] B. [End] more", ["A.", "B."]),
        (f"[Better Answer] {SAMPLE_BETTER} [End]\n[Better Answer] A. [End]", ["A."]),
        ("[Better Answer] A cut answer", []),
        ("[Better Answer] [End]", []),
        ("Better answer: A.", []),
        ("", []),
        (None, []),
    ],
)
def test_better_answers_are_read(text, found):
    assert extract_response(text) == found


def test_no_text_breaks_the_parsers_or_slows_them_down():
    dice = random.Random(1)
    pieces = ["[New Instruction]", "[New Answer]", "[Better Answer]", "[End]", "[", "]", "*", "**", ":", "\n", "a", "[[", "\\", "\0", "é"]
    for _ in range(2000):
        text = "".join(dice.choices(pieces, k=dice.randrange(30)))
        found = [*extract_instruction(text), *extract_response(text)]
        assert all(part is None or (part.strip() == part and part in text) for part in found) and "" not in found
    started = time.perf_counter()
    for hostile in ("[New Instruction" * 50_000, "*" * 500_000, "[" * 500_000, "[End]" * 100_000, "[Better Answer]" * 50_000):
        extract_instruction(hostile), extract_response(hostile)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("reply", "kind", "name"),
    [
        (BETTER, "instruction", "usable"),
        ("Fine as it is.", "instruction", "no marker"),
        ("[New Instruction] A. [End]", "instruction", "a marker is missing"),
        ("[New Instruction] A. [End] [New Answer] B", "instruction", "no end, or empty"),
        (f"[New Instruction] {SAMPLE_INSTRUCTION} [End] [New Answer] B. [End]", "instruction", "sample text repeated"),
        ("[Better Answer] A. [End]", "response", "usable"),
        ("[Better Answer] A", "response", "no end, or empty"),
        ("", "response", "no marker"),
    ],
)
def test_a_verdict_names_what_is_wrong(reply, kind, name):
    assert verdict(reply, kind) == name


# ---- prompts ----


def test_prompts_hold_the_texts_and_ask_for_the_markers():
    ins, inp, outp = "Sort the words.", "-----\nb\na\n-----", "a, b"
    for system, prompt in (
        build_instruction_reflection_prompt_no_input(ins, outp),
        build_response_reflection_prompt_no_input(ins, outp),
        build_response_reflection_prompt_with_input(ins, inp, outp),
    ):
        assert system and all(text in prompt for text in (ins, outp)) and prompt.endswith("[End]")
        assert extract_instruction(prompt) == [None, None] and extract_response(prompt) == []  # a model that repeats it gives nothing
    assert f"\n------\n{inp}\n------" in build_response_reflection_prompt_with_input(ins, inp, outp)[1]  # a fence that the text lacks
    assert "[New Instruction]" in build_instruction_reflection_prompt_no_input(ins, outp)[1]


# ---- the two passes ----


def test_the_service_gets_system_prompt_seed_and_temperature(serve):
    model, client = serve(lambda messages: messages[-1]["content"][::-1])
    assert run_chatgpt("abc", client, "replying", "Be brief.") == "cba" and model.how == (123, 0.0)
    assert model.asked[0] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "abc"}]
    assert run_chatgpt("abcdef", client, "replying", max_tokens=2) == "fe" and len(model.asked[1]) == 1


def test_instructions_are_rewritten_and_the_rest_stays(serve, tmp_path, capsys):
    model, client = serve(lambda messages: BETTER if "Name a color." in messages[-1]["content"] else "[New Instruction] A. [End]")
    before = copy.deepcopy(ENTRIES)
    new = reflect_instructions(ENTRIES, client, "replying", tmp_path / "log.jsonl")
    assert new == [{"instruction": "Name a color of the sea.", "input": "", "output": "Blue, or green."}, *ENTRIES[1:]]
    assert ENTRIES == before and new[1] is not ENTRIES[1]
    assert len(model.asked) == 2, "an entry with an input is not sent"
    assert "1 of 2 replies could not be used; their entries stay as they were: [2]" in capsys.readouterr().out


def test_answers_are_rewritten_with_and_without_input(serve, tmp_path, capsys):
    model, client = serve(lambda messages: "" if "fish" in messages[-1]["content"] else "[Better Answer] Better! [End]")
    new = reflect_responses(ENTRIES, client, "replying", tmp_path / "log.jsonl")
    assert [entry["output"] for entry in new] == ["Better!", "Better!", "Cod."]
    assert [entry["instruction"] for entry in new] == [entry["instruction"] for entry in ENTRIES]
    assert ["Input:" in messages[-1]["content"] for messages in model.asked] == [False, True, False]
    assert "[2]" in capsys.readouterr().out


def test_an_interrupted_run_pays_for_nothing_twice(serve, tmp_path):
    calls = []

    def reply(messages):
        calls.append(messages)
        if len(calls) == 3:
            raise RuntimeError("the service is gone")
        return "[Better Answer] Better! [End]"

    _, client = serve(reply)
    with pytest.raises(Exception, match="mistake|error|gone"):
        reflect_responses(ENTRIES, client, "replying", tmp_path / "log.jsonl")
    assert all(entry["output"] == "Better!" for entry in reflect_responses(ENTRIES, client, "replying", tmp_path / "log.jsonl"))
    assert len(calls) == 4
    reflect_responses(ENTRIES, client, "replying", tmp_path / "log.jsonl")
    assert len(calls) == 4


def test_the_log_has_a_place_of_its_own_for_each_model(serve):
    _, client = serve(lambda messages: "no")
    reflect_instructions(ENTRIES, client, "replying")
    assert [path.name for path in Path("build").iterdir()] == ["reflection-replying.jsonl"]


# ---- the command line ----


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_run(command, serve, monkeypatch, capsys):
    model, client = serve(lambda messages: BETTER + " [Better Answer] Better! [End]")
    models = {"smollm2:135m": model, "gpt-4o-mini": model}
    monkeypatch.setattr(reflection, "create_server", lambda port: create_server(port=port, model=models))
    paid = create_server(port=0, model=models)
    monkeypatch.setattr(reflection, "connect", lambda service: OpenAI(base_url=f"{paid.start()}/v1", api_key="none"))
    options = shlex.split(command)
    assert main(options) == 0 and "3 of 3 entries are rewritten" in capsys.readouterr().out
    assert len(json.loads(Path(options[options.index("--output") + 1]).read_text(encoding="utf-8"))) == 3
    paid.server_close()


def stops(capsys, *options: str) -> str:
    """Call main with bad options; returns its one line on stderr, progress left out."""
    with pytest.raises(SystemExit) as stopped:
        main([*options])
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


def test_bad_input_ends_in_one_line(capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    how = ["--output", "new.json", "--kind", "response"]
    assert "--kind" in stops(capsys, "--output", "new.json") and "--output" in stops(capsys, "--kind", "response")
    assert "--service" in stops(capsys, *how, "--service", "abacus") and "--max_tokens" in stops(capsys, *how, "--max_tokens", "0")
    assert "OPENAI_API_KEY" in stops(capsys, *how, "--service", "openai")
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    assert "nobody answers at http://127.0.0.1:9" in stops(capsys, *how, "--service", "ollama")
    assert not Path("new.json").exists()


def test_a_failure_of_the_service_is_one_line(capsys, serve, monkeypatch):
    def fail(messages):
        raise RuntimeError("no")

    _, client = serve(fail)
    monkeypatch.setattr(reflection, "connect", lambda service: client)
    line = stops(capsys, "--output", "new.json", "--kind", "response", "--service", "ollama", "--model", "replying")
    assert "error" in line and "Traceback" not in line
    assert "gpt-9" in stops(capsys, "--output", "new.json", "--kind", "response", "--service", "ollama", "--model", "gpt-9")


# ---- what is stored ----


def test_the_stored_replies_answer_today_s_prompts(tmp_path, capsys):
    """No client is needed for the first 20 instructions and 10 answers: every reply is in the log."""
    lines = (FOLDER / "reflection-smollm2.jsonl").read_text(encoding="utf-8").split("\n")
    assert len([line for line in lines if line]) == 30
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(lines), encoding="utf-8")
    entries = reflection.load_data()
    assert len(reflect_instructions([entry for entry in entries if not entry["input"]][:20], None, "smollm2:135m", log)) == 20
    assert len(reflect_responses(entries[:10], None, "smollm2:135m", log)) == 10
