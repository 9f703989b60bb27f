"""The page continues a text as chapter 5 does, keeps its visitors apart, and reaches nothing but this computer.

The models are tiny random ones, so these tests are about the page. Those that drive a browser need Chromium or Chrome.
"""

import itertools
import json
import re
import shlex
import shutil
import socket
import threading
import urllib.request
from pathlib import Path

import app_orig
import app_own
import chat_page
import gradio
import pytest
import torch
from page_driver import browser_or_skip, free_port, open_page, running_app
from playwright.sync_api import expect
from previous_chapters import GPTModel, generate, text_to_token_ids, token_ids_to_text

FOLDER = Path(chat_page.__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python (app_\w+)\.py *(.*)$", PAGE, re.MULTILINE)
TINY = {"vocab_size": 50257, "context_length": 24, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.5, "qkv_bias": False}
BOT, USER = "[data-testid=bot]", "[data-testid=user]"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A model.pth with its config.json, as gpt_train.py writes them; with dropout, which eval mode must switch off."""
    folder = tmp_path_factory.mktemp("own")
    torch.manual_seed(5)
    torch.save(GPTModel(TINY).state_dict(), folder / "model.pth")
    (folder / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    return folder / "model.pth"


@pytest.fixture(scope="module")
def loaded(weights):
    return app_own.get_model_and_tokenizer(weights, "cpu")


def last(message, loaded, history=(), **options):
    return list(chat_page.respond(message, list(history), loaded=loaded, **options))[-1]


def turn(role, content):
    return {"role": role, "content": content}


# ---- what is written ----


def test_greedy_text_is_that_of_generate_and_never_repeats_the_message(loaded):
    tokenizer, model, config = loaded
    assert not model.training and config == TINY
    for message in ("The clock", "Nell counted the rings, and", "é"):
        ids = text_to_token_ids(message, tokenizer)
        whole = generate(model, ids, 12, TINY["context_length"])
        shown = list(chat_page.respond(message, [], 12, loaded=loaded))
        assert shown[-1] == token_ids_to_text(whole[0, ids.shape[1] :], tokenizer)
        assert len(shown) > 5 and all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))


def test_sampled_text_has_the_chances_of_temperature_and_top_k(loaded):
    tokenizer, model, _ = loaded
    ids = tokenizer.encode("The clock")
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, -1]
    kept = logits.topk(3)
    chances = torch.softmax(kept.values / 1.5, dim=-1)
    drawn = [next(chat_page.stream_tokens(model, ids, 1, 24, 1.5, 3, seed)) for seed in range(300)]
    assert set(drawn) == set(kept.indices.tolist())
    for number, chance in zip(kept.indices.tolist(), chances.tolist()):
        assert abs(drawn.count(number) / 300 - chance) < 0.12
    free = [next(chat_page.stream_tokens(model, ids, 1, 24, 1.0, None, seed)) for seed in range(40)]
    assert len(set(free)) > 30


def test_the_end_of_text_token_ends_the_text_and_is_not_shown(loaded, monkeypatch):
    tokenizer, _, config = loaded

    class Ends(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, ids):
            logits = torch.zeros(*ids.shape, 50257)
            logits[..., 50256 if ids.shape[1] > 3 else 257] = 9.0
            return logits

    shown = list(chat_page.respond("Hello", [], 30, loaded=(tokenizer, Ends(), config)))
    assert shown[-1] == tokenizer.decode([257]) * 3
    assert list(chat_page.respond("one two three four", [], 30, loaded=(tokenizer, Ends(), config))) == [
        "[The model sees the end of the text here.]"
    ]


def test_a_character_of_several_tokens_appears_when_it_is_complete(loaded, monkeypatch):
    tokenizer = loaded[0]
    ids = tokenizer.encode(" 🐙八")
    monkeypatch.setattr(chat_page, "stream_tokens", lambda *args: iter(ids))
    shown = list(chat_page.respond("x", [], loaded=loaded))
    assert shown[-1] == " 🐙八" and not any("\ufffd" in text for text in shown)
    monkeypatch.setattr(chat_page, "stream_tokens", lambda *args: iter(ids[:2]))
    assert last("x", loaded).endswith("\ufffd")  # a text that ends within a character says so


def test_going_on_reads_the_whole_text_and_else_the_message_alone(loaded):
    history = [turn("user", "The clock"), turn("assistant", " struck &lt;b&gt;")]
    alone = last(" twice", loaded, max_new_tokens=6)
    assert last(" twice", loaded, history, max_new_tokens=6) == alone
    together = last("The clock struck <b> twice", loaded, max_new_tokens=6)
    assert last(" twice", loaded, history, max_new_tokens=6, go_on=True) == together != alone
    parts = [turn("user", [{"type": "text", "text": "The clock"}]), turn("assistant", [{"type": "text", "text": " struck <b>"}])]
    assert last(" twice", loaded, parts, max_new_tokens=6, go_on=True) == together  # as gradio 6 gives it
    assert chat_page.conversation_text([turn("user", "&lt; ")]) == "&lt; "  # what a visitor typed is read as typed
    long = [turn("user", "go " * 60)]
    kept = loaded[0].decode(loaded[0].encode("go " * 60 + "on")[-24:])
    assert last("on", loaded, long, max_new_tokens=4, go_on=True) == last(kept, loaded, max_new_tokens=4)


@pytest.mark.parametrize(
    ("message", "said"),
    [("", "message is empty"), (" \n", "message is empty"), ("go " * 60, r"has \d+ tokens, more than the 24")],
)
def test_bad_messages_get_one_line_in_brackets(message, said, loaded):
    shown = list(chat_page.respond(message, [], loaded=loaded))
    assert len(shown) == 1 and re.fullmatch(r"\[.*\]", shown[0]) and re.search(said, shown[0])
    assert last("a <|endoftext|> b", loaded, max_new_tokens=2)  # text that looks like a special token is text


def test_texts_written_side_by_side_are_those_written_alone(loaded):
    messages = [("The clock", 1), ("The clock", 2), ("A tide", 3), ("The clock", 1)]
    options = {"max_new_tokens": 10, "temperature": 1.0, "top_k": 0, "loaded": loaded}
    alone = [list(chat_page.respond(message, [], seed=seed, **options))[-1] for message, seed in messages]
    streams = [chat_page.respond(message, [], seed=seed, **options) for message, seed in messages]
    final = [""] * len(streams)
    for shown in itertools.zip_longest(*streams):  # a token of each in turn
        final = [text if text is not None else old for text, old in zip(shown, final)]
    assert final == alone and alone[0] == alone[3] != alone[1]
    assert last("The clock", loaded, temperature=1.0, top_k=0, max_new_tokens=10) != last(
        "The clock", loaded, temperature=1.0, top_k=0, max_new_tokens=10
    )


def test_no_more_than_the_longest_text_is_written(loaded, monkeypatch):
    asked = []
    monkeypatch.setattr(chat_page, "stream_tokens", lambda model, ids, count, *rest: asked.append(count) or iter([11]))
    last("x", loaded, max_new_tokens=10**9)
    assert asked == [chat_page.LONGEST]


# ---- the programs ----


def test_gpt2_mini_is_the_default_and_continues_greedily():
    tokenizer, model, config = app_orig.get_model_and_tokenizer()
    assert config["context_length"] == 256 and not model.training
    texts = [last("The old woman", (tokenizer, model, config), max_new_tokens=5) for _ in range(2)]
    assert texts[0] == texts[1] and texts[0].startswith(" ")


def test_the_own_model_is_found_beside_the_folder(tmp_path, monkeypatch, weights):
    assert app_own.PLACES[0] == FOLDER.parent / "01_main-chapter-code" / "my-gpt" / "model.pth"
    monkeypatch.setattr(app_own, "PLACES", [tmp_path / "none.pth", weights])
    assert app_own.find_model() == weights and app_own.find_model(str(weights)) == weights
    monkeypatch.setattr(app_own, "PLACES", [tmp_path / "none.pth"])
    with pytest.raises(ValueError, match=r"none\.pth does not exist; .*python gpt_train\.py"):
        app_own.find_model()


def test_the_page_names_the_model_and_its_size():
    page = chat_page.build_app("GPT-2 (mini)", app_orig.get_model_and_tokenizer)
    assert "**GPT-2 (mini)** has 12,368,064 parameters and reads at most 256 tokens" in page.description
    assert isinstance(page, gradio.ChatInterface) and page.analytics_enabled is False


def test_a_model_is_read_to_the_chosen_device(weights, monkeypatch):
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: asked.append(options) or load(*args, **options))
    app_own.get_model_and_tokenizer(weights, "cpu")
    assert asked[0] == {"map_location": "cpu", "weights_only": True}


@pytest.mark.slow
@pytest.mark.parametrize(("program", "options"), COMMANDS)
def test_the_commands_of_the_readme_serve_the_page(program, options, weights, capsys, monkeypatch):
    module, options = {"app_orig": app_orig, "app_own": app_own}[program], shlex.split(options)
    if program == "app_own":
        monkeypatch.setattr(app_own, "PLACES", [weights])
        options = [str(weights) if option == "my-run/model.pth" else option for option in options]
    if "124M" in options:
        monkeypatch.setattr(app_orig, "load_pretrained_gpt", lambda cfg, model, folder: (GPTModel(TINY).eval(), TINY))
    fetched = []

    def look_and_end(self):  # instead of waiting for Ctrl-C
        fetched.append(urllib.request.urlopen(self.local_url, timeout=20).read())
        self.close()

    monkeypatch.setattr(gradio.ChatInterface, "block_thread", look_and_end)
    port = str(free_port())
    assert module.main([*options, "--device", "cpu", "--port", port]) == 0
    printed = capsys.readouterr().out
    if "--selftest" in options:
        assert "a tiny random model continues 'Hello' with" in printed and not fetched
    else:
        assert f"open http://127.0.0.1:{port}/ in a browser; Ctrl-C ends" in printed and b"Let it go on" in fetched[0]


def stops(capsys, module, *options):
    """Call main with bad options; returns its one line on stderr."""
    with pytest.raises(SystemExit) as stopped:
        module.main([*options])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device: ")]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


def test_bad_input_ends_in_one_line(capsys, tmp_path, weights):
    damaged = tmp_path / "model.pth"
    damaged.write_bytes(weights.read_bytes()[:500])
    shutil.copy(weights.with_name("config.json"), tmp_path)
    assert "missing.pth does not exist" in stops(capsys, app_own, "--model", "missing.pth")
    assert "cannot be loaded" in stops(capsys, app_own, "--model", str(damaged))
    assert "125M" in stops(capsys, app_orig, "--model", "125M")
    assert "--password" in stops(capsys, app_orig, "--host", "0.0.0.0")
    assert "65536 is no port" in stops(capsys, app_orig, "--port", "65536")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert port in stops(capsys, app_own, "--model", str(weights), "--port", port, "--device", "cpu")


def test_host_and_port_may_stand_in_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8123")
    args = chat_page.page_parser("test").parse_args([])
    assert (args.host, args.port) == ("0.0.0.0", 8123)
    assert "--password" in stops(capsys, app_orig)
    monkeypatch.setenv("GRADIO_SERVER_PORT", "none")
    assert "none is no port" in stops(capsys, app_orig)


@pytest.mark.slow
def test_a_password_is_asked_for_where_one_is_set(loaded):
    page = chat_page.build_app("x", lambda: loaded)
    address = chat_page.serve(page, free_port(), auth=("reader", "tide"))
    try:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}config", timeout=20)
        assert refused.value.code == 401
    finally:
        page.close()


@pytest.mark.slow
def test_a_slow_text_keeps_no_other_visitor_waiting(loaded, monkeypatch):
    working, go_on = threading.Event(), threading.Event()

    def stream(model, ids, *rest):
        if loaded[0].decode(ids) == "slow":
            working.set()
            assert go_on.wait(60)
        yield 11

    monkeypatch.setattr(chat_page, "stream_tokens", stream)
    page = chat_page.build_app("x", lambda: loaded)
    address = chat_page.serve(page, free_port())

    def start(message):
        body = json.dumps({"data": [message, 5, 0.0, 1, False]}).encode()
        call = urllib.request.Request(f"{address}gradio_api/call/chat", body, {"Content-Type": "application/json"})
        return json.loads(urllib.request.urlopen(call, timeout=20).read())["event_id"]

    try:
        start("slow")
        assert working.wait(30)
        quick = urllib.request.urlopen(f"{address}gradio_api/call/chat/{start('quick')}", timeout=30).read().decode()
        assert "event: complete" in quick and not go_on.is_set()
    finally:
        go_on.set()
        page.close()


# ---- in a browser ----


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("log") / "stderr.txt"


@pytest.fixture(scope="module")
def browser_and_address(weights, log):
    options = ("--model", str(weights), "--device", "cpu")
    with browser_or_skip() as browser, running_app(FOLDER, *options, log=log, program="app_own.py") as address:
        yield browser, address


@pytest.fixture
def visit(browser_and_address):
    """(a new page, addresses that it was refused)."""
    page, refused = open_page(*browser_and_address, height=900)
    yield page, refused
    page.close()


def send(page, text):
    """Type a message and press Enter; returns the continuation when the page takes the next message."""
    before = page.locator(BOT).count()
    box = page.locator("textarea")
    box.fill(text)
    box.press("Enter")
    expect(page.locator(BOT)).to_have_count(before + 1, timeout=20_000)
    expect(box).to_be_enabled(timeout=20_000)
    return page.locator(BOT).last.inner_text().strip()


@pytest.mark.slow
def test_two_visitors_do_not_see_or_change_each_other(browser_and_address, loaded):
    pages = [open_page(*browser_and_address, height=900)[0] for _ in range(2)]
    expected = [last(message, loaded).split() for message in ("The clock", "A tide")]
    assert [send(page, message).split() for page, message in zip(pages, ("The clock", "A tide"))] == expected
    assert [page.locator(USER).all_inner_texts() for page in pages] == [["The clock"], ["A tide"]]
    for page in pages:
        page.close()


@pytest.mark.slow
def test_empty_and_long_messages_get_one_line_and_clearing_empties_the_page(visit):
    page, _ = visit
    assert send(page, "go " * 60).startswith("[The message has")
    page.get_by_role("button", name="Clear").first.click()
    expect(page.locator(BOT)).to_have_count(0)


@pytest.mark.slow
@pytest.mark.skipif(gradio.__version__.startswith("5."), reason="the page of gradio 5 asks for a font and a script of other computers")
def test_neither_the_page_nor_the_server_asks_another_computer(visit, log):
    page, refused = visit
    send(page, "The clock")
    loaded = re.findall(r"""(?:src|href)=["']?https?://([^/"':]+)|url\(["']?https?://([^/"':]+)""", page.content())
    assert {host for pair in loaded for host in pair if host} <= {"127.0.0.1"} and refused == []
    assert "OUTSIDE" not in log.read_text(encoding="utf-8")
