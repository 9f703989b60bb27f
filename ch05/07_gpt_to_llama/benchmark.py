"""How fast SmolLM2 writes here: this folder's code, Hugging Face's `generate` on the same weights, and the machine's limit.

    python benchmark.py                       # the number type that this processor is faster with
    python benchmark.py --dtype fp32 --new_tokens 32 --rows 16

For each new token every weight travels once from memory to the processor. The limit is therefore the bytes of the weights
over the bandwidth of `F.linear`, which is measured first on matrices of the model's own shapes.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from llama import SMOLLM2_CONFIG_135M, generate_text_basic_stream, generate_text_simple, load_smollm2

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROMPT = "Tell me in a few sentences how a tide clock works."


def seconds_of(function, repeats: int) -> float:
    """The shortest of several runs, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def measure_limit(dtype: torch.dtype, layers: int = 30, repeats: int = 5) -> tuple[int, float]:
    """(bytes of the weights that a token needs, seconds that F.linear takes to read them once), without attention or norms."""
    emb_dim, hidden, kv = SMOLLM2_CONFIG_135M["emb_dim"], SMOLLM2_CONFIG_135M["hidden_dim"], 192
    shapes = [(kv, emb_dim), (kv, emb_dim), (emb_dim, emb_dim), (emb_dim, emb_dim), (hidden, emb_dim), (hidden, emb_dim), (emb_dim, hidden)]
    weights = [torch.rand(shape, dtype=dtype) for _ in range(layers) for shape in shapes]  # each its own memory, as in the model
    if layers == 30:
        weights.append(torch.rand(SMOLLM2_CONFIG_135M["vocab_size"], emb_dim, dtype=dtype))
    inputs = {width: torch.rand(1, width, dtype=dtype) for width in (emb_dim, hidden)}

    def read_all():
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    with torch.inference_mode():
        seconds = seconds_of(read_all, repeats)
    return sum(weight.numel() * weight.element_size() for weight in weights), seconds


def faster_dtype() -> str:
    """The number type whose weights of one layer are read sooner: bf16 is half the bytes, but slow on some processors."""
    return min(DTYPES, key=lambda name: measure_limit(DTYPES[name], layers=1)[1])


def decode_ours(model, ids, new_tokens: int) -> float:
    """Seconds a token of cached greedy decoding, the prompt not counted."""
    times = []
    for _ in generate_text_basic_stream(model, ids, new_tokens):
        times.append(time.perf_counter())
    return (times[-1] - times[0]) / (len(times) - 1)


def decode_hugging_face(model, ids, new_tokens: int, dtype: torch.dtype):
    """(seconds a token, same ids as ours) of `LlamaForCausalLM.generate` on the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM  # here, because it takes seconds

    cfg = SMOLLM2_CONFIG_135M
    theirs = LlamaForCausalLM(LlamaConfig(
        vocab_size=cfg["vocab_size"], hidden_size=cfg["emb_dim"], intermediate_size=cfg["hidden_dim"], num_hidden_layers=cfg["n_layers"],
        num_attention_heads=cfg["n_heads"], num_key_value_heads=cfg["n_kv_groups"], max_position_embeddings=cfg["context_length"],
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": cfg["rope_base"]}, tie_word_embeddings=True,
    )).to(dtype).eval()
    from gguf_reader import HuggingFaceNames, find_smollm2, read_gguf

    theirs.load_state_dict(dict(HuggingFaceNames(*read_gguf(find_smollm2())).items()), strict=False)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 2, "attention_mask": torch.ones_like(ids)}
    theirs.generate(ids, max_new_tokens=4, min_new_tokens=4, **options)
    started = time.perf_counter()
    theirs.generate(ids, max_new_tokens=1, min_new_tokens=1, **options)
    first = time.perf_counter() - started
    started = time.perf_counter()
    out = theirs.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, **options)
    seconds = (time.perf_counter() - started - first) / (new_tokens - 1)
    return seconds, torch.equal(out, generate_text_simple(model, ids, new_tokens))


def run(args) -> dict:
    """Take all figures, in one process, one after the other."""
    torch.manual_seed(123)
    name = faster_dtype() if args.dtype == "auto" else args.dtype
    dtype = DTYPES[name]
    weight_bytes, limit = measure_limit(dtype)
    model, tokenizer = load_smollm2(dtype)
    ids = torch.tensor([tokenizer.encode_chat([{"role": "user", "content": PROMPT}])])
    decode_ours(model, ids, 4)
    ours = decode_ours(model, ids, args.new_tokens)
    theirs, same_ids = decode_hugging_face(model, ids, args.new_tokens, dtype)
    rows = ids.repeat(args.rows, 1)
    batch = decode_ours(model, rows, max(2, args.new_tokens // 2))
    return {
        "torch": torch.__version__, "threads": torch.get_num_threads(), "dtype": name, "weight_mb": round(weight_bytes / 1e6, 1),
        "linear_gb_per_s": round(weight_bytes / limit / 1e9, 2), "limit_tokens_per_s": round(1 / limit, 1),
        "ours_tokens_per_s": round(1 / ours, 1), "share_of_limit": round(limit / ours, 3),
        "hugging_face_tokens_per_s": round(1 / theirs, 1), "same_ids": same_ids, "speed_up": round(theirs / ours, 2),
        "rows": args.rows, "batch_tokens_per_s": round(args.rows / batch, 1),
    }


def main(argv=None) -> None:
    """Print the figures side by side."""
    parser = argparse.ArgumentParser(description="Decoding speed of SmolLM2-135M on this machine.", allow_abbrev=False)
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="auto: the faster one here (default)")
    parser.add_argument("--new_tokens", type=int, default=64, help="tokens to write (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=64, help="rows of the batched run (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    if args.new_tokens < 4 or args.rows < 1:
        parser.exit(2, "benchmark.py: error: --new_tokens must be at least 4 and --rows at least 1\n")
    try:
        figures = run(args)
    except (OSError, ValueError) as error:
        parser.exit(2, f"benchmark.py: error: {error}\n")
    for key, value in figures.items():
        print(f"{key:28} {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
