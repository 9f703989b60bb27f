"""The command line that all models with a cache share: build one with random weights, let it write, report the cost."""

import sys
import time

import torch
import torch.nn as nn
from kv_cache import generate_text_simple_cached
from previous_chapters import OneLineParser, gpt2_tokenizer, int_at_least, pick_device
from tqdm import tqdm

CACHED_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cached_model_parser(description: str) -> OneLineParser:
    """The options of every script with a cached model; a script may add more before it calls `run_cached_model`."""
    parser = OneLineParser(description)
    parser.add_argument("--prompt", default="Hello, I am", help="text to continue")
    parser.add_argument("--emb_dim", type=int_at_least(1), default=768, help="width of the model")
    parser.add_argument("--n_heads", type=int_at_least(1), default=12, help="attention heads, a divisor of emb_dim")
    parser.add_argument("--n_layers", type=int_at_least(1), default=12, help="blocks")
    parser.add_argument("--max_new_tokens", type=int_at_least(1), default=200, help="tokens to write")
    parser.add_argument("--dtype", choices=CACHED_DTYPES, default="fp32", help="number type of the weights")
    parser.add_argument("--no_kv_cache", action="store_true", help="read the whole text again for each token")
    parser.add_argument("--seed", type=int, default=123, help="random seed of the weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    return parser


def most_memory_mib(device: torch.device) -> float:
    """The most memory used so far in MiB (2**20 bytes): of the GPU if the model is there, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS counts bytes, Linux kibibytes


def wait_for(device: torch.device) -> None:
    """Let a GPU finish what it was told to do, so that a clock read next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def run_cached_model(parser: OneLineParser, model_class: type[nn.Module], argv: list[str] | None, cfg_options: tuple = ()) -> int:
    """Parse argv, build model_class(cfg), generate, print text and cost; returns 0, exits with code 2 on bad input.

    cfg_options: names of the script's own options that go into cfg. The context is the prompt and the new tokens.
    """
    args = parser.parse_args(argv)
    if args.emb_dim % args.n_heads:
        parser.error(f"--emb_dim {args.emb_dim} is not divisible by --n_heads {args.n_heads}")
    tokenizer = gpt2_tokenizer()
    prompt_ids = tokenizer.encode(args.prompt, disallowed_special=())
    if not prompt_ids:
        parser.error("the prompt is empty")
    cfg = {"vocab_size": 50257, "context_length": len(prompt_ids) + args.max_new_tokens, "drop_rate": 0.0, "qkv_bias": False}
    cfg |= {key: getattr(args, key) for key in ("emb_dim", "n_heads", "n_layers", *cfg_options)}
    try:
        device = pick_device(args.device)
        torch.manual_seed(args.seed)
        model = model_class(cfg).to(device, CACHED_DTYPES[args.dtype]).eval()
    except ValueError as error:
        parser.error(str(error))
    idx = torch.tensor([prompt_ids], device=device)  # (1, num_tokens)
    ids, seconds = timed_generation(model, idx, args.max_new_tokens, use_cache=not args.no_kv_cache)
    print(f"text: {tokenizer.decode(ids[0].tolist())!r}")
    print(f"new ids: {ids[0, len(prompt_ids) :][:10].tolist()}" + (" ..." if args.max_new_tokens > 10 else ""))
    print(f"time: {seconds:.2f} s, {args.max_new_tokens / seconds:.1f} new tokens/s, peak memory: {most_memory_mib(device):.0f} MiB")
    return 0


def timed_generation(model: nn.Module, idx: torch.Tensor, max_new_tokens: int, use_cache: bool) -> tuple[torch.Tensor, float]:
    """(generated ids, seconds), with a progress bar that counts passes through the model, one for each new token."""
    with tqdm(total=max_new_tokens, unit="token", file=sys.stderr, leave=False) as bar:
        hook = model.register_forward_hook(lambda *_: bar.update() and None)
        wait_for(idx.device)
        started = time.perf_counter()
        ids = generate_text_simple_cached(model, idx, max_new_tokens, use_cache=use_cache)
        wait_for(idx.device)
        seconds = time.perf_counter() - started
        hook.remove()
    return ids, seconds
