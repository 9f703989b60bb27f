"""The page asks with the prompt of training, shows the model's answer and nothing else, and reaches nothing but this computer.

The model is a tiny one that learns five entries by heart here, so what it must answer is known. Tests that drive a browser need
Chromium or Chrome.

Run it:  pytest ch07/06_user_interface/tests/test_ch07_06_app.py
"""

import re
import shlex
import shutil
import socket
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import app
import gradio
import pytest
import torch
from chat_browser import BOT, FOLDER, USER, ask, send
from instructions import InstructionDataset, create_loaders, load_tuned_gpt, train_on_answers
from page_tests import browser_or_skip, free_port, open_page, running_app
from playwright.sync_api import expect
from previous_chapters import GPTModel, adamw, gpt2_tokenizer

TINY = {"vocab_size": 50257, "context_length": 90, "emb_dim": 32, "n_layers": 1, "n_heads": 2, "drop_rate": 0.1, "qkv_bias": False}
TASKS = [
    {"instruction": "Name a color.", "input": "", "output": "Blue is a color."},
    {"instruction": "Greet the person.", "input": "Ann", "output": "Hello, Ann."},
    {"instruction": "Show a header.", "input": "", "output": "### Response:\nThis ends a prompt."},
    {"instruction": "Show signs.", "input": "", "output": "<b>bold</b> & $x$ and *stars* <|endoftext|>"},
    {"instruction": "Show an octopus.", "input": "", "output": "🐙, 八爪鱼."},
]
MESSAGES = [f"{task['instruction']} Input: {task['input']}" if task["input"] else task["instruction"] for task in TASKS]
README = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python app\.py(.*)$", README, flags=re.M)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A model that was tuned, by the chapter's own functions, until it knows TASKS; in the chapter's format."""
    torch.manual_seed(123)
    model = GPTModel({**TINY, "drop_rate": 0.0})
    loaders = create_loaders(TASKS, TASKS, gpt2_tokenizer(), len(TASKS), TINY["context_length"])
    losses = train_on_answers(model, *loaders, adamw(model, 1e-2, 0.0, torch.device("cpu")), 60, 60, 1)
    assert losses[1][-1] < 0.05, "the tiny model has not learned its five tasks"
    path = tmp_path_factory.mktemp("tuned") / "gpt2-mini-sft.pth"
    torch.save({"model_state_dict": model.state_dict(), "gpt_config": TINY}, path)  # with dropout: eval mode must switch it off
    return path


def last(message: str, history=(), **options) -> str:
    return list(app.respond(message, list(history), device="cpu", **options))[-1]


# ---- prompt and answer ----


@pytest.mark.parametrize(("task", "message"), list(zip(TASKS, MESSAGES)))
def test_the_answer_is_the_one_that_was_learned_and_nothing_else(task, message, weights):
    shown = list(app.respond(message, [], weights, device="cpu"))
    assert shown[-1] == task["output"].strip()
    assert len(shown) > 2 and all(later.startswith(earlier) for earlier, later in zip(shown, shown[1:]))
    assert not any("\ufffd" in text for text in shown)


@pytest.mark.parametrize(("task", "message"), list(zip(TASKS, MESSAGES)))
def test_the_model_reads_the_prompt_of_training(task, message, weights):
    tokenizer, model, _ = app.get_model_and_tokenizer(weights, "cpu")
    read = []
    hook = model.register_forward_pre_hook(lambda _, args: read.append(args[0][0].tolist()))
    try:
        last(message, weights=weights)
    finally:
        hook.remove()
    in_training = InstructionDataset([task], tokenizer)[0]
    assert read[0] == in_training[: len(read[0])] and tokenizer.decode(in_training[len(read[0]) :]) == task["output"]
    preamble = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    text = f"\n\n### Input:\n{task['input']}" if task["input"] else ""
    assert tokenizer.decode(read[0]) == f"{preamble}\n\n### Instruction:\n{task['instruction']}{text}\n\n### Response:\n"


def test_a_message_is_a_request_by_itself(weights):
    before = [{"role": "user", "content": "Greet the person. Input: Ann"}, {"role": "assistant", "content": "Hello, Ann."}]
    assert last("Name a color.", before, weights=weights) == TASKS[0]["output"]
    assert "needs an instruction" in last("Input: Ann", before, weights=weights)


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_an_answer_that_is_cut_off_says_so(longest, weights):
    words, note = last("Name a color.", weights=weights, max_new_tokens=longest).split("\n\n")
    assert words == " ".join(TASKS[0]["output"].split()[:longest]) and note.startswith("[cut off")


