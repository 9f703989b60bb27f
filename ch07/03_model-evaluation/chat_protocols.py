"""The two protocols of local_server.py, without the network: what a request asks for, and how an answer is written down.

Both send JSON. Ollama streams one JSON object a line; OpenAI streams server-sent events, lines that begin with `data: `.
A request that cannot be read raises ValueError with one line; `Refused` carries an HTTP status as well.
"""

import json
import secrets
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone

from llama import ROLES, check_sampling

DEFAULT_NUM_CTX = 2048  # tokens of prompt and answer together, unless a request says num_ctx
KINDS = {"text": str, "whole number": int, "number": (int, float), "true or false": bool, "list": list, "object": dict}
STOP_TEXTS, STOP_LENGTH = 16, 200  # at most so many stop texts of so many characters: each is looked for behind every token
TINY = 1e-6  # a smaller temperature or top_p would be rounded to 0 by float32


class Refused(Exception):
    """A request that gets no answer: the HTTP status, one line that says why, OpenAI's code for it. Folder 03 of chapter 7."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(" ".join(str(message).split())[:300])
        self.status, self.code = status, code


@dataclass
class Request:
    """What a request asks for, in either protocol. Folder 03 of chapter 7."""

    model: str
    messages: list[dict] | None  # a conversation; or None, and then
    prompt: str | None  # a prompt that is in the template already
    stream: bool
    num_ctx: int
    max_new_tokens: int | None  # None: until num_ctx is full
    sampling: dict  # seed, temperature, top_k, top_p
    stop: list[str]
    include_usage: bool = False


@dataclass
class Done:
    """How an answer ended: "stop" or "length"; its tokens; seconds up to the first new one, and in all. Folder 03 of chapter 7."""

    reason: str
    prompt_tokens: int
    new_tokens: int
    prompt_seconds: float
    seconds: float


# ---- reading requests ----


def read(fields: dict, name: str, kind: str, default=None):
    """The value of a field, `default` where it is missing or null; ValueError for another kind of value. Folder 03 of chapter 7."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "true or false"):
        raise ValueError(f"{name} must be a {kind}, not {repr(value)[:40]}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is too large a number")
    return value


def refuse_unknown(fields: dict, names: tuple[str, ...]) -> None:
    """ValueError if a field asks for something that this server cannot do: better no answer than one to another question."""
    for name in names:
        if fields.get(name):
            raise ValueError(f"this server cannot do what {name} asks for")


def read_messages(fields: dict) -> list[dict]:
    """The messages, each with role and content as text; ValueError for anything else. Folder 03 of chapter 7."""
    messages = []
    for number, message in enumerate(read(fields, "messages", "list", [])):
        if not isinstance(message, dict):
            raise ValueError(f"message {number} must be an object with role and content")
        refuse_unknown(message, ("images", "tool_calls"))
        role, content = message.get("role"), message.get("content")
        role = "system" if role == "developer" else role  # OpenAI's newer word for it
        if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            content = "".join(part["text"] for part in content)
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(f"message {number} needs a role ({', '.join(ROLES)}) and a text as content")
        messages.append({"role": role, "content": content})
    return messages


def read_sampling(fields: dict, temperature: float, top_k: int | None, top_p: float) -> dict:
    """How tokens are drawn, as `generate` of a served model wants it; without a seed, a random one. Folder 03 of chapter 7."""
    seed = read(fields, "seed", "whole number")
    temperature = float(read(fields, "temperature", "number", temperature))
    top_k = read(fields, "top_k", "whole number", top_k) or None
    top_p = float(read(fields, "top_p", "number", top_p))
    top_p = TINY if 0 <= top_p < TINY else top_p
    check_sampling(temperature, top_k, top_p, None, 1.0)
    temperature = 0.0 if temperature < TINY else temperature
    seed = secrets.randbelow(2**31) if seed is None else seed % 2**63
    return {"seed": seed, "temperature": temperature, "top_k": top_k, "top_p": top_p}


def read_stop(fields: dict) -> list[str]:
    """The texts that end an answer: one, or a list. Folder 03 of chapter 7."""
    stop = fields.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > STOP_TEXTS:
        raise ValueError(f"stop must be a text or a list of at most {STOP_TEXTS} texts")
    if not all(isinstance(text, str) and 0 < len(text) <= STOP_LENGTH for text in stop):
        raise ValueError(f"a stop text must have 1 to {STOP_LENGTH} characters")
    return stop


def read_ollama(body: dict, messages: list[dict] | None, prompt: str | None) -> Request:
    """What all of Ollama's requests share. Sampling settings count in `options` alone, as with Ollama. Folder 03 of chapter 7."""
    refuse_unknown(body, ("tools", "format", "think", "images", "suffix", "template", "context"))
    options = read(body, "options", "object", {})
    limit = read(options, "num_predict", "whole number", -1)
    num_ctx = read(options, "num_ctx", "whole number", DEFAULT_NUM_CTX)
    if num_ctx < 1:
        raise ValueError(f"num_ctx is {num_ctx}; it must be at least 1")
    return Request(
        model=read(body, "model", "text", ""),
        messages=messages,
        prompt=prompt,
        stream=read(body, "stream", "true or false", True),
        num_ctx=num_ctx,
        max_new_tokens=None if limit < 0 else limit,
        sampling=read_sampling(options, temperature=0.8, top_k=40, top_p=0.9),
        stop=read_stop(options),
    )


