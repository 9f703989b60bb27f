"""How many floating-point operations a GPT takes, how fast a machine does them, and how long a training run will be.

The formulas count multiplications and additions of all matrix products; norms, softmax, GELU and the optimizer are small
beside them and left out, as everybody does who quotes an MFU (model FLOPs utilization).

Run it:  python flops.py --model_name gpt2-small --seq_len 256 --peak measure
"""

import argparse
import math
import re
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from previous_chapters import GPT_CONFIG_124M, MODEL_SIZES, GPTModel, OneLineParser, int_at_least, pick_device
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Peak FLOP/s of the tensor cores for dense products in 16 bits with sums in 32; README.md links the data sheets. Beware of the
# numbers beside them there: those "with sparsity" are twice as large, those of the CUDA cores several times smaller.
flops_per_second = {
    "H100 SXM": {torch.bfloat16: 989e12, torch.float16: 989e12},
    "H100 PCIe": {torch.bfloat16: 756e12, torch.float16: 756e12},
    "A100": {torch.bfloat16: 312e12, torch.float16: 312e12},
    "L4": {torch.bfloat16: 121e12, torch.float16: 121e12},
    "RTX 3090": {torch.bfloat16: 71e12, torch.float16: 71e12},
    "A10G": {torch.bfloat16: 70e12, torch.float16: 70e12},
    "T4": {torch.float16: 65e12},  # older than bfloat16
}
OTHER_PRODUCT = {"ti", "super", "laptop", "mig", "nvl"}  # words that turn a name into that of another, or of a part of one


def model_of_name(device_name: str, flops_per_second_dict: dict) -> str | None:
    """The key whose words all occur in the name of a GPU, or None: "NVIDIA L40S" is no "L4". Folder 02 of chapter 4."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    if words & {"hbm3", "sxm4", "sxm5"}:
        words.add("sxm")  # "NVIDIA H100 80GB HBM3" is the one for SXM boards
    if words & OTHER_PRODUCT:
        return None
    fits = [key for key in flops_per_second_dict if set(re.findall(r"[a-z0-9]+", key.lower())) <= words]
    return max(fits, key=len, default=None)


def get_gpu_model(flops_per_second_dict: dict) -> str | None:
    """The key for this machine's GPU, or None without a GPU and for one that the dictionary lacks. Folder 02 of chapter 4."""
    return model_of_name(torch.cuda.get_device_name(), flops_per_second_dict) if torch.cuda.is_available() else None


def forward_flops_per_token(cfg: dict, num_tokens: int) -> dict[str, int]:
    """FLOPs of a forward pass for one of num_tokens tokens, part by part. Folder 02 of chapter 4, section 2."""
    emb_dim, n_layers = cfg["emb_dim"], cfg["n_layers"]
    return {
        "attention projections": n_layers * 2 * 4 * emb_dim**2,  # queries, keys, values, output
        "attention products": n_layers * 2 * 2 * num_tokens * emb_dim,  # scores, and the sum of values
        "feed-forward": n_layers * 2 * 8 * emb_dim**2,  # to the fourfold width and back
        "output head": 2 * cfg["vocab_size"] * emb_dim,
    }


def training_flops_per_token(cfg: dict, num_tokens: int) -> int:
    """FLOPs of forward and backward pass for one of num_tokens tokens. Folder 02 of chapter 4, section 4."""
    return 3 * sum(forward_flops_per_token(cfg, num_tokens).values())


def prepared(cfg: dict, num_tokens: int) -> dict:
    """A copy of cfg without dropout and with room for num_tokens tokens. Folder 02 of chapter 4."""
    return {**cfg, "drop_rate": 0.0, "context_length": max(num_tokens, cfg["context_length"])}


