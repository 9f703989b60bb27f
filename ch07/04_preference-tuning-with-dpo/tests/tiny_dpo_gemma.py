"""A Gemma 3 of a few thousand random parameters with a tokenizer of the real class, and preference pairs for it."""

import os

import pytest
import torch
from gemma3 import FULL, SLIDING, Gemma3Model, GemmaTokenizer, find_gemma3
from instructions import PREAMBLE, RESPONSE_HEADER

TINY = {
    "vocab_size": 363, "context_length": 256, "emb_dim": 32, "n_heads": 2, "n_layers": 2, "hidden_dim": 48, "head_dim": 16,
    "qk_norm": True, "n_kv_groups": 1, "rope_base": 1_000_000.0, "rope_local_base": 10_000.0, "sliding_window": 16,
    "layer_types": [SLIDING, FULL], "query_pre_attn_scalar": 16, "dtype": torch.float32,
}  # fmt: skip


def tiny_tokenizer() -> GemmaTokenizer:
    """<pad> 0, <eos> 1, <bos> 2, <unk> 3, then 256 bytes, the characters of ASCII with some joined pairs, the prompt's fixed parts."""
    letters = [chr(code) for code in range(33, 127)] + ["\u2581", "\n", "th", "he", "is"]
    control = ["<pad>", "<eos>", "<bos>", "<unk>"]
    whole = [PREAMBLE, "\n\n### Instruction:\n", "\n\n### Input:\n", RESPONSE_HEADER]  # cut out whole, so that prompts are short
    pieces = control + [f"<0x{byte:02X}>" for byte in range(256)] + letters + whole
    entries = {
        "model": "llama", "add_space_prefix": False, "tokens": pieces,
        "token_type": [3, 3, 3, 2] + [6] * 256 + [1] * len(letters) + [4] * len(whole), "scores": [-float(i) for i in range(len(pieces))],
        "bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "add_bos_token": True,
    }  # fmt: skip
    return GemmaTokenizer.from_metadata({f"tokenizer.ggml.{name}": value for name, value in entries.items()})


def tiny_gemma(seed: int = 5) -> tuple[Gemma3Model, GemmaTokenizer]:
    """(model with random weights, embedding and output layer one matrix, in eval mode; its tokenizer)."""
    torch.manual_seed(seed)
    model = Gemma3Model(TINY)
    model.out_head.weight = model.tok_emb.weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.dim() == 1 else 0.1)
        model.tok_emb.weight.normal_(std=0.6)
    return model.eval(), tiny_tokenizer()


def pairs(number: int) -> list[dict]:
    """Pairs of unlike length, with a check that a program can verify."""
    words = ["tide", "wall", "book", "clock", "sea", "bell", "sand", "rope", "oar", "net"]
    found = []
    for i in range(number):
        word, polite = words[i % 10], i % 2 == 0
        pair = {"instruction": f"Say {i} {word}", "input": words[i % 7] if i % 3 else "", "output": word}
        pair |= {"chosen": f"{word}, my dear", "rejected": word} if polite else {"chosen": word, "rejected": f"{word}, lazy one"}
        found.append({**pair, "check": {"kind": "word", "accept": [word]}})
    return found


def need_gemma():
    """The real model's file; without it the test is skipped, or fails where everything has to be tested."""
    try:
        return find_gemma3()
    except FileNotFoundError as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"the real model is needed: {error}")
