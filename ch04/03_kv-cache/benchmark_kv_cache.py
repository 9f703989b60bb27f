"""What a KV cache is worth on this machine, in one run: with and without it, and beside Hugging Face's `generate`.

    python benchmark_kv_cache.py                       # 124 million weights; five minutes on two cores
    python benchmark_kv_cache.py --emb_dim 192 --n_heads 6 --n_layers 6 --prompt_length 128 --steps 8 --rounds 1

All models have the same random weights and must choose the same tokens. Runs that are compared take turns, so that a busy
moment of the machine hits both, and medians are reported. benchmark_kv_cache.json is the result that README.md quotes.
"""

import functools
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import gpt_with_kv_cache
import gpt_with_kv_cache_object
import gpt_with_kv_cache_optimized
import torch
import torch.nn as nn
from benchmark_tools import assert_equal_ids, interleaved, processor_name, read_bandwidth, timed, waiting_programs
from kv_cache import generate_text_simple_cached
from previous_chapters import GPTModel, OneLineParser, generate_text_simple, int_at_least


def step_bytes(model: nn.Module, cached_tokens: int, rows: int) -> int:
    """Bytes that one decoding step reads: the weights of all linear layers, and cached_tokens keys and values for each row."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    weights = sum(parameter.nbytes for layer in layers for parameter in layer.parameters())
    cfg, bytes_per_number = model.cfg, model.out_head.weight.element_size()
    return weights + 2 * rows * cached_tokens * cfg["n_layers"] * cfg["emb_dim"] * bytes_per_number


def hugging_face_twin(model: nn.Module):
    """A GPT2LMHeadModel with the same weights as a GPTModel without qkv bias, in eval mode."""
    from transformers import GPT2Config, GPT2LMHeadModel  # here, because it takes seconds

    cfg, ours = model.cfg, model.state_dict()
    twin = GPT2LMHeadModel(GPT2Config(
        vocab_size=cfg["vocab_size"], n_positions=cfg["context_length"], n_embd=cfg["emb_dim"], n_layer=cfg["n_layers"],
        n_head=cfg["n_heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None,
    )).eval()  # fmt: skip
    theirs = {"transformer.wte.weight": ours["tok_emb.weight"], "transformer.wpe.weight": ours["pos_emb.weight"]}
    theirs |= {"lm_head.weight": ours["out_head.weight"], "transformer.ln_f.weight": ours["final_norm.scale"]}
    theirs |= {"transformer.ln_f.bias": ours["final_norm.shift"]}
    for i in range(cfg["n_layers"]):
        block, there = f"trf_blocks.{i}.", f"transformer.h.{i}."
        qkv = torch.cat([ours[f"{block}att.{name}.weight"] for name in ("W_query", "W_key", "W_value")])
        theirs |= {f"{there}attn.c_attn.weight": qkv.T, f"{there}attn.c_attn.bias": torch.zeros(len(qkv))}
        for norm, name in (("norm1", "ln_1"), ("norm2", "ln_2")):
            theirs |= {f"{there}{name}.weight": ours[f"{block}{norm}.scale"], f"{there}{name}.bias": ours[f"{block}{norm}.shift"]}
        for linear, name in (("att.out_proj", "attn.c_proj"), ("ff.layers.0", "mlp.c_fc"), ("ff.layers.2", "mlp.c_proj")):
            theirs |= {f"{there}{name}.weight": ours[f"{block}{linear}.weight"].T, f"{there}{name}.bias": ours[f"{block}{linear}.bias"]}
    twin.load_state_dict(theirs, strict=True)
    return twin


def with_and_without(cfg: dict, prompt_length: int, new_tokens: int, rounds: int, seed: int) -> dict:
    """Seconds for new_tokens after a short prompt, by chapter 4's model and by the three models with a cache."""
    idx, ids_and_seconds = torch.randint(cfg["vocab_size"], (1, prompt_length)), {}
    classes = {
        "no cache (gpt.py)": GPTModel, "gpt_with_kv_cache.py": gpt_with_kv_cache.GPTModel,
        "gpt_with_kv_cache_object.py": gpt_with_kv_cache_object.GPTModel,
        "gpt_with_kv_cache_optimized.py": gpt_with_kv_cache_optimized.GPTModel,
    }  # fmt: skip
    for name, model_class in classes.items():
        torch.manual_seed(seed)
        model = model_class(cfg).eval()
        if model_class is gpt_with_kv_cache_optimized.GPTModel:
            gpt_with_kv_cache_optimized.transpose_storage(model)
        if model_class is GPTModel:
            generate = functools.partial(generate_text_simple, model, idx, new_tokens, cfg["context_length"])
        else:
            generate = functools.partial(generate_text_simple_cached, model, idx, new_tokens)
        model(idx)  # the first pass is slower than all others
        ids_and_seconds[name] = functools.partial(timed, generate)
    ids, seconds = interleaved(ids_and_seconds, rounds)
    assert_equal_ids(ids)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    slowest = medians["no cache (gpt.py)"]
    return {
        "prompt_tokens": prompt_length, "new_tokens": new_tokens, "rows": 1, "rounds": rounds,
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "times_faster_than_without": {name: round(slowest / value, 2) for name, value in medians.items()},
    }  # fmt: skip