def batch_loss(model: GPTModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of ids (b, num_tokens) as their own targets: the loss has no meaning, its cost has. Folder 02 of chapter 4."""
    logits = model(ids)  # (b, num_tokens, vocab_size)
    return F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())


def count_flops(cfg: dict, batch_size: int, num_tokens: int, backward: bool = False) -> int:
    """What PyTorch's counter finds for one batch; on device meta, where nothing is computed. Folder 02 of chapter 4, section 2."""
    with torch.device("meta"):
        model = GPTModel(prepared(cfg, num_tokens))
        ids = torch.zeros(batch_size, num_tokens, dtype=torch.int64)  # (batch_size, num_tokens)
    with FlopCounterMode(display=False) as counter:
        loss = batch_loss(model, ids)
        if backward:
            loss.backward()
    return counter.get_total_flops()


def mfu(tokens_per_second: float, flops_per_token: float, peak: float) -> float:
    """Model FLOPs utilization: the share of the peak FLOP/s that a training uses. Folder 02 of chapter 4, section 5.

    Raises ValueError for a share above 1: then the peak is not this machine's, or the work is not what the formula counts.
    """
    share = tokens_per_second * flops_per_token / peak
    if share > 1:
        raise ValueError(f"{tokens_per_second * flops_per_token:.3g} FLOP/s are more than the peak of {peak:.3g}")
    return share


def training_hours(flops: float, peak: float, utilization: float) -> float:
    """Hours that this many FLOPs take at a share `utilization` of the peak FLOP/s. Folder 02 of chapter 4, section 5."""
    return flops / (peak * utilization) / 3600


def wait_for(device: torch.device) -> None:
    """Let a GPU finish: its calls return before the work is done. Folder 02 of chapter 4."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measure_peak(device: torch.device, dtype: torch.dtype, size: int = 1024, repeats: int = 10) -> float:
    """FLOP/s of the fastest of some products of two size x size matrices. Folder 02 of chapter 4, section 5.

    Stands in for the data sheet where there is none, as for a CPU; a GPU needs a size of 8,192 to show its best.
    """
    a = torch.randn(size, size, device=device).to(dtype)  # (size, size)
    b = torch.randn(size, size, device=device).to(dtype)  # (size, size)
    seconds = []
    for _ in range(repeats + 1):
        wait_for(device)
        started = time.perf_counter()
        a @ b
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[1:])  # the first one warms up


def seconds_per_step(
    cfg: dict, batch_size: int, num_tokens: int, device: torch.device, dtype: torch.dtype, steps: int = 5, warmup: int = 1
) -> float:
    """Median seconds of forward and backward pass with random weights and ids. Folder 02 of chapter 4, section 6."""
    model = GPTModel(prepared(cfg, num_tokens)).to(device, dtype)
    ids = torch.randint(cfg["vocab_size"], (batch_size, num_tokens), device=device)  # (batch_size, num_tokens)
    seconds = []
    for _ in tqdm(range(warmup + steps), desc=f"batch {batch_size}", leave=False, disable=None, file=sys.stderr):
        model.zero_grad()
        wait_for(device)
        started = time.perf_counter()
        batch_loss(model, ids).backward()
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[warmup:])


def training_bytes(cfg: dict, batch_size: int, num_tokens: int) -> int:
    """Bytes that one float32 training step with AdamW holds at a time, by adding up what autograd keeps. Folder 02 of chapter 4.

    16 bytes a parameter (weight, gradient, two running means) and the activations; the short-lived results of single
    operations come on top. Nothing is allocated: tensors on device meta have a shape but no data. Section 9.
    """
    with torch.device("meta"):
        model = GPTModel(prepared(cfg, num_tokens))
        ids = torch.zeros(batch_size, num_tokens, dtype=torch.int64)  # (batch_size, num_tokens)
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}  # each piece of memory once, although several operations may keep it

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = batch_loss(model, ids)  # noqa: F841 (it holds what backward would need)
    return 16 * sum(parameter.numel() for parameter in model.parameters()) + sum(storage.nbytes() for storage in kept.values())


def largest_batch(fits: Callable[[int], bool], limit: int = 4096) -> int:
    """The largest batch size up to limit for which fits(batch_size) is true; 0 if 1 is too much. Folder 02 of chapter 4, section 9."""
    good, bad = 0, limit + 1
    guess = 1
    while good + 1 < bad:
        if fits(guess):
            good = guess
        else:
            bad = guess
        guess = min(2 * good, limit) if bad > limit and good else (good + bad) // 2  # double until one fails, then halve the gap
    return good


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch's error says so, in whatever spelling. Folder 02 of chapter 4."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def step_fits(cfg: dict, batch_size: int, num_tokens: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Try one step; only a lack of memory counts as a no. Folder 02 of chapter 4."""
    try:
        seconds_per_step(cfg, batch_size, num_tokens, device, dtype, steps=1, warmup=0)
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def peak_value(text: str) -> float | str:
    """argparse type of --peak: FLOP/s, or the word measure."""
    if text == "measure":
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1e6 <= value < 1e18:
        raise argparse.ArgumentTypeError(f"{text!r} is neither `measure` nor a number of FLOP/s from 1e6 to 1e18")
    return value


def batch_value(text: str) -> int | str:
    """argparse type of --batch_size: a whole number from 1, or the word largest."""
    return text if text == "largest" else int_at_least(1)(text)


def chosen_peak(parser: OneLineParser, peak: float | str | None, device: torch.device, dtype_name: str) -> tuple[float, str]:
    """(FLOP/s, where the number is from); ends the program where --peak is needed."""
    if peak == "measure":
        size = 8192 if device.type == "cuda" else 1024
        return measure_peak(device, DTYPES[dtype_name], size), f"measured, product of two {size} x {size} matrices"
    if peak is not None:
        return peak, "given"
    name = get_gpu_model(flops_per_second) if device.type == "cuda" else None
    known = flops_per_second.get(name, {}).get(DTYPES[dtype_name])
    if known is None:
        asked = torch.cuda.get_device_name() if device.type == "cuda" else device.type
        parser.error(f"no data-sheet peak known for {asked} in {dtype_name}: give --peak in FLOP/s (such as 312e12) or --peak measure")
    return known, f"data sheet of {name}"


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Count the FLOPs of a GPT, time forward and backward pass, and compare with the peak of the machine.")
    parser.add_argument("--model_name", default="gpt2-small", choices=list(MODEL_SIZES), help="size of the model")
    parser.add_argument("--batch_size", type=batch_value, default=1, help="rows of a batch, or `largest` to find what fits a GPU")
    parser.add_argument("--seq_len", type=int_at_least(1), default=256, help="tokens in a row")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="number type of weights and activations")
    parser.add_argument("--peak", type=peak_value, help="peak FLOP/s, or `measure` (default: from the data sheet, known GPUs only)")
    parser.add_argument("--steps", type=int_at_least(1), default=3, help="timed steps, after one to warm up")
    parser.add_argument("--seed", type=int, default=123, help="random seed of weights and ids")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    try:
        device = pick_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    if args.batch_size == "largest" and device.type != "cuda":
        parser.error("--batch_size largest needs a GPU: a CPU does not refuse a batch that is too large, it swaps or dies")
    peak, source = chosen_peak(parser, args.peak, device, args.dtype)
    torch.manual_seed(args.seed)
    cfg, dtype = {**GPT_CONFIG_124M, **MODEL_SIZES[args.model_name], "qkv_bias": True}, DTYPES[args.dtype]
    batch_size = args.batch_size
    if batch_size == "largest":
        batch_size = largest_batch(lambda b: step_fits(cfg, b, args.seq_len, device, dtype))
        if batch_size == 0:
            parser.error(f"not even one row of {args.seq_len} tokens fits the memory of the GPU")
    try:
        report(cfg, args, batch_size, device, peak, source)
    except ValueError as error:
        parser.error(f"MFU above 1: {error} ({source}); that peak cannot be this machine's")
    return 0


