"""A conversation with a model: the messages, the cache of what the model has read, stop texts, and honest speeds.

Every turn sends the whole conversation, because the model remembers nothing. Most of it was sent before: `Conversation` keeps
the cache between turns, cuts it back to the beginning that has not changed, and lets the model read the rest only.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

import torch
from llama_generate import generate_text_basic_stream, greedy
from previous_chapters import KVCache


@dataclass
class Speed:
    """What one answer took: tokens of the prompt read and reused from the cache, seconds up to the first new token, and so on."""

    prompt_tokens: int
    reused: int = 0
    first_seconds: float = 0.0
    new_tokens: int = 0
    other_seconds: float = 0.0  # from the first new token to the last one

    def __str__(self) -> str:
        prompt = f"prompt: {self.prompt_tokens} tokens read, {self.reused} reused"
        answer = f"answer: {self.new_tokens} tokens"
        if self.first_seconds > 0:
            prompt += f", {self.prompt_tokens / self.first_seconds:.1f} tokens/s"
        if self.other_seconds > 0:
            answer += f", {(self.new_tokens - 1) / self.other_seconds:.1f} tokens/s"
        return f"[{prompt} | {answer}]"


def whole_characters(line: str) -> str:
    """The line with every half of a surrogate pair, which no tokenizer can encode, joined with its partner or replaced by �."""
    return line.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def until_stop(pieces: Iterable[str], stops: Iterable[str]) -> Iterator[str]:
    """Pass on pieces of text up to the first of the stop texts, which may be spread over several pieces and is left out.

    Text that may be the beginning of a stop text waits until that is decided.
    """
    held, stops = "", list(stops)
    for piece in pieces:
        held += piece
        found = [(held.index(stop) + len(stop), held.index(stop)) for stop in stops if stop in held]
        if found:  # the one that was complete first; of several that end at the same place, the longest
            yield held[: min(found)[1]]
            return
        ends = [length for stop in stops for length in range(1, len(stop)) if held.endswith(stop[:length])]
        ready = len(held) - max(ends, default=0)
        yield held[:ready]
        held = held[ready:]
    yield held


@torch.inference_mode()
def stream_without_cache(model, token_ids, max_new_tokens, eos_token_id, choose) -> Iterator[torch.Tensor]:
    """What `generate_text_basic_stream` yields for one row, (1, 1) each, computed again from the first token at every step."""
    for _ in range(max_new_tokens):
        next_ids = choose(model(token_ids, only_last=True)[:, -1], token_ids)  # (1, 1)
        if int(next_ids) in eos_token_id:
            return
        yield next_ids
        token_ids = torch.cat([token_ids, next_ids], dim=1)


class Conversation:
    """Ask a model, and be answered in pieces of text; what was said before goes along.

    tokenizer: with encode_chat, stream and stop_ids. choose: as in `generate_text_basic_stream`. stop: texts that end an answer.
    When the conversation no longer fits the context, the oldest question and its answer are forgotten; a system message stays.
    """

    def __init__(self, model, tokenizer, choose=greedy, max_new_tokens=256, system=None, stop=(), use_cache=True):
        self.model, self.tokenizer, self.choose = model, tokenizer, choose
        self.max_new_tokens, self.stop = max_new_tokens, stop
        self.start = [{"role": "system", "content": system}] if system else []
        self.cache = KVCache(model.cfg["n_layers"], max_length=model.cfg["context_length"]) if use_cache else None
        self.read_ids = []  # the tokens that the cache holds in all layers
        self.forget()

    def forget(self) -> None:
        """Begin again with the system message alone."""
        self.messages, self.forgotten, self.speed = list(self.start), 0, None

    def fit(self, messages: list[dict]) -> tuple[list[dict], list[int]]:
        """(messages without the oldest turns, their ids), so that an answer fits behind them; ValueError if one message is too long."""
        room, first = self.model.cfg["context_length"] - self.max_new_tokens, len(self.start)
        while len(ids := self.tokenizer.encode_chat(messages)) > room:
            if len(messages) - first <= 1:
                raise ValueError(f"the message has {len(ids):,} tokens; with {self.max_new_tokens} for the answer, {room:,} fit")
            messages = messages[:first] + messages[first + 2 :]  # without a question and its answer
        return messages, ids

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer piece by piece.

        Stopped early (close(), Ctrl-C), what was said is remembered. TypeError or ValueError, with the conversation as it was, for
        a message that the tokenizer refuses or that does not fit.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        messages, ids = self.fit(asked)
        self.forgotten = (len(asked) - len(messages)) // 2
        said = ""
        try:
            for piece in until_stop(self.tokenizer.stream(self.generate(ids)), self.stop):
                said += piece
                yield piece
        finally:
            if said:
                self.messages = [*messages, {"role": "assistant", "content": said}]

    def generate(self, ids: list[int]) -> Iterator[int]:
        """Yield the ids of one answer. Only those of `ids` are read that the cache does not hold; `speed` tells what it took."""
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, self.read_ids)))
        same = min(same, len(ids) - 1)  # at least one token must be read
        self.speed, started, first = Speed(len(ids) - same, same), time.perf_counter(), None
        for number in self.stream(ids, same):
            now = time.perf_counter()
            first = first or now
            self.speed.first_seconds, self.speed.other_seconds = first - started, now - first
            self.speed.new_tokens += 1
            yield number

    def stream(self, ids: list[int], same: int) -> Iterator[int]:
        """The ids of `generate`, of whose prompt the first `same` are in the cache; read_ids is right even after an interruption."""
        token_ids = torch.tensor([ids], device=self.model.tok_emb.weight.device)  # (1, num_tokens)
        ends = self.tokenizer.stop_ids
        if self.cache is None:
            yield from map(int, stream_without_cache(self.model, token_ids, self.max_new_tokens, ends, self.choose))
            return
        self.cache.crop(same)
        self.read_ids, unread = ids[:same], ids[same:]
        for next_ids in generate_text_basic_stream(self.model, token_ids, self.max_new_tokens, ends, choose=self.choose, cache=self.cache):
            self.read_ids += unread  # it answers, so it has read them, in every layer
            unread = [int(next_ids)]
            yield unread[0]
        self.read_ids += unread[: len(self.cache) - len(self.read_ids)]  # and the last one, if it was followed by a stop id