def our_steps(model: nn.Module, idx: torch.Tensor, steps: int) -> tuple[torch.Tensor, list[float]]:
    """(ids, seconds of each decoding step after the prompt) of the optimized model."""
    times = []
    hook = model.register_forward_hook(lambda *_: times.append(time.perf_counter()))
    ids = generate_text_simple_cached(model, idx, steps + 1)
    hook.remove()
    return ids, [after - before for before, after in zip(times, times[1:])]


def their_steps(model: nn.Module, idx: torch.Tensor, steps: int) -> tuple[torch.Tensor, list[float]]:
    """The same of Hugging Face's `generate`, greedy, with its default cache."""
    times = []
    hook = model.register_forward_hook(lambda *_: times.append(time.perf_counter()))
    options = {"max_new_tokens": steps + 1, "do_sample": False, "attention_mask": torch.ones_like(idx), "pad_token_id": 0}
    ids = model.generate(idx, **options)
    hook.remove()
    return ids, [after - before for before, after in zip(times, times[1:])]


def beside_hugging_face(cfg: dict, prompt_length: int, rows: int, steps: int, rounds: int, seed: int) -> dict:
    """Seconds of one decoding step after a long prompt, ours and Hugging Face's, and the share of the memory's speed."""
    torch.manual_seed(seed)
    ours = gpt_with_kv_cache_optimized.GPTModel(cfg).eval()
    twin = hugging_face_twin(ours)
    gpt_with_kv_cache_optimized.transpose_storage(ours)
    idx, bandwidths = torch.randint(cfg["vocab_size"], (rows, prompt_length)), []

    def ours_after_bandwidth():
        bandwidths.append(read_bandwidth())
        return our_steps(ours, idx, steps)

    ids, seconds = interleaved({"ours": ours_after_bandwidth, "Hugging Face": lambda: their_steps(twin, idx, steps)}, rounds)
    assert_equal_ids(ids)
    median = {name: statistics.median(step for one in values for step in one) for name, values in seconds.items()}
    read, bandwidth = step_bytes(ours, prompt_length + steps // 2, rows), statistics.median(bandwidths)
    return {
        "prompt_tokens": prompt_length, "rows": rows, "steps": steps, "rounds": rounds,
        "ms_per_step_ours": round(1e3 * median["ours"], 2), "ms_per_step_hugging_face": round(1e3 * median["Hugging Face"], 2),
        "times_faster_than_hugging_face": round(median["Hugging Face"] / median["ours"], 2),
        "tokens_per_s_ours": round(rows / median["ours"], 1), "tokens_per_s_hugging_face": round(rows / median["Hugging Face"], 1),
        "read_gb_per_step": round(read / 1e9, 4), "read_bandwidth_gb_per_s": round(bandwidth / 1e9, 1),
        "share_of_bandwidth_ours": round(read / median["ours"] / bandwidth, 3),
    }  # fmt: skip


def run(args) -> dict:
    """All figures as one dictionary."""
    torch.manual_seed(args.seed)
    load = waiting_programs()
    cfg = {key: getattr(args, key) for key in ("vocab_size", "emb_dim", "n_heads", "n_layers")} | {"drop_rate": 0.0, "qkv_bias": False}
    short = cfg | {"context_length": 4 + args.max_new_tokens}
    long = cfg | {"context_length": args.prompt_length + args.steps + 1}
    with torch.inference_mode():
        cached = with_and_without(short, 4, args.max_new_tokens, args.rounds, args.seed)
        steps = [beside_hugging_face(long, args.prompt_length, rows, args.steps, args.rounds, args.seed) for rows in args.rows]
    return {
        "processor": processor_name(), "threads": torch.get_num_threads(), "python": platform.python_version(),
        "torch": torch.__version__, "transformers": importlib.metadata.version("transformers"), "dtype": "float32",
        "load_before": load, "load_after": waiting_programs(),
        "seed": args.seed, "cfg": cfg, "with_and_without": cached, "beside_hugging_face": steps,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Time generation with and without a KV cache, and beside Hugging Face, on the CPU.")
    for name, default, text in (
        ("emb_dim", 768, "width of the model"), ("n_heads", 12, "attention heads, a divisor of emb_dim"), ("n_layers", 12, "blocks"),
        ("vocab_size", 50257, "ids"), ("max_new_tokens", 200, "tokens to write with and without a cache"),
        ("prompt_length", 512, "tokens in the cache when the steps beside Hugging Face are timed"),
        ("steps", 16, "steps to time in each round"), ("rounds", 3, "how often the runs take turns"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int_at_least(1), default=default, help=text)
    parser.add_argument("--rows", type=int_at_least(1), nargs="+", default=[1, 16], help="texts at a time beside Hugging Face")
    parser.add_argument("--seed", type=int, default=123, help="random seed of weights and prompts")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    if args.emb_dim % args.n_heads:
        parser.error(f"--emb_dim {args.emb_dim} is not divisible by --n_heads {args.n_heads}")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json: no such folder: {args.json.parent}")
    text = json.dumps(run(args), indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