def report(cfg: dict, args: argparse.Namespace, batch_size: int, device: torch.device, peak: float, source: str) -> None:
    """Print the count, then time the steps and print speed and MFU. ValueError for an MFU above 1."""
    print(f"{args.model_name}, batch {batch_size}, {args.seq_len} tokens, {args.dtype}, {device.type}")
    for part, flops in forward_flops_per_token(cfg, args.seq_len).items():
        print(f"forward, {part + ':':<24} {flops / 1e6:12,.1f} million FLOPs a token")
    per_token = training_flops_per_token(cfg, args.seq_len)
    print(f"{'forward and backward:':<33} {per_token * batch_size * args.seq_len / 1e9:12,.1f} billion FLOPs a step")
    seconds = seconds_per_step(cfg, batch_size, args.seq_len, device, DTYPES[args.dtype], args.steps)
    tokens_per_second = batch_size * args.seq_len / seconds
    print(f"time: {seconds:.2f} s a step, {tokens_per_second:,.0f} tokens/s, {tokens_per_second * per_token / 1e9:,.0f} GFLOP/s")
    print(f"MFU: {mfu(tokens_per_second, per_token, peak):.2f} of {peak / 1e9:,.0f} GFLOP/s ({source})")


if __name__ == "__main__":
    sys.exit(main())
