"""The server's two protocols, its line, and its end, with a model that answers with what it was asked."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import local_server
import ollama
import openai
import pytest
import serving_models
from echo_model import ECHO_CONTEXT, Echo, ask, chat
from local_server import create_server

FOLDER = Path(local_server.__file__).parent
LIMIT = 20_000


@pytest.fixture(scope="module")
def server():
    with create_server(port=0, model={"echo": Echo(), "other": Echo("other")}, queue_size=2, max_request_bytes=LIMIT) as server:
        server.start()
        yield server


@pytest.fixture
def echo(server):
    return server.served["echo"]


@pytest.fixture(scope="module")
def ollama_client(server):
    return ollama.Client(server.url, trust_env=False)


@pytest.fixture(scope="module")
def openai_client(server):
    client = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=client, max_retries=0)


def wait_for(condition):
    """Until it holds; fails after five seconds."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


@contextlib.contextmanager
def opened(server, body, path="/api/chat"):
    """A connection on which a request has been sent and nothing been read."""
    data = json.dumps(body).encode()
    with socket.create_connection(server.server_address, timeout=20) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        yield connection


def read_all(connection):
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


QUESTION = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Grüße, 世界!"}]
ANSWER = "<[system]Be kind.[user]Grüße, 世界!>"


# ---- the ordinary clients ----


def test_ollamas_client_chats_whole_and_in_pieces(ollama_client):
    whole = ollama_client.chat("echo", QUESTION)
    assert whole.message.content == ANSWER and whole.done and whole.done_reason == "stop"
    assert (whole.prompt_eval_count, whole.eval_count) == (len(ANSWER.encode()) - 2, len(ANSWER.encode()))
    assert whole.total_duration >= whole.prompt_eval_duration >= 0
    pieces = list(ollama_client.chat("echo", QUESTION, stream=True))
    assert "".join(piece.message.content for piece in pieces) == ANSWER and len(pieces) > 10
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == whole.eval_count


def test_ollamas_client_generates_with_the_template_and_without(ollama_client):
    assert ollama_client.generate("echo", "Hello", system="Be brief.").response == "<[system]Be brief.[user]Hello>"
    assert ollama_client.generate("echo", "Hello", raw=True).response == "<(raw)Hello>"
    assert "".join(piece.response for piece in ollama_client.generate("echo", "Hello", stream=True)) == "<[user]Hello>"


def test_ollamas_client_lists_and_describes_models(ollama_client, server):
    listed = ollama_client.list().models
    assert [model.model for model in listed] == ["echo", "other"] and listed[0].details.family == "echo"
    shown = ollama_client.show("other")
    assert shown.modelinfo["course.context_length"] == ECHO_CONTEXT and shown.capabilities == ["completion"]
    assert ask(server.url, "/api/version", method="GET") == (200, {"version": "0.0.0-course"})
    assert ollama_client.chat("echo").done_reason == ollama_client.generate("echo").done_reason == "load"


def test_openais_client_chats_whole_and_in_pieces(openai_client):
    whole = openai_client.chat.completions.create(model="echo", messages=QUESTION)
    assert whole.choices[0].message.content == ANSWER and whole.choices[0].finish_reason == "stop"
    length = len(ANSWER.encode())
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (length - 2, length, 2 * length - 2)
    options = {"include_usage": True}
    chunks = list(openai_client.chat.completions.create(model="echo", messages=QUESTION, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert [model.id for model in openai_client.models.list()] == ["echo", "other"]


def test_openais_messages_may_come_in_parts_and_from_a_developer(openai_client):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "Rules"}, {"role": "user", "content": parts}]
    answer = openai_client.chat.completions.create(model="other", messages=messages)
    assert answer.choices[0].message.content == "<[system]Rules[user]ab>"


