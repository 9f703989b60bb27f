"""Two hundred requests from eight callers at once, many of them broken: nobody gets another's answer, and nothing is left behind."""

import json
import random
import socket
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from echo_model import ECHO_CONTEXT, Echo, ask, chat
from local_server import create_server

CALLERS, REQUESTS, LIMIT = 8, 25, 20_000


def text_of(path, answer):
    """The text of a whole answer, or of a stream in either protocol."""
    if path == "/api/chat":
        return "".join(line["message"]["content"] for line in (answer if isinstance(answer, list) else [answer]))
    if isinstance(answer, dict):
        return answer["choices"][0]["message"]["content"]
    assert answer[-1] == "[DONE]"
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in answer[:-1])


def good(url, tag, draw):
    """A request that is answered with what it asked, or refused because too many wait."""
    path, stream = draw.choice(["/api/chat", "/v1/chat/completions"]), draw.random() < 0.5
    status, answer = ask(url, path, chat(tag, stream=stream))
    assert status in (200, 503), answer
    if status == 503:
        return "busy"
    assert text_of(path, answer) == f"<[user]{tag}>"
    return "answered"


def broken(url, tag, draw):
    body = draw.choice([b"{", b"", b"[" * 15_000, json.dumps(chat(tag)).encode()[:-1], b"\x00\xff" * 50])
    assert ask(url, draw.choice(["/api/chat", "/api/generate", "/v1/chat/completions"]), body)[0] == 400
    return "refused"


def oversized(url, tag, draw):
    assert ask(url, "/api/chat", tag.encode() * 20_000)[0] == 413
    return "refused"


def unknown(url, tag, draw):
    assert ask(url, draw.choice(["/api/pull", f"/{tag}", "/v1/files"]), chat(tag))[0] == 404
    assert ask(url, "/api/chat", chat(tag, model=tag))[0] == 404
    return "refused"


def too_long(url, tag, draw):
    status, answer = ask(url, "/api/chat", chat(tag * ECHO_CONTEXT, stream=draw.random() < 0.5))
    assert status == 503 or (status == 400 and "leaves no room" in answer["error"])
    return "refused"


def dropped(url, tag, draw):
    """Leaves in the middle of its request, while it waits, or in the middle of its answer."""
    body = json.dumps(chat(f"slow endless {tag}", stream=True)).encode()
    whole = b"POST /api/chat HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        kind = draw.randrange(3)
        connection.sendall(whole[: len(whole) - 20] if kind == 0 else whole)
        if kind == 2:
            connection.recv(100)
    return "left"


@pytest.fixture
def server():
    with create_server(port=0, model=Echo(), queue_size=3, max_request_bytes=LIMIT) as server:
        server.start()
        yield server


def test_two_hundred_requests_of_eight_callers(server, capfd):
    kinds = [good, good, good, broken, oversized, unknown, too_long, dropped]

    def caller(number):
        draw = random.Random(number)
        order = [kinds[i % len(kinds)] for i in range(REQUESTS)]
        draw.shuffle(order)
        return [kind(server.url, f"caller-{number}-request-{i}-{draw.random()}", draw) for i, kind in enumerate(order)]

    assert ask(server.url, "/api/chat", chat("before"))[0] == 200
    threads = threading.active_count()
    tracemalloc.start()
    with ThreadPoolExecutor(CALLERS) as pool:
        results = [result for results in pool.map(caller, range(CALLERS)) for result in results]
    while server.line.running or server.handlers:
        threading.Event().wait(0.01)
    left, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(results) == CALLERS * REQUESTS and min(results.count("answered"), results.count("busy")) > 5
    echo = server.served["echo"]
    assert echo.most_active == 1 and echo.active == 0 and not server.line.waiting
    assert most < 20e6 and left < 4e6, f"{most / 1e6:.1f} MB at most, {left / 1e6:.1f} MB left"
    assert threading.active_count() <= threads
    assert ask(server.url, "/api/chat", chat("after"))[1]["message"]["content"] == "<[user]after>"
    assert "Traceback" not in capfd.readouterr().err
