"""A model that answers with what it was asked, one byte a token, and plumbing to talk to the server without a client library."""

import codecs
import http.client
import json
import random
import time

ECHO_CONTEXT = 400


class Echo:
    """Answers <prompt>. Words in the prompt change that: "settings" (how it was told to draw), "drawn" (letters, drawn by the
    seed), "endless" (dots up to the limit), "slow" (0.02 s a token), "fail" (an error behind two tokens).
    """

    context_length = ECHO_CONTEXT
    details = {"family": "echo"}

    def __init__(self, name="echo"):
        self.name, self.made, self.active, self.most_active = name, 0, 0, 0

    def encode_chat(self, messages):
        return list("".join(f"[{message['role']}]{message['content']}" for message in messages).encode())

    def encode_raw(self, prompt):
        return list(f"(raw){prompt}".encode())

    def answer(self, prompt, seed, temperature, top_k, top_p):
        if "settings" in prompt:
            return json.dumps([seed, temperature, top_k, top_p])
        if "drawn" in prompt:
            return "".join(random.Random(seed).choices("abcdefgh", k=20)) if temperature else "greedy"
        return "." * 10_000 if "endless" in prompt else f"<{prompt}>"

    def generate(self, ids, max_new_tokens, seed, temperature, top_k, top_p):
        prompt = bytes(ids).decode()
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            for number in self.answer(prompt, seed, temperature, top_k, top_p).encode()[:max_new_tokens]:
                if "slow" in prompt:
                    time.sleep(0.02)
                self.made += 1
                yield number
                if "fail" in prompt and number == ord("["):
                    raise RuntimeError("two lines\nof trouble")
        finally:
            self.active -= 1

    def stream(self, ids):
        whole = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for number in ids:
            yield whole.decode(bytes([number]))
        yield whole.decode(b"", final=True)


def ask(url, path, body=None, method="POST", timeout=20):
    """(status, answer) of one request; body: an object, or bytes as they are. The answer is JSON, or a list of its lines."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout)
    try:
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    parsed = [line if line == "[DONE]" else json.loads(line) for line in lines]
    return response.status, parsed[0] if parsed and response.getheader("Content-Type") == "application/json" else parsed


def chat(content, model="echo", **more):
    """The body of a chat request to be answered whole."""
    return {"model": model, "messages": [{"role": "user", "content": content}], "stream": False, **more}