def test_errors_arrive_as_the_clients_own(ollama_client, openai_client):
    with pytest.raises(ollama.ResponseError, match="not found; this server has: echo, other") as error:
        ollama_client.chat("llama3", QUESTION)
    assert error.value.status_code == 404
    with pytest.raises(openai.NotFoundError) as error:
        openai_client.chat.completions.create(model="gpt-5", messages=QUESTION)
    assert error.value.code == "model_not_found"
    long = [{"role": "user", "content": "x" * ECHO_CONTEXT}]
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match=f"{ECHO_CONTEXT + 6} tokens") as error:
            list(ollama_client.chat("echo", long, stream=stream))
        assert error.value.status_code == 400  # also where a stream was asked for
    with pytest.raises(openai.BadRequestError) as error:
        openai_client.chat.completions.create(model="echo", messages=long)
    assert error.value.code == "context_length_exceeded"


# ---- settings ----


def test_settings_count_in_options_alone(server):
    given = {"seed": 5, "temperature": 0.5, "top_k": 3, "top_p": 0.25}
    _, inside = ask(server.url, "/api/chat", chat("settings", options=given))
    assert json.loads(inside["message"]["content"]) == [5, 0.5, 3, 0.25]
    _, outside = ask(server.url, "/api/chat", chat("settings", **given))
    seed, *others = json.loads(outside["message"]["content"])
    assert seed != 5 and others == [0.8, 40, 0.9]
    _, unknown = ask(server.url, "/api/chat", chat("settings", options={"mirostat": 2, "seed": 1}, keep_alive="5m"))
    assert json.loads(unknown["message"]["content"])[0] == 1


def test_openais_settings_stand_in_the_request(openai_client):
    create = openai_client.chat.completions.create
    messages = [{"role": "user", "content": "settings"}]
    answer = create(model="echo", messages=messages, seed=5, temperature=0.5, top_p=0.25)
    assert json.loads(answer.choices[0].message.content) == [5, 0.5, None, 0.25]
    assert json.loads(create(model="echo", messages=messages).choices[0].message.content)[1:] == [1.0, None, 1.0]
    assert json.loads(create(model="echo", messages=messages, seed=-1).choices[0].message.content)[0] >= 0


def test_equal_seeds_give_equal_text(server):
    def drawn(seed, **more):
        return ask(server.url, "/api/chat", chat("drawn", options={"seed": seed, **more}))[1]["message"]["content"]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1, temperature=0) == drawn(2, temperature=1e-300) == "greedy"
    assert len({drawn(None) for _ in range(3)}) == 3


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_an_answer_is_as_long_as_allowed(server, limit):
    _, answer = ask(server.url, "/api/chat", chat("endless", options={"num_predict": limit}))
    assert answer["message"]["content"] == "." * limit and answer["eval_count"] == limit and answer["done_reason"] == "length"


def test_an_answer_ends_where_the_context_is_full(server, openai_client):
    for options, context in (({}, ECHO_CONTEXT), ({"num_ctx": 50}, 50), ({"num_ctx": 10_000, "num_predict": 10_000}, ECHO_CONTEXT)):
        _, answer = ask(server.url, "/api/chat", chat("endless", options=options))
        assert answer["prompt_eval_count"] + answer["eval_count"] == context and answer["done_reason"] == "length"
    status, refused = ask(server.url, "/api/chat", chat("endless", options={"num_ctx": 13}))
    assert status == 400 and "13 tokens and leaves no room" in refused["error"]
    create, messages = openai_client.chat.completions.create, [{"role": "user", "content": "endless"}]
    for name in ("max_tokens", "max_completion_tokens"):
        answer = create(model="echo", messages=messages, **{name: 3})
        assert answer.choices[0].message.content == "..." and answer.choices[0].finish_reason == "length"


def test_an_answer_ends_before_a_stop_text(server, openai_client):
    for stream in (False, True):
        _, answer = ask(server.url, "/api/chat", chat("one two three", options={"stop": ["two", "three"]}, stream=stream))
        parts = answer if stream else [answer]
        assert "".join(part["message"]["content"] for part in parts) == "<[user]one " and parts[-1]["done_reason"] == "stop"
    answer = openai_client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "one two"}], stop="o")
    assert answer.choices[0].message.content == "<[user]"


# ---- requests that cannot be served ----

DEEP = b'{"model": "echo", "messages": ' + b"[" * 9000 + b"]" * 9000 + b"}"


