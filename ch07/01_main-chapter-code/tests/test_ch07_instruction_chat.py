"""The chat asks with the prompt of training, streams what `generate` says, and a model tuned on entries of one's own speaks in it.

Run it:  pytest ch07/01_main-chapter-code/tests/test_ch07_instruction_chat.py
"""

import json
import re
import shlex
import types
from collections import Counter
from pathlib import Path

import exercise_experiments
import gpt_instruction_finetuning
import instruction_chat
import ollama_evaluate
import pytest
import torch
from gpt_instruction_finetuning import TEST_CONFIG, answer_entries
from instruction_batches import encode_prompt
from instruction_chat import main, show_answer, stream_gemma, stream_gpt, to_entry
from instruction_data_checks import load_data
from previous_chapters import GPTModel, gpt2_tokenizer

FOLDER = Path(instruction_chat.__file__).parent
EXAMPLE = FOLDER / "my-instructions-example.json"


def random_gpt(seed: int = 1, **changes) -> GPTModel:
    torch.manual_seed(seed)
    return GPTModel({**TEST_CONFIG, **changes}).eval()


@pytest.fixture
def saved(tmp_path) -> Path:
    torch.save({"model_state_dict": random_gpt().state_dict(), "gpt_config": TEST_CONFIG}, tmp_path / "tuned.pth")
    return tmp_path / "tuned.pth"


# ---- what is typed, what is sent, what is shown ----


@pytest.mark.parametrize(
    ("line", "last", "instruction", "text"),
    [
        ("Name a color.", "", "Name a color.", ""),
        ("Put it in the past tense. Input: I sing.", "", "Put it in the past tense.", "I sing."),
        ("Put it in the past tense.\nInput: I sing.", "", "Put it in the past tense.", "I sing."),
        ("Input: We sing.", "Put it in the past tense.", "Put it in the past tense.", "We sing."),
        ("Sort. Input: 3, 1 Input: 2", "", "Sort.", "3, 1 Input: 2"),
        ("What does userInput: mean?", "", "What does userInput: mean?", ""),
        ("New one.", "Old one.", "New one.", ""),
    ],
)
def test_a_typed_line_becomes_an_entry(line, last, instruction, text):
    assert to_entry(line, last) == {"instruction": instruction, "input": text}


def test_an_input_alone_at_the_beginning_is_refused():
    with pytest.raises(ValueError, match="needs an instruction"):
        to_entry("Input: tide")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_stream_says_what_the_chapter_s_function_says(seed):
    model, tokenizer = random_gpt(seed), gpt2_tokenizer()
    entries = load_data()[:3]
    answers, _ = answer_entries(model, entries, tokenizer, "cpu", max_new_tokens=12)
    streamed = ["".join(stream_gpt(model, tokenizer, entry, 12)).strip() for entry in entries]
    assert streamed == [answer.rstrip("\ufffd") for answer in answers]


def test_the_stream_ends_at_the_end_token_and_at_the_context():
    model, tokenizer = random_gpt(), gpt2_tokenizer()
    entry = {"instruction": "Name a color.", "input": ""}
    with torch.no_grad():
        model.out_head.weight[50256] = 0
        model.final_norm.shift.fill_(1.0)
        model.out_head.weight[50256] = 50.0  # whatever is asked, it says nothing
    assert "".join(stream_gpt(model, tokenizer, entry, 12)) == ""
    room = 120 - len(encode_prompt(entry, tokenizer))
    said = list(stream_gpt(random_gpt(), tokenizer, entry, 500))
    assert 0 < len(said) <= room
    with pytest.raises(ValueError, match="leaves no room in the context of 120"):
        list(stream_gpt(model, tokenizer, {"instruction": "why " * 120, "input": ""}, 5))


def test_a_character_of_several_tokens_is_shown_when_it_is_whole(monkeypatch):
    tokenizer = gpt2_tokenizer()
    wanted = tokenizer.encode("a 🐙 b")
    monkeypatch.setattr(
        instruction_chat,
        "generate",
        lambda model, idx, n, size, eos_id: torch.cat([idx, torch.tensor([[wanted[k]]])], 1) if (k := next(turn)) < len(wanted) else idx,
    )
    turn = iter(range(99))
    pieces = list(stream_gpt(random_gpt(), tokenizer, {"instruction": "x", "input": ""}, 20))
    assert "".join(pieces) == "a 🐙 b" and not any("\ufffd" in piece for piece in pieces)


def test_white_space_around_an_answer_is_not_shown(capsys):
    show_answer(iter(["\n", "  ", " A", " ", "", "b\n", "\n"]))
    assert capsys.readouterr().out == "A b\n"


def test_gemma_is_asked_with_the_prompt_of_training_and_its_own_end(monkeypatch):
    seen = {}

    def stream(model, prompt, max_new_tokens, end):
        seen.update(prompt=prompt.tolist(), max_new_tokens=max_new_tokens, end=end)
        yield from (torch.tensor([[number]]) for number in (5, 6))

    class Tokenizer:
        eos_token_id = 1

        def encode(self, text):
            return [2, *text.encode("utf-8")]

        def stream(self, ids):
            return (f"<{number}>" for number in ids)

    monkeypatch.setattr(instruction_chat, "generate_text_basic_stream", stream)
    model, entry = types.SimpleNamespace(tok_emb=torch.nn.Embedding(2, 2)), {"instruction": "Name a color.", "input": "red"}
    assert list(stream_gemma(model, Tokenizer(), entry, 7)) == ["<5>", "<6>"]
    assert seen == {"prompt": [encode_prompt(entry, Tokenizer())], "max_new_tokens": 7, "end": 1}


