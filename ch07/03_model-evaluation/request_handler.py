"""How local_server.py reads a request from a connection and writes its answer: paths, errors, streams, callers who leave."""

import http.server
import json
import queue
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from chat_protocols import Done, OllamaReply, OpenAIReply, Refused, Request, read_ollama_chat, read_ollama_generate, read_openai_chat
from generation_line import Job

VERSION = "0.0.0-course"
LINGER_SECONDS = 2  # how long the rest of a refused request is read and thrown away


def details_of(model) -> dict:
    """What a model's object says about itself, in Ollama's words. Folder 03 of chapter 7."""
    return {"format": "course", "family": "", "parameter_size": "", "quantization_level": "", **getattr(model, "details", {})}


class Handler(http.server.BaseHTTPRequestHandler):
    """Reads one request, writes one answer. Every error is one line in the protocol's form. Folder 03 of chapter 7."""

    timeout = 30  # seconds that a caller may take to send or to read the next part
    unread = False  # whether the caller may still be sending

    def do_GET(self) -> None:
        self.respond({"/": self.greet, "/api/version": self.version, "/api/tags": self.tags, "/v1/models": self.models})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.respond({
            "/api/chat": lambda: self.generate(read_ollama_chat, lambda request: OllamaReply(request, chat=True)),
            "/api/generate": lambda: self.generate(read_ollama_generate, lambda request: OllamaReply(request, chat=False)),
            "/v1/chat/completions": lambda: self.generate(read_openai_chat, OpenAIReply),
            "/api/show": self.show,
        })  # fmt: skip

    def respond(self, routes: dict[str, Callable[[], None]]) -> None:
        """Do what the path asks for; whatever goes wrong ends in one line."""
        try:
            self.unread = True
            self.data = self.read_data()
            self.unread = False
            path = self.path.partition("?")[0]
            if path not in routes:
                raise Refused(404, f"this server has nothing at {self.command} {path[:100]}")
            routes[path]()
        except Refused as refused:
            self.refuse(refused)
        except (ConnectionError, TimeoutError):
            pass  # the caller has left
        except Exception as error:
            print(f"{self.path[:100]} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            self.refuse(Refused(500, "this server has made a mistake"))

    # ---- reading ----

    def read_data(self) -> bytes:
        """The body of the request; Refused if it is too large, or if it does not say how large it is."""
        length = self.headers.get("Content-Length", "0").strip()
        if "Transfer-Encoding" in self.headers:
            raise Refused(411, "a request must say its Content-Length")
        if not (length.isascii() and length.isdigit()):
            raise Refused(400, "Content-Length must be a whole number")
        if len(length) > 15 or int(length) > self.server.max_request_bytes:
            raise Refused(413, f"a request may have {self.server.max_request_bytes:,} bytes; this one says that it has {length[:20]}")
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            raise ConnectionError("the caller left in the middle of the request")
        return data

    def read_body(self) -> dict:
        """The JSON object of the request."""
        try:
            body = json.loads(self.data)
        except (ValueError, RecursionError):
            raise Refused(400, "the request is not valid JSON") from None
        if not isinstance(body, dict):
            raise Refused(400, "the request must be a JSON object")
        return body

    def caller_left(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""

    # ---- writing ----

    def send_head(self, status: int, content_type: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def send(self, status: int, content: dict | str) -> None:
        """Send a whole answer: an object as JSON, a string as it is."""
        kind = "text/plain; charset=utf-8" if isinstance(content, str) else "application/json"
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_head(status, kind, len(data))
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, refused: Refused) -> None:
        """Send an error in the protocol's form, and let a caller who is still sending come to an end and read it."""
        form = OpenAIReply if getattr(self, "path", "").startswith("/v1/") else OllamaReply
        with suppress(OSError):
            self.send(refused.status, form.error(refused))
            if self.unread:
                self.connection.shutdown(socket.SHUT_WR)
                self.connection.settimeout(LINGER_SECONDS)
                end = time.monotonic() + LINGER_SECONDS
                while time.monotonic() < end and self.connection.recv(65536):
                    pass

    def send_error(self, code, message=None, explain=None) -> None:
        """What http.server calls for requests that are not HTTP, or that use another method."""
        self.close_connection = self.unread = True
        self.refuse(Refused(int(code), message or self.responses[code][0]))

    def log_message(self, *args) -> None:
        """Requests are not listed."""

    # ---- what is served ----

    def greet(self) -> None:
        self.send(200, "The course's local server is running.\n")

    def version(self) -> None:
        self.send(200, {"version": VERSION})

    def tags(self) -> None:
        """Ollama's list of models."""
        about = {"modified_at": self.server.started, "size": 0, "digest": ""}
        models = [{"name": name, "model": name, **about, "details": details_of(model)} for name, model in self.server.served.items()]
        self.send(200, {"models": models})

    def models(self) -> None:
        """OpenAI's list of models."""
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "course"} for name in self.server.served]
        self.send(200, {"object": "list", "data": data})

    def show(self) -> None:
        """What Ollama tells about one model."""
        body = self.read_body()
        model = self.model_named(str(body.get("model") or body.get("name")))
        info = {"general.architecture": "course", "course.context_length": model.context_length}
        self.send(
            200, {"details": details_of(model), "model_info": info, "capabilities": ["completion"], "modified_at": self.server.started}
        )

    def model_named(self, name: str):
        if name not in self.server.served:
            raise Refused(404, f"model {name[:80]!r} not found; this server has: {', '.join(self.server.served)}", "model_not_found")
        return self.server.served[name]

    def generate(self, read_request: Callable[[dict], Request], make_reply: Callable) -> None:
        """Answer with a model: whole, or piece by piece as they come."""
        try:
            request = read_request(self.read_body())
        except ValueError as error:
            raise Refused(400, str(error)) from None
        job, reply = Job(self.model_named(request.model), request), make_reply(request)
        if not request.messages and not request.prompt:  # Ollama's way to ask for a model to be loaded, which it is
            self.send(200, reply.whole("", Done("load", 0, 0, 0.0, 0.0)))
            return
        self.server.line.join(job)
        try:
            (self.send_stream if request.stream else self.send_whole)(self.items(job), reply)
        finally:
            self.server.line.leave(job)

    def items(self, job: Job) -> Iterator:
        """What the job makes, to its end; ConnectionError when the caller has left."""
        item = ""
        while isinstance(item, str):
            if self.caller_left():
                raise ConnectionError("the caller left")
            try:
                item = job.made.get(timeout=0.1)
            except queue.Empty:
                continue
            yield item

    def send_whole(self, items: Iterator, reply) -> None:
        text = ""
        for item in items:
            if isinstance(item, Refused):
                raise item
            if isinstance(item, Done):
                self.send(200, reply.whole(text, item))
            else:
                text += item

    def send_stream(self, items: Iterator, reply) -> None:
        """Status and headers go out with the first piece, so an error before it still has its own status."""
        begun = False
        for item in items:
            if isinstance(item, Refused) and not begun:
                raise item
            if not begun:
                self.send_head(200, reply.content_type)
                begun = True
            if isinstance(item, str):
                self.wfile.write(reply.piece(item) if item else b"")
            else:
                self.wfile.write(reply.end(item) if isinstance(item, Done) else reply.failure(item))
