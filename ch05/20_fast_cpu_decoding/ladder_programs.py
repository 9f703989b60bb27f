"""The programs that ladder.py lets take turns: for each model, rung by rung, what writes tokens and how many bytes it reads a token."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from compiled_linears import exchange_linears
from fast_decode import FastModel, file_blocks
from gemma3 import find_gemma3, load_gemma3
from llama import (
    find_smollm2,
    generate_text_basic_stream,
    hugging_face_program,
    llama_cpp_program,
    load_smollm2,
    read_gguf,
    smollm2_twin,
    weight_bytes,
)
from previous_chapters import (
    MODELS_DIR,
    GPTModel,
    KVCache,
    hugging_face_config,
    hugging_face_weights,
    load_pretrained_gpt,
)

GPT_124M = {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "drop_rate": 0.0, "qkv_bias": True}


@dataclass
class Rung:
    """A program from a prompt (1, num_tokens) to (ids, tokens a second), the bytes of weights and of one cached token that it reads."""

    run: Callable
    weight_bytes: int
    cache_bytes: int
    exact: bool = True  # whether it computes with the model's float32 weights, so that its text must be the same


def stream_program(model, cache, new_tokens: int) -> Callable:
    """Writes with a model and its cache. The prompt must be the same each time: all but its last token stay in the cache."""

    def run(idx):
        cache.crop(min(len(cache), idx.shape[1] - 1))
        times, ids = [], []
        for token in generate_text_basic_stream(model, idx, new_tokens, cache=cache):
            times.append(time.perf_counter())
            ids.append(int(token))
        return ids, 1 / statistics.median(after - before for before, after in zip(times, times[1:]))

    return run


def of_new_tokens(program: Callable) -> Callable:
    """A program of folder 07's benchmark, which returns a whole text and two speeds, in the form of `stream_program`."""

    def run(idx):
        ids, (_, writing) = program(idx)
        return None if ids is None else ids[0, idx.shape[1] :].tolist(), writing

    return run


def fast_rungs(model, forms, new_tokens: int, threads: int) -> dict[str, Rung]:
    """The compiled steps of one model; forms: name -> what FastModel takes as weights."""
    rungs = {}
    for name, weights in forms.items():
        fast = FastModel(model, weights, threads)
        cache_bytes = 2 * fast.cfg["n_layers"] * fast.groups * fast.head_dim * 4
        rungs[name] = Rung(stream_program(fast, fast.new_cache(), new_tokens), fast.reads, cache_bytes, name == "one step, float32")
    return rungs


FORMS = {"one step, float32": "float32", "one step, int8": "int8", "one step, int8 in blocks": "int8_blocks"}


def torch_rung(model, cfg: dict, cache_bytes: int, new_tokens: int) -> Rung:
    """A PyTorch model of this course with its KVCache."""
    cache = KVCache(cfg["n_layers"], max_length=cfg["context_length"])
    return Rung(stream_program(model, cache, new_tokens), weight_bytes(model), cache_bytes)


def smollm2_rungs(prompt_tokens: int, new_tokens: int, threads: int) -> dict[str, Rung]:
    """All rungs, from the model to read to the file's own blocks, and the two programs beside them."""
    metadata, tensors = read_gguf(find_smollm2())
    plain, packed = load_smollm2(fast=False)[0], load_smollm2()[0]
    cfg, fast = plain.cfg, load_smollm2()[0]
    exchanged = exchange_linears(load_smollm2(fast=False)[0], "float32", threads)
    forms = {**FORMS, "one step, the file's 4 bits": file_blocks(metadata, tensors)}
    forms["one step, 4 bits, rounded vector"] = file_blocks(metadata, tensors, rounded=True)
    rungs = fast_rungs(fast, forms, new_tokens, threads)
    per_token = rungs["one step, float32"].cache_bytes
    ours = {"plain loop of calls": plain, "packed weights": packed, "compiled products": exchanged}
    ours = {name: torch_rung(model, cfg, per_token, new_tokens) for name, model in ours.items()}
    ours["compiled products"].weight_bytes = ours["plain loop of calls"].weight_bytes
    twin = Rung(of_new_tokens(hugging_face_program(smollm2_twin(), new_tokens)), weight_bytes(plain), per_token)
    return {**ours, **rungs, "Hugging Face": twin, **llama_cpp_rung(find_smollm2(), tensors, prompt_tokens, new_tokens, per_token)}


def llama_cpp_rung(path, tensors, prompt_tokens: int, new_tokens: int, per_token: int) -> dict[str, Rung]:
    """llama.cpp on a GGUF file, whose cache has 16 bits a number; nothing where its package is missing."""
    program = llama_cpp_program(path, new_tokens, prompt_tokens + new_tokens + 8)
    if program is None:
        return {}
    file_bytes = sum(size for *_, size in tensors.table.values())
    return {"llama.cpp, the file's 4 bits": Rung(of_new_tokens(program), file_bytes, per_token // 2, exact=False)}


def gpt_rungs(model: GPTModel, cfg: dict, new_tokens: int, threads: int) -> dict[str, Rung]:
    """Chapter 4's GPTModel in compiled steps beside Hugging Face's GPT-2 with the same weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {**cfg, "tied": False}
    twin = GPT2LMHeadModel(GPT2Config(**hugging_face_config(settings, torch.float32))).eval()
    twin.load_state_dict(hugging_face_weights(model.state_dict(), settings))
    rungs = fast_rungs(model, FORMS, new_tokens, threads)
    per_token = rungs["one step, float32"].cache_bytes
    return {**rungs, "Hugging Face": Rung(of_new_tokens(hugging_face_program(twin, new_tokens)), weight_bytes(model), per_token)}


def mini_rungs(prompt_tokens: int, new_tokens: int, threads: int) -> dict[str, Rung]:
    model, cfg = load_pretrained_gpt({}, "mini", MODELS_DIR)
    return gpt_rungs(model, cfg, new_tokens, threads)


def gpt_124m_rungs(prompt_tokens: int, new_tokens: int, threads: int) -> dict[str, Rung]:
    """GPT-2's smallest size with random weights."""
    torch.manual_seed(123)
    return gpt_rungs(GPTModel(GPT_124M).eval(), GPT_124M, new_tokens, threads)


def gemma_rungs(prompt_tokens: int, new_tokens: int, threads: int) -> dict[str, Rung]:
    """FileNotFoundError where the opt-in packages are missing."""
    model, _ = load_gemma3()
    rungs = fast_rungs(model, FORMS, new_tokens, threads)
    per_token = rungs["one step, float32"].cache_bytes
    ours = {"PyTorch": torch_rung(model, model.cfg, per_token, new_tokens)}
    tensors = read_gguf(find_gemma3())[1]
    return {**ours, **rungs, **llama_cpp_rung(find_gemma3(), tensors, prompt_tokens, new_tokens, per_token)}


MODELS = {  # name -> (its rungs, the longest context, the size of its vocabulary)
    "SmolLM2-135M": (smollm2_rungs, 8192, 49152),
    "gpt2-mini": (mini_rungs, 256, 50257),
    "GPT-2 124M, random weights": (gpt_124m_rungs, 1024, 50257),
    "Gemma 3 270M": (gemma_rungs, 32768, 262144),
}