# ---- command line ----


def test_one_question_is_answered_from_a_saved_model(saved, capsys):
    assert main(["--weights", str(saved), "--prompt", "Name a color. Input: red", "--max_new_tokens", "5"]) == 0
    expected, _ = answer_entries(random_gpt(), [{"instruction": "Name a color.", "input": "red"}], gpt2_tokenizer(), "cpu", 5)
    assert capsys.readouterr().out.strip() == expected[0].rstrip("\ufffd").strip()


def test_a_conversation_goes_on_after_a_text_that_is_too_long(saved, capsys, monkeypatch):
    lines = iter(["Input: tide", "why " * 200, "Name a color.", "Input: red", "/new", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["--weights", str(saved), "--max_new_tokens", "3"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2 and "needs an instruction" in shown.err and "no room" in shown.err
    lines = iter([])
    monkeypatch.setattr("builtins.input", lambda prompt: (_ for _ in ()).throw(EOFError))
    assert main(["--weights", str(saved)]) == 0


@pytest.mark.parametrize(
    "args",
    [
        ["--model", "gpt5"],
        ["--prompt", " "],
        ["--max_new_tokens", "0"],
        ["--model", "smollm2", "--weights", "x"],
        ["--weights", "no-such.pth", "--prompt", "x"],
        ["--device", "tpu", "--prompt", "x"],
    ],
)
def test_bad_input_is_one_line(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len([line for line in error if "error:" in line]) == 1 and len(error) <= 2


def test_without_a_tuned_model_the_line_names_the_program_that_makes_one(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(instruction_chat, "MINI_FILES", (tmp_path / "a.pth", tmp_path / "b.pth"))
    with pytest.raises(SystemExit):
        main(["--prompt", "x"])
    assert "python gpt_instruction_finetuning.py" in capsys.readouterr().err


def test_the_file_of_the_notebook_is_found_too(saved, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(instruction_chat, "MINI_FILES", (tmp_path / "none.pth", saved))
    assert main(["--prompt", "Name a color.", "--max_new_tokens", "3"]) == 0


@pytest.mark.slow
def test_smollm2_answers_in_its_own_template(capsys):
    assert main(["--model", "smollm2", "--prompt", "What is the capital of France?", "--max_new_tokens", "20"]) == 0
    assert "Paris" in capsys.readouterr().out


# ---- one's own instructions ----


def test_the_example_is_50_short_entries_of_one_kind_in_words_that_gpt2_mini_knows():
    data = load_data(EXAMPLE)
    assert len(data) == len({entry["instruction"] for entry in data}) == 50
    assert max(Counter(entry["output"] for entry in data).values()) == 1
    for entry in data:
        assert entry["output"].startswith("Aye! ") and entry["output"].endswith(", so says the captain.") and entry["input"] == ""
        assert len(entry["output"].split()) <= 22


def test_entries_of_ones_own_are_what_the_model_is_tuned_on(tmp_path, capsys):
    folder = tmp_path / "captain"
    assert gpt_instruction_finetuning.command_line(["--data", str(EXAMPLE), "--output_dir", str(folder), "--test_mode"]) == 0
    answered = json.loads((folder / "instruction-data-with-response-standalone.json").read_text(encoding="utf-8"))
    assert {entry["instruction"] for entry in answered} < {entry["instruction"] for entry in load_data(EXAMPLE)}


def readme_commands(*words: str) -> list[list[str]]:
    """The commands of the README's bash blocks in which all words occur, each as the list of its parts."""
    blocks = re.findall(r"```bash\n(.*?)```", (FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if all(word in line for word in words)]
    return [shlex.split(line)[1:] for line in lines]


def test_the_worked_example_of_the_readme_runs(tmp_path, capsys):
    (tune,) = readme_commands("my-instructions-example.json")
    (ask,) = readme_commands("instruction_chat.py", "captain")
    assert tune[0] == "gpt_instruction_finetuning.py" and ask[0] == "instruction_chat.py"
    tune[tune.index("my-instructions-example.json")] = str(EXAMPLE)
    assert gpt_instruction_finetuning.command_line([*tune[1:], "--test_mode"]) == 0  # in an empty folder
    weights = ask[ask.index("--weights") + 1].replace("gpt2-mini", "small-test-model")
    assert main(["--weights", weights, "--prompt", "What is the sun?", "--max_new_tokens", "5"]) == 0


def test_the_other_commands_of_the_readme_are_understood(monkeypatch, capsys):
    assert ["instruction_chat.py"] in readme_commands("instruction_chat.py")
    for module in (exercise_experiments, ollama_evaluate):
        monkeypatch.setattr(module, "main", lambda *args, **kwargs: {"marks": {}})
        (command,) = readme_commands(f"{module.__name__}.py")
        assert module.command_line(command[1:]) == 0


@pytest.mark.slow
def test_the_worked_example_of_the_readme_teaches_gpt2_mini_the_captain_s_voice(tmp_path, capsys):
    folder = tmp_path / "captain"
    assert gpt_instruction_finetuning.command_line(["--data", str(EXAMPLE), "--num_epochs", "6", "--output_dir", str(folder)]) == 0
    capsys.readouterr()
    assert main(["--weights", str(folder / "gpt2-mini-sft-standalone.pth"), "--prompt", "What is the sun?"]) == 0
    answer = capsys.readouterr().out
    assert answer.startswith("Aye!") and answer.endswith("so says the captain.\n"), answer