def test_the_context_is_a_limit_too(weights):
    tokenizer, model, config = app.get_model_and_tokenizer(weights, "cpu")
    empty = len(InstructionDataset([{"instruction": " go" * 30, "input": "", "output": ""}], tokenizer)[0]) - 30
    room = config["context_length"] - empty
    assert room > 20
    assert last("go" + " go" * (room - 2), weights=weights).endswith("is left]")  # one token fits
    too_long = last("go" + " go" * (room + 50), weights=weights)
    assert too_long.startswith("No answer: the prompt has") and "\n" not in too_long


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_message_gets_one_line(text):
    assert list(app.respond(text, [], "nowhere.pth")) == ["The message is empty: write an instruction."]


def test_an_answer_without_a_word_is_not_an_empty_bubble(weights, monkeypatch):
    monkeypatch.setattr(app, "stream_gpt", lambda *args, **options: iter(()))
    assert last("Name a color.", weights=weights).startswith("[The model ended")


# ---- the program ----


def test_the_model_is_read_once_and_ready(weights, monkeypatch):
    app.load_once.cache_clear()
    loads = []
    monkeypatch.setattr(app, "load_tuned_gpt", lambda *args: loads.append(args) or load_tuned_gpt(*args))
    tokenizer, model, config = app.get_model_and_tokenizer(str(weights), "cpu")
    assert not model.training and config == TINY and tokenizer.n_vocab == 50257
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda message: last(message, weights=weights), MESSAGES))
    assert answers == [task["output"] for task in TASKS] and len(loads) == 1


def test_a_model_that_was_saved_on_another_device_is_read_to_the_chosen_one(weights, monkeypatch):
    app.load_once.cache_clear()
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: asked.append(options) or load(*args, **options))
    app.get_model_and_tokenizer(weights, "cpu")
    assert str(asked[0]["map_location"]) == "cpu" and asked[0]["weights_only"] is True


def test_building_the_page_loads_nothing(monkeypatch):
    app.load_once.cache_clear()
    monkeypatch.setattr(app, "load_tuned_gpt", lambda *args: pytest.fail("a model was loaded"))
    page = app.build_app("nowhere.pth", 77)
    assert isinstance(page, gradio.ChatInterface) and page.analytics_enabled is False
    assert "at most 77 tokens" in page.description and "request\nby itself" in page.description


def test_the_tuned_model_is_found_beside_the_folder(tmp_path, monkeypatch):
    chapter = FOLDER.parent / "01_main-chapter-code"
    assert app.PLACES[0] == chapter / "instruction-model/gpt2-mini-sft-standalone.pth" and chapter / "gpt2-mini-sft.pth" in app.PLACES
    assert FOLDER / "gpt2-medium355M-sft-standalone.pth" in app.PLACES
    monkeypatch.setattr(app, "PLACES", [tmp_path / "a.pth", tmp_path / "b.pth"])
    with pytest.raises(ValueError, match="python gpt_instruction_finetuning.py"):
        app.find_weights()
    (tmp_path / "b.pth").touch()
    assert app.find_weights() == tmp_path / "b.pth"
    (tmp_path / "a.pth").touch()
    assert app.find_weights() == tmp_path / "a.pth" and app.find_weights("named.pth") == Path("named.pth")


@pytest.mark.slow
@pytest.mark.parametrize("options", COMMANDS)
def test_the_commands_of_the_readme_serve_the_page(options, weights, capsys, monkeypatch):
    named = Path("my-model/gpt2-mini-sft-standalone.pth")
    named.parent.mkdir()
    shutil.copyfile(weights, named)
    monkeypatch.setattr(app, "PLACES", [weights])
    fetched = []

    def look_and_end(self):  # instead of waiting for Ctrl-C
        fetched.append(urllib.request.urlopen(self.local_url, timeout=20).read())
        self.close()

    monkeypatch.setattr(app.gr.ChatInterface, "block_thread", look_and_end)
    port = str(free_port())
    assert app.main([*shlex.split(options), "--device", "cpu", "--port", port]) == 0
    assert f"open http://127.0.0.1:{port}/ in a browser; Ctrl-C ends" in capsys.readouterr().out
    assert b"Ask the model that you have tuned" in fetched[0]


def test_the_readme_names_two_commands_and_what_the_page_says():
    assert len(COMMANDS) == 2 and "screenshot.png" in README
    for said in (f"{app.LONGEST_ANSWER} tokens", "7 of 100"):
        assert said in README and said in app.DESCRIPTION.format(longest=app.LONGEST_ANSWER)


def stops(capsys, *options: str) -> str:
    """Call main with bad options; returns its one line on stderr."""
    with pytest.raises(SystemExit) as stopped:
        app.main([*options])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device: ")]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


