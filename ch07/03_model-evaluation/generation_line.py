"""One generation at a time: requests wait in a line of limited length, and a thread of its own answers them in turn.

A model on a CPU gains nothing from two answers at once, and both would be slower. The thread puts pieces of text into the
job's own queue, so a caller who reads slowly holds nobody up, and looks behind every token whether the caller has left.
"""

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

from chat_protocols import Done, Refused, Request
from llama import until_stop

STOPPING = "the server is stopping"


class Job:
    """One request on its way through a model. Folder 03 of chapter 7.

    `made` receives pieces of text, behind which stands a `Done` or a `Refused`. left: nobody waits for the answer any more.
    """

    def __init__(self, model, request: Request):
        self.model, self.request = model, request
        self.made, self.left = queue.SimpleQueue(), False

    def encode(self) -> tuple[list[int], int]:
        """(ids of the prompt, how many new tokens there may be); Refused for a prompt that does not fit or cannot be encoded."""
        request = self.request
        try:
            ids = self.model.encode_raw(request.prompt) if request.messages is None else self.model.encode_chat(request.messages)
        except (ValueError, TypeError) as error:
            raise Refused(400, str(error)) from None
        room = min(request.num_ctx, self.model.context_length) - len(ids)
        if room < 1:
            context = f"num_ctx is {request.num_ctx} and the model's context {self.model.context_length}"
            raise Refused(400, f"the prompt has {len(ids)} tokens and leaves no room for an answer: {context}", "context_length_exceeded")
        if not ids:
            raise Refused(400, "the prompt is empty")
        return ids, room if request.max_new_tokens is None else min(room, request.max_new_tokens)

    def items(self) -> Iterator[str | Done]:
        """Yield the answer in pieces, at least one a token, then how it ended."""
        started = time.perf_counter()
        ids, max_new_tokens = self.encode()
        count, first, used_up = 0, started, False

        def counted() -> Iterator[int]:
            nonlocal count, first, used_up
            for number in self.model.generate(ids, max_new_tokens, **self.request.sampling):
                count, first = count + 1, first if count else time.perf_counter()
                yield number
            used_up = count == max_new_tokens

        yield from until_stop(self.model.stream(counted()), self.request.stop)
        reason = "length" if used_up else "stop"
        yield Done(reason, len(ids), count, first - started, time.perf_counter() - started)

    def run(self, stopping: threading.Event) -> None:
        """Fill `made`, until the answer has ended, the caller has left, or the server stops."""
        try:
            for item in self.items():
                if self.left:
                    return
                if stopping.is_set() and not isinstance(item, Done):
                    raise Refused(503, STOPPING)
                self.made.put(item)
        except Refused as refused:
            self.made.put(refused)
        except Exception as error:  # one broken answer must not end the thread that gives all others
            line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            print(f"{self.request.model} failed: {line}", file=sys.stderr, flush=True)
            self.made.put(Refused(500, f"the model failed: {line}"))


class GenerationLine:
    """Where jobs wait, and the thread that runs them, first come, first served. Folder 03 of chapter 7."""

    def __init__(self, size: int):
        self.size, self.waiting, self.running = size, deque(), None
        self.changed, self.stopping = threading.Condition(), threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def join(self, job: Job) -> None:
        """Stand at the end of the line; Refused if it is full, or if the server stops."""
        with self.changed:
            if self.stopping.is_set():
                raise Refused(503, STOPPING)
            if len(self.waiting) + (self.running is not None) > self.size:
                raise Refused(503, f"the server is busy: one request is being answered and {self.size} are waiting, so try again later")
            self.waiting.append(job)
            self.changed.notify()

    def leave(self, job: Job) -> None:
        """The caller has got the answer or does not want it any more."""
        with self.changed:
            job.left = True
            if job in self.waiting:
                self.waiting.remove(job)

    def work(self) -> None:
        """Run job after job, until `close`."""
        while True:
            with self.changed:
                self.running = None
                self.changed.wait_for(lambda: self.waiting or self.stopping.is_set())
                if self.stopping.is_set():
                    return
                self.running = self.waiting.popleft()
            self.running.run(self.stopping)

    def close(self) -> None:
        """Stop behind the next token, and refuse whoever still waits."""
        with self.changed:
            self.stopping.set()
            for job in self.waiting:
                job.made.put(Refused(503, STOPPING))
            self.waiting.clear()
            self.changed.notify_all()
        self.thread.join()
