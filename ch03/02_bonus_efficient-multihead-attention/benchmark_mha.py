"""Time the nine attentions of mha_implementations.py: forward, forward + backward, both compiled, and their peak memory.

Each variant is first compared with PyTorch's fused attention. The results go into a JSON file, variant by variant, so that
an interrupted run goes on with --resume; tables and plots are drawn from that file and can be drawn again with --draw_only.

Run it:  python benchmark_mha.py --batch_size 2 --context_length 256 --repeats 3 --output my-times.json
"""

import platform
import re
import sys
import warnings
from pathlib import Path

import torch
import torch.nn as nn
from mha_implementations import VARIANTS, build_variants
from mha_results import LOG, draw, put, read_log, setting_of, write_log
from mha_timing import (
    forward_backward,
    peak_bytes,
    prepare_function,
    time_pytorch_function,
    time_pytorch_function_forward_backward,
    why_not_compiled,
)
from previous_chapters import OneLineParser, int_at_least, pick_device
from tqdm import tqdm

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@torch.inference_mode()
def check_equal(name: str, variant: nn.Module, sdpa: nn.Module, x: torch.Tensor) -> None:
    """RuntimeError unless the variant gives the output of the fused call: a faster wrong answer is no result."""
    difference, allowed = (variant(x) - sdpa(x)).abs().max().item(), 1e-5 if x.dtype == torch.float32 else 0.05
    if not difference <= allowed:
        raise RuntimeError(f"{name} differs from the fused call by {difference:.2g}")


def measure(name: str, variant: nn.Module, x: torch.Tensor, repeats: int, compiled: bool) -> dict:
    """Times as mode -> (mean, deviation) in ms, memory as forward_bytes and forward_backward_bytes, of one variant at input x.

    FlexAttention is timed compiled only, and on a CPU it has no backward pass.
    """
    found, inputs, flex = {"repeats": repeats}, x.clone().requires_grad_(), name == "flex"
    if not flex:
        found["forward"] = time_pytorch_function(variant.eval(), x, num_repeats=repeats)
        found["forward_backward"] = time_pytorch_function_forward_backward(variant.train(), inputs, num_repeats=repeats)
        variant.zero_grad(set_to_none=True)
        inputs.grad = None
        found["forward_backward_bytes"] = peak_bytes(forward_backward, variant, inputs)
    if compiled:
        fast = prepare_function(variant)
        found["forward_compiled"] = time_pytorch_function(fast.eval(), x, num_repeats=repeats)
        if not (flex and x.device.type == "cpu"):
            found["forward_backward_compiled"] = time_pytorch_function_forward_backward(fast.train(), inputs, num_repeats=repeats)
    if compiled or not flex:
        with torch.inference_mode():
            found["forward_bytes"] = peak_bytes((fast if flex else variant).eval(), x)
    variant.zero_grad(set_to_none=True)
    torch.compiler.reset()
    return found


def machine_of(device: torch.device) -> dict:
    """What one needs to know to read a time: device, threads, version."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    name = named[1].strip() if named else platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    return {"device": f"{name} ({device.type})", "threads": torch.get_num_threads(), "torch": str(torch.__version__)}


def check_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """ValueError if the device cannot compute with the number type."""
    try:
        if device.type == "cuda" and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
            raise RuntimeError("no bfloat16")
        block = torch.ones(2, 2, device=device, dtype=dtype)
        torch.softmax(block @ block, dim=-1)
    except (RuntimeError, TypeError):
        raise ValueError(f"--dtype {str(dtype).removeprefix('torch.')} does not work on {device.type}") from None


def build_parser() -> OneLineParser:
    parser = OneLineParser("Time nine implementations of causal multi-head attention and compare their results.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--seed", type=int, default=123, help="random seed of weights and input")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="number type")
    parser.add_argument("--batch_size", type=int_at_least(1), default=8, help="sequences")
    parser.add_argument("--context_length", type=int_at_least(1), nargs="+", default=[1024], help="tokens; several give a series")
    parser.add_argument("--d_out", type=int_at_least(1), default=768, help="width of inputs and outputs")
    parser.add_argument("--num_heads", type=int_at_least(1), default=12, help="attention heads, a divisor of d_out")
    parser.add_argument("--repeats", type=int_at_least(1), default=5, help="timed calls of each mode")
    parser.add_argument("--only", choices=VARIANTS, nargs="+", default=list(VARIANTS), help="variants to time")
    parser.add_argument("--no_compile", action="store_true", help="leave the compiled modes out, which take minutes to compile")
    parser.add_argument("--resume", action="store_true", help="leave out what the log already holds")
    parser.add_argument("--draw_only", action="store_true", help="measure nothing: plots, and the README's tables, from the log")
    parser.add_argument("--output", type=Path, default=LOG, help="the log; plots are written beside it")
    return parser


def benchmark(args, device: torch.device, log: list[dict]) -> None:
    """Measure what is asked for and store each result at once; prints why something is left out."""
    reason = "--no_compile" if args.no_compile else why_not_compiled(device)
    if reason:
        print(f"compiled modes skipped: {reason}")
    if device.type == "cpu" and "flex" in args.only:
        print("FlexAttention: no backward pass on a CPU" + (", and uncompiled it is only a reference: skipped" if reason else ""))
    bar = tqdm(total=len(args.context_length) * len(args.only), file=sys.stderr)
    for context_length in args.context_length:
        torch.manual_seed(args.seed)
        variants = build_variants(args.d_out, args.d_out, context_length, args.num_heads)
        x = torch.randn(args.batch_size, context_length, args.d_out).to(device, DTYPES[args.dtype])  # (b, num_tokens, d_out)
        sizes = {"dtype": args.dtype, "batch_size": args.batch_size, "context_length": context_length}
        sizes |= {"d_out": args.d_out, "num_heads": args.num_heads, **machine_of(device)}
        done = [old["variant"] for old in log if setting_of(old) == setting_of(sizes)] if args.resume else []
        sdpa = variants["sdpa"].to(device, DTYPES[args.dtype])
        for name in args.only:
            bar.set_description(f"{VARIANTS.get(name)}, {context_length} tokens")
            if name not in variants:
                print(f"{VARIANTS[name]}: skipped, PyTorch {torch.__version__} does not have it")
            elif name not in done and not (name == "flex" and reason):
                variant = variants[name].to(device, DTYPES[args.dtype])
                check_equal(name, variant, sdpa, x)
                put(log, {"variant": name, **sizes, **measure(name, variant, x, args.repeats, not reason)})
                write_log(args.output, log)
            bar.update()
    bar.close()


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.d_out % args.num_heads:
        parser.error(f"--d_out {args.d_out} is not divisible by --num_heads {args.num_heads}")
    if not args.output.resolve().parent.is_dir():
        parser.error(f"--output {args.output}: no such folder")
    if args.draw_only and not args.output.exists():
        parser.error(f"--output {args.output}: no such file to draw")
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")  # once, for the comparison
    try:
        log = read_log(args.output)
        if not args.draw_only:
            device = pick_device(args.device)
            check_dtype(device, DTYPES[args.dtype])
            benchmark(args, device, log)
    except ValueError as error:
        parser.error(str(error))
    print(draw(args.output, into_readme=args.draw_only))
    print(f"plots are beside {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