def test_bad_input_ends_in_one_line(capsys, tmp_path, weights, monkeypatch):
    app.load_once.cache_clear()
    monkeypatch.setattr(app, "PLACES", [tmp_path / "none.pth"])
    (tmp_path / "damaged.pth").write_bytes(weights.read_bytes()[:500])
    assert "python gpt_instruction_finetuning.py" in stops(capsys)
    assert "python gpt_instruction_finetuning.py" in stops(capsys, "--weights", "missing.pth")
    assert "not a tuned model" in stops(capsys, "--weights", str(tmp_path / "damaged.pth"))
    assert "--port" in stops(capsys, "--port", "0") and "65535" in stops(capsys, "--port", "65536")
    assert "--max_new_tokens" in stops(capsys, "--max_new_tokens", "0") and "--device" in stops(capsys, "--device", "abacus")


def test_a_port_in_use_ends_in_one_line(capsys, weights):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert port in stops(capsys, "--weights", str(weights), "--device", "cpu", "--port", port)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        app.main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and all(f"--{option}" in shown for option in ("weights", "max_new_tokens", "port", "device"))


@pytest.mark.slow
def test_a_slow_answer_does_not_stop_the_server(weights, monkeypatch):
    working, go_on = threading.Event(), threading.Event()

    def slow(*args, **options):
        working.set()
        assert go_on.wait(60)
        yield "late"

    monkeypatch.setattr(app, "stream_gpt", slow)
    page = app.build_app(weights, device="cpu")
    address = app.serve(page, free_port())
    try:
        call = urllib.request.Request(f"{address}gradio_api/call/chat", b'{"data": ["hello"]}', {"Content-Type": "application/json"})
        urllib.request.urlopen(call, timeout=20).read()
        assert working.wait(30)  # the model is at work now
        assert b"Ask the model that you have tuned" in urllib.request.urlopen(address, timeout=20).read()
    finally:
        go_on.set()
        page.close()


# ---- in a browser ----


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("log") / "stderr.txt"


@pytest.fixture(scope="module")
def browser_and_address(weights, log, tmp_path_factory):
    """A browser, and where the app runs: in a copy of the course's layout, started from another folder."""
    chapter = tmp_path_factory.mktemp("course") / "ch07"
    shutil.copytree(FOLDER, chapter / FOLDER.name, ignore=shutil.ignore_patterns("__pycache__", "*.pth"))
    (chapter / "01_main-chapter-code").mkdir()
    shutil.copyfile(weights, chapter / "01_main-chapter-code" / "gpt2-mini-sft.pth")
    with browser_or_skip() as browser, running_app(chapter / FOLDER.name, "--device", "cpu", log=log) as address:
        yield browser, address


@pytest.fixture
def visit(browser_and_address):
    """(a new page, addresses that it was refused)."""
    page, refused = open_page(*browser_and_address, height=820)
    yield page, refused
    page.close()


@pytest.mark.slow
def test_an_example_is_asked_when_it_is_clicked(visit, weights):
    page, _ = visit
    page.get_by_text(app.EXAMPLES[0]).click()
    expect(page.locator(USER)).to_have_text(app.EXAMPLES[0])
    expect(page.locator(BOT)).to_have_text(last(app.EXAMPLES[0], weights=weights), timeout=20_000)


@pytest.mark.slow
def test_a_conversation_grows_and_its_messages_stay_single(visit):
    page, _ = visit
    assert [ask(page, MESSAGES[number]) for number in (0, 1, 0)] == [TASKS[number]["output"] for number in (0, 1, 0)]
    assert page.locator(USER).all_inner_texts() == [MESSAGES[number] for number in (0, 1, 0)]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "message"), list(zip(TASKS, MESSAGES)))
def test_the_page_shows_the_answer_as_it_was_written(visit, task, message):
    assert ask(visit[0], message).split() == task["output"].split()


@pytest.mark.slow
def test_a_message_is_shown_as_it_was_typed(visit):
    page, _ = visit
    text = "Repeat this & *that* $x$ # 1."
    send(page, text)
    expect(page.locator(USER).last).to_have_text(text)
    expect(page.locator("textarea")).to_be_enabled(timeout=20_000)


@pytest.mark.slow
def test_a_message_beyond_the_context_gets_one_line(visit):
    assert ask(visit[0], "why " * 200).startswith("No answer: the prompt has")


@pytest.mark.slow
@pytest.mark.skipif(gradio.__version__.startswith("5."), reason="the page of gradio 5 asks for a font and a script of other computers")
def test_neither_the_page_nor_the_server_asks_another_computer(visit, log):
    page, refused = visit
    ask(page, "Name a color.")
    loaded = re.findall(r"""(?:src|href)=["']?https?://([^/"':]+)|url\(["']?https?://([^/"':]+)""", page.content())
    assert {host for pair in loaded for host in pair if host} <= {"127.0.0.1"}
    assert refused == []
    assert "OUTSIDE" not in log.read_text(encoding="utf-8")