WRONG_BODIES = [b"", b"{", b"\xff\xfe", b"[1]", b"null", b"9" * 5000, DEEP, b'{"model": 1}', chat(5), chat(None), chat("x", stream="no")]
WRONG_BODIES += [chat("x", messages=messages) for messages in ({}, ["x"], [{"role": "wizard", "content": "x"}], [{"content": "x"}])]
WRONG_SETTINGS = [("seed", "1"), ("seed", 1.5), ("seed", True), ("seed", 10**400), ("temperature", -1), ("temperature", float("nan"))]
WRONG_SETTINGS += [("temperature", float("inf")), ("top_p", 2), ("top_p", -1), ("top_k", -1)]
WRONG_SETTINGS += [("stop", 3), ("stop", [""]), ("stop", ["x" * 201]), ("stop", ["x"] * 17)]
WRONG_FOR_OLLAMA = [{"options": []}, {"options": {"num_ctx": 0}}, {"options": {"num_predict": "all"}}, {"tools": [{}]}, {"format": "json"}]
WRONG_FOR_OLLAMA += [{"messages": [{"role": "user", "content": "x", "images": ["eA=="]}]}]
WRONG_FOR_OPENAI = [{"n": 2}, {"max_tokens": 0}, {"tools": [{}]}, {"response_format": {"type": "json_object"}}, {"messages": []}]
WRONG = [(path, body) for path in ("/api/chat", "/v1/chat/completions") for body in WRONG_BODIES]
WRONG += [("/api/chat", chat("x", options={name: value})) for name, value in WRONG_SETTINGS]
WRONG += [("/api/chat", chat("x") | more) for more in WRONG_FOR_OLLAMA]
WRONG += [("/v1/chat/completions", chat("x") | more) for more in [*({name: value} for name, value in WRONG_SETTINGS), *WRONG_FOR_OPENAI]]


@pytest.mark.parametrize("path, body", WRONG, ids=range(len(WRONG)))
def test_a_wrong_request_is_one_line(server, path, body):
    status, answer = ask(server.url, path, body)
    line = answer["error"] if path == "/api/chat" else answer["error"]["message"]
    assert status == 400 and len(line.splitlines()) == 1 and len(line) < 200


def test_an_unknown_path_or_method_is_one_line(server):
    assert ask(server.url, "/api/pull", chat("x"))[0] == 404
    assert ask(server.url, "/v1/embeddings", chat("x"))[1]["error"]["message"].endswith("POST /v1/embeddings")
    assert ask(server.url, "/api/tags", b"")[0] == 404 and ask(server.url, "/api/chat", method="GET")[0] == 404
    status, answer = ask(server.url, "/api/chat", method="DELETE")
    assert status == 501 and len(answer["error"].splitlines()) == 1
    assert ask(server.url, "/", method="HEAD") == (200, []) and ask(server.url, "/nothing", method="HEAD")[0] == 404


@pytest.mark.parametrize(
    "head, status",
    [
        ("nonsense", 400), ("POST /api/chat HTTP/9.9", 505), ("POST /" + "x" * 70_000 + " HTTP/1.1", 414),
        ("POST /api/chat HTTP/1.1\r\nTransfer-Encoding: chunked", 411), ("POST /api/chat HTTP/1.1\r\nContent-Length: -1", 400),
        ("POST /api/chat HTTP/1.1\r\nContent-Length: 1e3", 400), (f"POST /api/chat HTTP/1.1\r\nContent-Length: {LIMIT + 1}", 413),
        ("POST /api/chat HTTP/1.1\r\nContent-Length: " + "9" * 5000, 413), ("POST /api/chat HTTP/1.1\r\n" + "A: b\r\n" * 200, 431),
    ],
)  # fmt: skip
def test_what_is_hardly_http_is_answered_too(server, head, status):
    with socket.create_connection(server.server_address, timeout=20) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        connection.shutdown(socket.SHUT_WR)
        data = read_all(connection)
    answer = json.loads(data.rpartition(b"\r\n\r\n")[2])
    assert len(answer["error"].splitlines()) == 1 and (b" %d " % status in data.splitlines()[0] or not data.startswith(b"HTTP"))