def read_ollama_chat(body: dict) -> Request:
    """A request to /api/chat. Folder 03 of chapter 7."""
    return read_ollama(body, read_messages(body), None)


def read_ollama_generate(body: dict) -> Request:
    """A request to /api/generate: one question, or with "raw" a prompt that is in the template already. Folder 03 of chapter 7."""
    prompt, system = read(body, "prompt", "text", ""), read(body, "system", "text")
    if read(body, "raw", "true or false", False):
        return read_ollama(body, None, prompt)
    start = [{"role": "system", "content": system}] if system else []
    return read_ollama(body, [*start, {"role": "user", "content": prompt}] if prompt else [], None)


def read_openai_chat(body: dict) -> Request:
    """A request to /v1/chat/completions. Folder 03 of chapter 7."""
    refuse_unknown(body, ("tools", "functions", "logprobs", "logit_bias", "audio"))
    if read(body, "n", "whole number", 1) != 1:
        raise ValueError("n must be 1: this server gives one answer")
    if read(body, "response_format", "object", {}).get("type", "text") != "text":
        raise ValueError("response_format must be text")
    limit = read(body, "max_completion_tokens", "whole number", read(body, "max_tokens", "whole number"))
    if limit is not None and limit < 1:
        raise ValueError(f"max_tokens is {limit}; it must be at least 1")
    messages = read_messages(body)
    if not messages:
        raise ValueError("messages must hold at least one message")
    return Request(
        model=read(body, "model", "text", ""),
        messages=messages,
        prompt=None,
        stream=read(body, "stream", "true or false", False),
        num_ctx=DEFAULT_NUM_CTX,
        max_new_tokens=limit,
        sampling=read_sampling(body, temperature=1.0, top_k=None, top_p=1.0),
        stop=read_stop(body),
        include_usage=bool(read(body, "stream_options", "object", {}).get("include_usage")),
    )


# ---- writing answers ----


class OllamaReply:
    """An answer in Ollama's form, whole or line by line. Folder 03 of chapter 7."""

    content_type = "application/x-ndjson"

    def __init__(self, request: Request, chat: bool):
        self.request, self.chat = request, chat

    def message(self, text: str, done: Done | None = None) -> dict:
        created = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
        content = {"message": {"role": "assistant", "content": text}} if self.chat else {"response": text}
        start = {"model": self.request.model, "created_at": created, **content, "done": done is not None}
        if done is None:
            return start
        return {
            **start, "done_reason": done.reason, "total_duration": int(1e9 * done.seconds), "load_duration": 0,
            "prompt_eval_count": done.prompt_tokens, "prompt_eval_duration": int(1e9 * done.prompt_seconds),
            "eval_count": done.new_tokens, "eval_duration": int(1e9 * (done.seconds - done.prompt_seconds)),
        }  # fmt: skip

    def whole(self, text: str, done: Done) -> dict:
        return self.message(text, done)

    def piece(self, text: str) -> bytes:
        return json.dumps(self.message(text)).encode() + b"\n"

    def end(self, done: Done) -> bytes:
        return json.dumps(self.message("", done)).encode() + b"\n"

    @staticmethod
    def error(refused: Refused) -> dict:
        return {"error": str(refused)}

    def failure(self, refused: Refused) -> bytes:
        return json.dumps(self.error(refused)).encode() + b"\n"


class OpenAIReply:
    """An answer in OpenAI's form, whole or event by event. Folder 03 of chapter 7."""

    content_type = "text/event-stream"

    def __init__(self, request: Request):
        self.request, self.begun = request, False
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}

    @staticmethod
    def usage(done: Done) -> dict:
        total = done.prompt_tokens + done.new_tokens
        return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.new_tokens, "total_tokens": total}

    def whole(self, text: str, done: Done) -> dict:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": done.reason}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": self.usage(done)}

    @staticmethod
    def event(content) -> bytes:
        return b"data: " + json.dumps(content).encode() + b"\n\n"

    def chunk(self, choices: list[dict], **more) -> bytes:
        return self.event({**self.head, "object": "chat.completion.chunk", "choices": choices, **more})

    def piece(self, text: str) -> bytes:
        delta = {"content": text} if self.begun else {"role": "assistant", "content": text}
        self.begun = True
        return self.chunk([{"index": 0, "delta": delta, "finish_reason": None}])

    def end(self, done: Done) -> bytes:
        last = self.chunk([{"index": 0, "delta": {}, "finish_reason": done.reason}])
        usage = self.chunk([], usage=self.usage(done)) if self.request.include_usage else b""
        return last + usage + b"data: [DONE]\n\n"

    @staticmethod
    def error(refused: Refused) -> dict:
        kind = "invalid_request_error" if refused.status < 500 else "server_error"
        return {"error": {"message": str(refused), "type": kind, "param": None, "code": refused.code}}

    def failure(self, refused: Refused) -> bytes:
        return self.event(self.error(refused))
