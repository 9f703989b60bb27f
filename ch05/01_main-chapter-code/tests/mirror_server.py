"""A web server on this computer that stands in for the mirrors and breaks in all the ways they do."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror(ThreadingHTTPServer):
    """Serves `files` {name: bytes}; how it misbehaves is said per name in `faults`, and what it was asked is in `requests`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.faults, self.headers, self.requests, self.before_end = {}, {}, {}, [], lambda: None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def fault(self, name, **settings):
        """status=404 | drop=[bytes of each answer before it breaks off] | ranges=False | shift=1 | hang=seconds | length=n."""
        self.faults[name] = settings

    def handle_error(self, request, client_address):
        """A client that hangs up is nothing to print."""


class Answer(BaseHTTPRequestHandler):
    """One request."""

    def log_message(self, *_):
        """Keep the tests quiet."""

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        fault = self.server.faults.get(name, {})
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        if "hang" in fault:
            threading.Event().wait(fault["hang"])
        content = self.server.files.get(name)
        status = fault.get("status", 404 if content is None else 200)
        if status != 200:
            self.send_error(status)
            return
        start, headers = 0, {"Content-Length": fault.get("length", len(content))}
        if asked and fault.get("ranges", True):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            status, begin = 206, start + fault.get("shift", 0)
            headers = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}", "Content-Length": len(content) - start}
        if fault.get("no_length"):
            del headers["Content-Length"]
        self.send_response(status)
        for key, value in {**headers, **self.server.headers.get(name, {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        body = content[start:]
        if fault.get("drop"):
            body = body[: fault["drop"].pop(0)]
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        self.server.before_end()
        self.wfile.write(body[half:])
        self.close_connection = True
