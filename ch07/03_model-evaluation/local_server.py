"""A server on this computer that speaks Ollama's and OpenAI's protocols and answers with SmolLM2-135M, for machines without Ollama.

    python local_server.py                      # http://127.0.0.1:11434, Ollama's own address; Ctrl-C ends
    python local_server.py --port 0             # at a free port, which is printed

    curl http://127.0.0.1:11434/api/chat -d '{"model": "smollm2:135m", "messages": [{"role": "user", "content": "Hello!"}]}'

From Python, as notebooks and tests do:

    with create_server(port=0) as server:
        url = server.start()                    # the ordinary clients: ollama.Client(url), OpenAI(base_url=url + "/v1", api_key="-")

Served are /api/chat, /api/generate, /api/tags, /api/show, /api/version, and /v1/chat/completions, /v1/models.
"""

import http.server
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from generation_line import GenerationLine
from previous_chapters import OneLineParser, int_at_least
from request_handler import Handler
from served_model import serve_smollm2

IDLE_CONNECTIONS = 32  # beyond those that wait for an answer


class LocalServer(http.server.ThreadingHTTPServer):
    """One thread a connection, one line of jobs for all; `start` and `stop` it, or use it in a `with`. Folder 03 of chapter 7."""

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers have one port
    request_queue_size = 64  # connections that the system holds until they are accepted

    def __init__(self, host: str, port: int, queue_size: int, max_request_bytes: int):
        self.max_request_bytes, self.served = max_request_bytes, {}
        self.connections, self.handlers = threading.BoundedSemaphore(queue_size + 1 + IDLE_CONNECTIONS), {}
        self.thread, self.started = None, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        super().__init__((host, port), Handler)
        self.line = GenerationLine(queue_size)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without http.server's search for this computer's name in the network
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def url(self) -> str:
        return f"http://{self.server_name}:{self.server_port}"

    def start(self) -> str:
        """Serve in a thread of its own; returns the address."""
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self.url

    def stop(self) -> None:
        """Take no more connections, end what is running behind its next token, and wait until it has ended."""
        if self.thread is not None:
            self.shutdown()
            self.thread.join()
            self.thread = None
        self.server_close()

    def __exit__(self, *args) -> None:
        self.stop()

    def server_close(self) -> None:
        super().server_close()
        if hasattr(self, "line"):  # not yet, if the port was in use
            self.line.close()
        for connection, thread in list(self.handlers.items()):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)  # one that waits for a request waits no more
            thread.join(timeout=Handler.timeout)

    def process_request(self, request: socket.socket, client_address) -> None:
        """Hand a connection to a thread of its own, if there are not too many."""
        if self.connections.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.setblocking(False)
            request.sendall(b'HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\n\r\n{"error": "too many connections"}')
            request.recv(65536)
        self.shutdown_request(request)

    def process_request_thread(self, request: socket.socket, client_address) -> None:
        self.handlers[request] = threading.current_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self.handlers[request]
            self.connections.release()

    def handle_error(self, request, client_address) -> None:
        """One line instead of a traceback; none for a caller who has left."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"a request failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def create_server(
    host: str = "127.0.0.1", port: int = 11434, model=None, *, queue_size: int = 16, max_request_bytes: int = 300_000
) -> LocalServer:
    """A server that is bound to its address (port 0: a free one) and not yet started. Folder 03 of chapter 7.

    model: an object as served_model.py describes it, a dictionary from names to such objects, or None for SmolLM2-135M in plain
    PyTorch. OSError for an address that is not free, FileNotFoundError without SmolLM2's package.
    """
    server = LocalServer(host, port, queue_size, max_request_bytes)
    try:
        models = [serve_smollm2()] if model is None else [model]
        server.served = model if isinstance(model, dict) else {served.name: served for served in models}
    except BaseException:
        server.server_close()
        raise
    return server


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Serve SmolLM2-135M on this computer, in Ollama's and OpenAI's protocols.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other computers in")
    parser.add_argument("--port", type=int_at_least(0), default=11434, help="port to listen at, up to 65535; 0: a free one")
    parser.add_argument("--max_request_bytes", type=int_at_least(1), default=300_000, help="largest request")
    parser.add_argument("--queue_size", type=int_at_least(0), default=16, help="requests that may wait while one is answered")
    parser.add_argument("--gemma_weights", type=Path, help="tuned Gemma to serve as well; None: where the chapter's program saves it")
    parser.add_argument("--plain", action="store_true", help="without the compiled steps of chapter 5")
    args = parser.parse_args(argv)
    if args.port > 65535:
        parser.error(f"argument --port: {args.port} is too large (allowed: 0 to 65535)")
    from serving_models import load_models  # here: whoever borrows `create_server` does without its models

    for number in (signal.SIGTERM, signal.SIGINT):  # Ctrl-C, too: a shell script's background programs ignore it otherwise
        signal.signal(number, signal.default_int_handler)
    server = None
    try:
        server = create_server(args.host, args.port, {}, queue_size=args.queue_size, max_request_bytes=args.max_request_bytes)
        server.served = load_models(args.gemma_weights, args.plain)
        print(f"{', '.join(server.served)} at {server.url} (for OpenAI's clients {server.url}/v1); Ctrl-C ends", flush=True)
        server.serve_forever()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C comes too late
    except (ValueError, OSError) as error:
        where = f"{args.host}:{args.port}: " if server is None else ""
        parser.error(where + " ".join(str(error).split()))
    if server is not None:
        server.server_close()
    print("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