def test_an_oversized_body_is_read_to_its_end_so_that_the_caller_sees_the_answer(server):
    status, answer = ask(server.url, "/api/chat", b"x" * 5_000_000)
    assert status == 413 and f"{LIMIT:,} bytes" in answer["error"]


# ---- the line ----


def test_a_full_line_is_refused_at_once_and_whoever_waits_is_served(server, echo):
    with opened(server, chat("slow endless", options={"num_predict": 100})) as first:
        wait_for(lambda: echo.active)
        with opened(server, chat("second")) as second, opened(server, chat("third", stream=True)) as third:
            wait_for(lambda: len(server.line.waiting) == 2)
            for path in ("/api/chat", "/v1/chat/completions"):
                status, answer = ask(server.url, path, chat("fourth"))
                assert status == 503 and "busy" in str(answer["error"])
            assert ask(server.url, "/api/tags", method="GET")[0] == 200  # what needs no model is served meanwhile
            assert echo.active  # all that while the first was being answered
            answers = [read_all(connection) for connection in (first, second, third)]
    assert [text in answer for text, answer in zip((b"." * 100, b"<[user]second>", b'"h"'), answers)] == [True] * 3
    assert echo.most_active == 1


def test_a_waiting_caller_who_leaves_frees_the_place(server, echo):
    with opened(server, chat("slow endless")) as first:
        wait_for(lambda: echo.active)
        with opened(server, chat("second")), opened(server, chat("third")):
            wait_for(lambda: len(server.line.waiting) == 2)
        wait_for(lambda: not server.line.waiting)
        assert echo.active  # the first is still being answered
        with opened(server, chat("fourth")) as fourth:
            first.close()
            assert b"<[user]fourth>" in read_all(fourth)


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_generated_for_a_caller_who_left(server, echo, stream):
    with opened(server, chat("slow endless", stream=stream)):
        wait_for(lambda: echo.active)
    wait_for(lambda: not echo.active)
    before = echo.made
    assert ask(server.url, "/api/chat", chat("next"))[1]["message"]["content"] == "<[user]next>"
    assert echo.made - before == len("<[user]next>")


def test_a_caller_who_does_not_read_holds_nobody_up():
    with create_server(port=0, model=Echo(context_length=40_000)) as server:
        server.start()
        with opened(server, chat("endless", stream=True, options={"num_ctx": 40_000})):  # megabytes, more than systems hold for a reader
            assert ask(server.url, "/api/chat", chat("next"))[1]["message"]["content"] == "<[user]next>"
            assert len(server.handlers) == 1  # the one that still waits to be read


def test_a_failing_model_costs_one_answer(server, capfd):
    status, answer = ask(server.url, "/api/chat", chat("fail"))
    assert status == 500 and answer["error"] == "the model failed: RuntimeError: two lines of trouble"
    for path in ("/api/chat", "/v1/chat/completions"):
        status, lines = ask(server.url, path, chat("fail", stream=True))
        assert status == 200 and "two lines of trouble" in str(lines[-1]["error"]) and "error" not in lines[0]
    assert ask(server.url, "/api/chat", chat("next"))[0] == 200
    assert capfd.readouterr().err == "echo failed: RuntimeError: two lines of trouble\n" * 3


def test_too_many_connections_are_refused_and_the_rest_is_served(server):
    limit = server.connections._initial_value
    with contextlib.ExitStack() as stack:
        for _ in range(limit):
            stack.enter_context(socket.create_connection(server.server_address))
        wait_for(lambda: len(server.handlers) == limit)
        with socket.create_connection(server.server_address, timeout=5) as late:
            assert b"503" in read_all(late).splitlines()[0]
    wait_for(lambda: not server.handlers)
    assert ask(server.url, "/api/chat", chat("next"))[0] == 200


# ---- beginning and end ----


def test_it_listens_to_this_computer_only(server):
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(OSError):  # an address of this computer that nobody listens at, unless the server listens at all
        socket.create_connection(("127.0.0.2", server.server_port), timeout=1).close()


def test_a_port_in_use_is_an_error(server):
    with pytest.raises(OSError):
        create_server(port=server.server_port, model=Echo())


