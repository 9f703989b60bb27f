"""The page answers with the model's own probabilities, handles empty and long messages, and reaches nothing but this computer.

The model is a tiny random one, so these tests are about the page. Those that drive a browser need Chromium or Chrome.

Run it:  pytest ch06/04_user_interface/tests/test_ch06_04_app.py
"""

import re
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
from browser import ANSWERS, FOLDER, ask
from classifier import add_classification_head, load_classifier, spam_probability
from page_tests import browser_or_skip, free_port, open_page, running_app
from playwright.sync_api import expect
from previous_chapters import GPTModel, gpt2_tokenizer

TINY = {"vocab_size": 50257, "context_length": 40, "emb_dim": 12, "n_layers": 1, "n_heads": 2, "drop_rate": 0.1, "qkv_bias": False}
MAX_LENGTH = 30
COMMANDS = re.findall(r"^python app\.py(.*)$", (FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.M)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A classifier with random weights, in the format of gpt_class_finetune.py; its probabilities are far apart."""
    torch.manual_seed(123)
    model = GPTModel(TINY)
    add_classification_head(model)
    with torch.no_grad():
        model.out_head.weight.mul_(4)
    path = tmp_path_factory.mktemp("classifier") / "review_classifier.pth"
    torch.save({"model_state_dict": model.state_dict(), "gpt_config": TINY, "max_length": MAX_LENGTH}, path)
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("log") / "stderr.txt"


@pytest.fixture(scope="module")
def visit(checkpoint, log, tmp_path_factory):
    """(page, addresses that the page was refused), in a browser.

    The app runs as a program of its own, in a copy of the course's layout: it must find the classifier from any working folder.
    """
    chapter = tmp_path_factory.mktemp("course") / "ch06"
    shutil.copytree(FOLDER, chapter / FOLDER.name, ignore=shutil.ignore_patterns("__pycache__", "*.pth"))
    trained = chapter / "01_main-chapter-code/spam-classifier/review_classifier.pth"
    trained.parent.mkdir(parents=True)
    shutil.copyfile(checkpoint, trained)
    with browser_or_skip() as browser, running_app(chapter / FOLDER.name, "--device", "cpu", log=log) as address:
        yield open_page(browser, address)


def expected_percent(checkpoint: Path, text: str) -> dict:
    """What the page must show: computed from the file, without the app."""
    model, max_length = load_classifier(checkpoint)
    spam = spam_probability(text, model, gpt2_tokenizer(), "cpu", max_length)
    return {"spam": round(100 * spam), "not spam": round(100 * (1 - spam))}


@pytest.mark.slow
@pytest.mark.parametrize("text", ["You won a prize", "on my way", "the end <|endoftext|>", "a\n\tb", "<b>bold</b> & $x$", "你好"])
def test_the_page_shows_the_probabilities_of_the_model(visit, checkpoint, text):
    assert ask(visit[0], text) == (expected_percent(checkpoint, text), "")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_message_gets_one_line_and_no_probability(visit, text):
    ask(visit[0], "something else")
    assert ask(visit[0], text) == ({}, "The message is empty: type one first.")


@pytest.mark.slow
def test_a_long_message_is_cut_and_the_page_says_so(visit, checkpoint):
    percent, note = ask(visit[0], "go " * 2000 + "stop")
    assert percent == expected_percent(checkpoint, "go " * MAX_LENGTH)
    assert note.startswith(f"The message has 2,001 tokens. Only the first {MAX_LENGTH} were read") and "\n" not in note


@pytest.mark.slow
@pytest.mark.parametrize("text", app.EXAMPLES)
def test_an_example_fills_the_form(visit, text):
    page, _ = visit
    ask(page, "something else")
    page.get_by_role("button", name=text).click()
    page.wait_for_function("text => document.querySelector('textarea').value === text", arg=text)
    expect(page.locator(ANSWERS)).to_have_count(0)  # the old answer is gone


@pytest.mark.slow
@pytest.mark.skipif(gradio.__version__.startswith("5."), reason="the page of gradio 5 asks for a font and a script of other computers")
def test_neither_the_page_nor_the_server_asks_another_computer(visit, log):
    page, refused = visit
    ask(page, "the last message")
    loaded = re.findall(r"""(?:src|href)=["']?https?://([^/"':]+)|url\(["']?https?://([^/"':]+)""", page.content())
    assert {host for pair in loaded for host in pair if host} <= {"127.0.0.1"}
    assert refused == []
    assert "OUTSIDE" not in log.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_request_to_another_computer_would_be_seen(tmp_path):
    """The three watches above can fail: a page and a program that do reach out are noticed."""
    program, log = tmp_path / "app.py", tmp_path / "log.txt"
    program.write_text(
        "import socket, time\ntry:\n    socket.create_connection(('192.0.2.1', 80), timeout=0.1)\nexcept OSError:\n    pass\n"
        "print('http://127.0.0.1', flush=True)\ntime.sleep(60)\n",
        encoding="utf-8",
    )
    with running_app(tmp_path, log=log):
        assert "OUTSIDE 192.0.2.1" in log.read_text(encoding="utf-8")


def test_the_model_is_read_once_and_ready(checkpoint, monkeypatch):
    app.load_once.cache_clear()
    loads = []
    monkeypatch.setattr(app, "load_classifier", lambda *args: loads.append(args) or load_classifier(*args))
    texts = [f"message number {number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda text: app.classify(text, checkpoint, "cpu"), texts))
    tokenizer, model = app.get_model_and_tokenizer(str(checkpoint), "cpu")
    assert len(loads) == 1 and not model.training and model.max_length == MAX_LENGTH
    for text, answer in zip(texts, answers):
        assert answer == {"spam": spam_probability(text, model, tokenizer, "cpu", MAX_LENGTH), "not spam": 1 - answer["spam"]}
    assert len({answer["spam"] for answer in answers}) == len(texts)


def test_building_the_page_loads_nothing(monkeypatch):
    app.load_once.cache_clear()
    monkeypatch.setattr(app, "load_classifier", lambda *args: pytest.fail("a model was loaded"))
    assert app.build_app("nowhere.pth").analytics_enabled is False


@pytest.mark.slow
def test_a_slow_answer_does_not_stop_the_server(checkpoint, monkeypatch):
    working, go_on = threading.Event(), threading.Event()

    def slow(*args):
        working.set()
        assert go_on.wait(60)
        return 0.5

    monkeypatch.setattr(app, "spam_probability", slow)
    page = app.build_app(checkpoint, "cpu")
    address = app.serve(page, free_port())
    try:
        call = urllib.request.Request(f"{address}gradio_api/call/classify", b'{"data": ["hello"]}', {"Content-Type": "application/json"})
        urllib.request.urlopen(call, timeout=20).read()
        assert working.wait(30)  # the model is at work now
        assert b"Is this message spam?" in urllib.request.urlopen(address, timeout=20).read()
    finally:
        go_on.set()
        page.close()


def test_the_classifier_is_found_beside_the_folder(tmp_path, monkeypatch):
    assert app.PLACES[0] == FOLDER.parent / "01_main-chapter-code/spam-classifier/review_classifier.pth"
    with monkeypatch.context() as patch:
        patch.setattr(app, "PLACES", (tmp_path / "a.pth", tmp_path / "b.pth"))
        with pytest.raises(ValueError, match="python gpt_class_finetune.py"):
            app.find_checkpoint()
        (tmp_path / "b.pth").touch()
        assert app.find_checkpoint() == tmp_path / "b.pth"
        (tmp_path / "a.pth").touch()
        assert app.find_checkpoint() == tmp_path / "a.pth"
    assert app.find_checkpoint("named.pth") == Path("named.pth")


@pytest.mark.parametrize("options", COMMANDS)
def test_the_commands_of_the_readme_serve_the_page(options, checkpoint, capsys, monkeypatch):
    named = Path("my-classifier/review_classifier.pth")
    named.parent.mkdir()
    shutil.copyfile(checkpoint, named)
    monkeypatch.setattr(app, "PLACES", (checkpoint,))
    fetched = []

    def look_and_end(self):  # instead of waiting for Ctrl-C
        fetched.append(urllib.request.urlopen(self.local_url, timeout=20).read())
        self.close()

    monkeypatch.setattr(app.gr.Interface, "block_thread", look_and_end)
    port = str(free_port())
    assert app.main([*options.split(), "--device", "cpu", "--port", port]) == 0
    assert f"open http://127.0.0.1:{port}/ in a browser; Ctrl-C ends" in capsys.readouterr().out
    assert b"Is this message spam?" in fetched[0]


def test_the_readme_names_two_commands():
    assert len(COMMANDS) == 2


def stops(capsys, *options: str) -> str:
    """Call main with bad options; returns its one line on stderr."""
    with pytest.raises(SystemExit) as stopped:
        app.main([*options])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device: ")]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


def test_bad_input_ends_in_one_line(capsys, tmp_path, checkpoint):
    (tmp_path / "damaged.pth").write_bytes(checkpoint.read_bytes()[:500])
    assert "python gpt_class_finetune.py" in stops(capsys, "--checkpoint", "missing.pth")
    assert "not a classifier" in stops(capsys, "--checkpoint", str(tmp_path / "damaged.pth"))
    assert "--port" in stops(capsys, "--port", "0") and "65535" in stops(capsys, "--port", "65536")
    assert "--device" in stops(capsys, "--device", "abacus")


def test_a_port_in_use_ends_in_one_line(capsys, checkpoint):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert port in stops(capsys, "--checkpoint", str(checkpoint), "--device", "cpu", "--port", port)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        app.main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and all(f"--{option}" in shown for option in ("checkpoint", "port", "device"))
