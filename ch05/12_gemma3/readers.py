"""Three language models behind one interface, so that the same text and the same question can go to each.

    from readers import load_reader, nats_per_byte
    gemma = load_reader("gemma3")
    nats_per_byte(gemma, "Every summer somebody in a good hat climbed the hill.")

gemma3: Gemma 3 270M, a base model. smollm2: SmolLM2-135M-Instruct, tuned to follow instructions. gpt2-mini: this course's own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from gemma3 import load_gemma3
from llama import generate_text_basic_stream, load_smollm2
from previous_chapters import KVCache, generate_text_simple, gpt2_tokenizer, load_pretrained_gpt
from torch import nn
from torch.nn import functional as F

NAMES = ("gpt2-mini", "smollm2", "gemma3")
CHUNK = 256  # tokens read at once: logits of more would take gigabytes with a vocabulary of 262,144


@dataclass
class Reader:
    """A model with its tokenizer. start: the id that began each training text; ends: the ids after which a text is over."""

    name: str
    model: nn.Module
    encode: Callable[[str], list[int]]  # without a start token
    token_bytes: Callable[[int], bytes]
    start: int
    ends: tuple[int, ...]
    context_length: int
    cached: bool = True
    encode_chat: Callable[[str], list[int]] | None = None  # a question as a turn, for a model that was tuned on turns
    tokenizer: object = None

    @property
    def num_parameters(self) -> int:
        """Weights, those that two parts share counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def decode(self, ids) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def prompt_ids(self, text: str) -> list[int]:
        """The text to be continued, behind the start token."""
        return [self.start, *self.encode(text)]

    def question_ids(self, text: str) -> list[int]:
        """The text as a question: a turn of a chat if the model knows turns, else a text to be continued."""
        return self.encode_chat(text) if self.encode_chat else self.prompt_ids(text)


def load_reader(name: str) -> Reader:
    """One of NAMES; FileNotFoundError with the command that installs it if it is missing."""
    if name == "gemma3":
        model, gemma = load_gemma3()
        return Reader(name, model, lambda text: gemma.encode(text, bos=False), lambda number: gemma.decode_bytes([number]),
                      gemma.bos_token_id, (gemma.eos_token_id,), model.cfg["context_length"], tokenizer=gemma)
    if name == "smollm2":
        model, smol = load_smollm2()
        end_of_text = smol.special["<|endoftext|>"]  # stands between the texts of the pretraining
        return Reader(name, model, smol.encode, lambda number: smol.decode_bytes([number]), end_of_text, (end_of_text, smol.eos_token_id),
                      model.cfg["context_length"], encode_chat=lambda text: smol.encode_chat([{"role": "user", "content": text}]),
                      tokenizer=smol)
    if name != "gpt2-mini":
        raise ValueError(f"no model {name!r}; known: {', '.join(NAMES)}")
    model, cfg = load_pretrained_gpt({}, "mini", offline=True)
    model.out_head.weight = model.tok_emb.weight  # equal already, as it was trained with one matrix for both
    gpt2 = gpt2_tokenizer()
    return Reader(name, model, gpt2.encode_ordinary, gpt2.decode_single_token_bytes, gpt2.eot_token, (gpt2.eot_token,),
                  cfg["context_length"], cached=False, tokenizer=gpt2)


# ---- how surprised is a model by a text? ----------------------------------------------------------------------------

@torch.inference_mode()
def nats_of_pass(reader: Reader, ids: list[int]) -> list[float]:
    """The loss of each id but the first, given all ids before it: -log of the probability the model gave it."""
    cache = KVCache(reader.model.cfg["n_layers"]) if reader.cached else None
    nats = []
    for begin in range(0, len(ids) - 1, CHUNK):
        chunk = torch.tensor([ids[begin : begin + CHUNK]])  # (1, num_tokens)
        targets = torch.tensor(ids[begin + 1 : begin + 1 + CHUNK])  # (num_targets,)
        logits = reader.model(chunk, cache) if reader.cached else reader.model(chunk)  # (1, num_tokens, vocab_size)
        nats += F.cross_entropy(logits[0, : len(targets)].float(), targets, reduction="none").tolist()
    return nats


def token_nats(reader: Reader, ids: list[int], window: int | None = None) -> list[float]:
    """The loss of every id of a text, each with the start token and up to `window` - 1 ids in front of it.

    window: None reads the text in one piece. A window slides by half its length, so that each id but the first ones has at
    least half a window before it. ValueError if the model's context is shorter.
    """
    longest = reader.context_length if reader.cached else min(reader.context_length, CHUNK)
    window = window or len(ids) + 1
    if not 2 <= window <= longest:
        raise ValueError(f"{reader.name} reads at most {longest} tokens at once, not {window}")
    nats = []
    while len(nats) < len(ids):
        end = min(len(nats) + (window // 2 if nats else window - 1), len(ids))
        begin = max(0, end - window + 1)
        nats += nats_of_pass(reader, [reader.start, *ids[begin:end]])[len(nats) - begin :]
    return nats


def nats_per_byte(reader: Reader, text: str, window: int | None = None) -> float:
    """The loss of a whole text, divided by its length in bytes of UTF-8, which is the same for every tokenizer."""
    return math.fsum(token_nats(reader, reader.encode(text), window)) / len(text.encode())


def nats_by_position(reader: Reader, ids: list[int], nats: list[float], bin_bytes: int) -> list[float]:
    """Nats per byte of each stretch of `bin_bytes` bytes; the last stretch may be shorter. A token belongs to where it begins."""
    sums, sizes, position = [], [], 0
    for number, loss in zip(ids, nats, strict=True):
        if position // bin_bytes == len(sums):
            sums.append(0.0)
            sizes.append(0)
        size = len(reader.token_bytes(number))
        sums[-1], sizes[-1], position = sums[-1] + loss, sizes[-1] + size, position + size
    return [total / size for total, size in zip(sums, sizes, strict=True)]


# ---- what does it write? --------------------------------------------------------------------------------------------

def continue_ids(reader: Reader, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """What the model thinks likeliest after each prompt, up to an id that ends it; shorter prompts are padded at the left."""
    if reader.cached:
        longest = max(map(len, prompts))
        padded = torch.tensor([[reader.start] * (longest - len(ids)) + ids for ids in prompts])  # (b, num_tokens)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])  # (b, num_tokens)
        stream = generate_text_basic_stream(reader.model, padded, max_new_tokens, attention_mask=mask)
        answers = torch.cat(list(stream), dim=1).tolist()
    else:
        continued = [generate_text_simple(reader.model, torch.tensor([ids]), max_new_tokens, reader.context_length) for ids in prompts]
        answers = [row[0, len(ids) :].tolist() for row, ids in zip(continued, prompts, strict=True)]
    return [ids[: next((i for i, number in enumerate(ids) if number in reader.ends), len(ids))] for ids in answers]


def continue_texts(reader: Reader, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Each text continued, greedily."""
    return [reader.decode(ids) for ids in continue_ids(reader, list(map(reader.prompt_ids, prompts)), max_new_tokens)]


def answer_texts(reader: Reader, questions: list[str], max_new_tokens: int) -> list[str]:
    """Each question answered, greedily; a model without turns just continues it."""
    return [reader.decode(ids) for ids in continue_ids(reader, list(map(reader.question_ids, questions)), max_new_tokens)]
