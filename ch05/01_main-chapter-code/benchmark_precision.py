"""Training speed side by side: chapter 5's GPT with 124M parameters in float32 and in the precision that `auto` chooses here.

    python benchmark_precision.py               # 20 steps of each
    python benchmark_precision.py --steps 50

Each precision runs in a process of its own, so that its peak memory is its own. Seed, weights and batches are equal; the
losses of the same step therefore differ by rounding alone.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from itertools import islice

import torch
from gpt_train import STORY_FILE, calc_loss_batch, create_split_loaders
from previous_chapters import GPT_CONFIG_124M, GPTModel, read_text
from training_tools import adamw, fuse_gelu, peak_memory_gb, use_precision

BATCH_SIZE, CONTEXT, WARM_UP = 2, 256, 3  # the first steps are not timed: buffers are being allocated


def measure(precision: str, steps: int, sizes: dict) -> dict:
    """Train for `steps` steps in this process; returns speed, losses, memory and what the precision came to."""
    cfg, device = {**GPT_CONFIG_124M, "context_length": CONTEXT, **sizes}, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader, _ = create_split_loaders(read_text(STORY_FILE), cfg, BATCH_SIZE)
    torch.manual_seed(123)
    model = GPTModel(cfg).to(device).train()
    fuse_gelu(model)
    chosen = use_precision(model, precision, device)
    optimizer = adamw(model, 4e-4, 0.1, device)
    losses, seconds = [], []
    for input_batch, target_batch in islice((batch for _ in range(steps) for batch in loader), steps + WARM_UP):
        start = time.perf_counter()
        loss = calc_loss_batch(input_batch, target_batch, model, device)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # waits for the device
        seconds.append(time.perf_counter() - start)
    speed = BATCH_SIZE * CONTEXT / statistics.median(seconds[WARM_UP:])
    return {"asked": precision, "chosen": f"{chosen} on {device}", "speed": speed, "losses": losses, "memory": peak_memory_gb(device)}


def report(results: list) -> str:
    """The table, and how far the loss curves lie apart."""
    lines = [f"{'asked':8}{'computed in':14}{'tokens/s':>10}{'last loss':>11}{'peak memory':>13}"]
    lines += [f"{r['asked']:8}{r['chosen']:14}{r['speed']:10.0f}{r['losses'][-1]:11.3f}{r['memory']:10.2f} GB" for r in results]
    plain, other = results
    faster, apart = other["speed"] / plain["speed"], max(abs(a - b) for a, b in zip(plain["losses"], other["losses"], strict=True))
    return "\n".join([*lines, f"{other['asked']} is {faster:.2f} times as fast; losses differ by {apart:.4f} at most"])


def main(argv=None, **sizes) -> int:
    """Measure both and print the table; `sizes` replace those of the 124M model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, choices=range(1, 1001), metavar="N", default=20, help="timed steps of each (default: 20)")
    steps, results = parser.parse_args(argv).steps, []
    here = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{here}; batch {BATCH_SIZE}, context {CONTEXT}, {steps} steps; speed of the median step", flush=True)
    for precision in ("fp32", "auto"):
        with multiprocessing.get_context("spawn").Pool(1) as process:
            results.append(process.apply(measure, (precision, steps, sizes)))
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