def test_stopping_ends_what_runs_and_leaves_nothing_behind():
    before = threading.active_count()
    server = create_server(port=0, model=Echo())
    server.start()
    with socket.create_connection(server.server_address), opened(server, chat("slow endless", stream=True)) as running:
        wait_for(lambda: server.served["echo"].active)
        with opened(server, chat("waits")) as waiting:
            wait_for(lambda: server.line.waiting)
            started = time.monotonic()
            server.stop()
            assert time.monotonic() - started < 20 and server.served["echo"].made < 300
            assert json.loads(read_all(running).splitlines()[-1]) == {"error": "the server is stopping"}
            assert b"503" in read_all(waiting).splitlines()[0]
    assert threading.active_count() <= before and server.served["echo"].active == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.server_address, timeout=1)
    server.stop()  # once more does no harm


def program(*options):
    return [sys.executable, str(FOLDER / "local_server.py"), *map(str, options)]


@pytest.mark.parametrize(
    "option, value", [("--port", 70000), ("--port", "x"), ("--queue_size", -1), ("--max_request_bytes", 0), ("--x", 1)]
)
def test_a_wrong_option_is_one_line(option, value, capsys):
    with pytest.raises(SystemExit) as stop:
        local_server.main([option, str(value)])
    shown = capsys.readouterr()
    assert stop.value.code == 2 and len(shown.err.splitlines()) == 1 and not shown.out


def test_an_address_that_cannot_be_had_is_one_line(server, capsys):
    for options in (["--port", str(server.server_port)], ["--host", "256.1.1.1"]):
        with pytest.raises(SystemExit) as stop:
            local_server.main(options)
        line = capsys.readouterr().err
        assert stop.value.code == 2 and len(line.splitlines()) == 1 and options[1] in line


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a program without asking it")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_the_program_serves_and_ends_when_asked(number):
    with subprocess.Popen(program("--port", 0, "--plain"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().partition(" at ")[2].split(" ")[0]
        status, answer = ask(
            url, "/api/generate", {"model": "smollm2:135m", "prompt": "Hi", "stream": False, "options": {"num_predict": 2}}
        )
        try:
            with opened_at(url) as running:
                running.recv(1)
                process.send_signal(number)
                out, err = process.communicate(timeout=120)
        finally:
            process.kill()  # or `with` would wait for ever for a server that does not end
    assert status == 200 and answer["eval_count"] <= 2
    assert (process.returncode, out, err) == (0, "stopped\n", "")


def test_the_commands_of_the_readme_start_it(monkeypatch, capsys, server):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python local_server\.py(.*)$", text, flags=re.M)
    loaded = []
    monkeypatch.setattr(serving_models, "load_models", lambda *options: loaded.append(options) or {"echo": Echo()})
    monkeypatch.setattr(local_server.LocalServer, "serve_forever", lambda server: signal.raise_signal(signal.SIGTERM))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for options in commands:
        options = options.split() if "--port" in options else [*options.split(), "--port", "0"]
        assert local_server.main(options) == 0
        assert re.fullmatch(r"echo at (http://127\.0\.0\.1:\d+) .*\1/v1.*\nstopped\n", capsys.readouterr().out)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert loaded == [(None, False), (None, True), (Path("my-gemma/gemma-3-270m-sft.pth"), False)]


def test_the_examples_of_the_readme_are_answered(server, monkeypatch, capsys):
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace("http://127.0.0.1:11434", server.url)
    (path, body) = re.search(r"^curl http://[\d.:]+(/\S+) -d '(.*)'$", text, flags=re.M).groups()
    monkeypatch.setitem(server.served, "smollm2:135m", server.served["echo"])
    status, lines = ask(server.url, path, json.loads(body))
    assert status == 200 and lines[-1]["done"] and not lines[0]["done"]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    exec(re.search(r"```python\n(from openai.*?)```", text, flags=re.S)[1], {})
    assert capsys.readouterr().out == "<[user]Name a color.>\n"


@contextlib.contextmanager
def opened_at(url):
    """A long answer that is being streamed."""
    body = json.dumps({"model": "smollm2:135m", "prompt": "Tell a long story.", "options": {"seed": 1}}).encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(b"POST /api/generate HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        yield connection
