"""What local_server.py needs of a chat model, and SmolLM2-135M-Instruct as such a model.

Any object with these members can be served:

    name, context_length             what callers ask for; the longest text, prompt and answer together, in tokens
    encode_chat(messages)            messages, each {"role": ..., "content": ...} -> ids of the prompt for the next answer
    encode_raw(prompt)               a prompt that its writer has put into the model's template -> ids
    generate(ids, max_new_tokens, seed, temperature, top_k, top_p)    an iterator of the new ids, the end token left out
    stream(ids)                      an iterator of new ids -> an iterator of their text in pieces

One thread calls them, for one request at a time. `encode_chat` must take what a message says as plain text: a caller who could
write the template's tokens into a message could end it and speak for the model.
"""

from collections.abc import Iterable, Iterator

import torch
from llama import generate_text_basic_stream, load_smollm2, make_sampler
from previous_chapters import KVCache

SMOLLM2_NAME = "smollm2:135m"


class ServedModel:
    """A model of this course and its tokenizer, as local_server.py serves them. Folder 03 of chapter 7.

    model: with `cfg` and called as `model(ids, cache, attention_mask, only_last=True)`; it may make its own cache in `new_cache`.
    tokenizer: with `encode_chat`, `encode` and `stream`. stop_ids: an answer ends before any of them. details: what is shown
    to callers who ask about the model.
    """

    def __init__(self, name: str, model, tokenizer, stop_ids: Iterable[int], details: dict | None = None):
        self.name, self.model, self.tokenizer, self.stop_ids = name, model, tokenizer, tuple(stop_ids)
        self.context_length, self.details = model.cfg["context_length"], details or {}

    def encode_chat(self, messages: list[dict]) -> list[int]:
        return self.tokenizer.encode_chat(messages)

    def encode_raw(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt, allowed_special="all")

    def generate(self, ids: list[int], max_new_tokens: int, seed: int, temperature: float, top_k: int | None, top_p: float | None):
        """Yield the ids of an answer, each as soon as it is drawn; equal arguments give equal ids."""
        device = self.model.tok_emb.weight.device
        prompt = torch.tensor([ids], device=device)  # (1, num_tokens)
        choose = make_sampler(temperature, top_k, top_p, generator=torch.Generator(device).manual_seed(seed))
        if hasattr(self.model, "new_cache"):
            cache = self.model.new_cache()
        else:
            cache = KVCache(self.model.cfg["n_layers"], max_length=self.context_length)
        for next_ids in generate_text_basic_stream(self.model, prompt, max_new_tokens, self.stop_ids, choose=choose, cache=cache):
            yield int(next_ids)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        return self.tokenizer.stream(ids)


def serve_smollm2() -> ServedModel:
    """SmolLM2-135M-Instruct in plain PyTorch; FileNotFoundError without its package. Folder 03 of chapter 7."""
    model, tokenizer = load_smollm2()
    details = {"family": "llama", "parameter_size": "135M", "quantization_level": "F32"}
    return ServedModel(SMOLLM2_NAME, model, tokenizer, tokenizer.stop_ids, details)
