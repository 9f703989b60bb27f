"""What each part of the better training loop is worth: train with one part, with none, and with all, over rates and seeds.

Run it:  python ablation.py --rates 0.01 --seeds 123 --epochs 2        (a quick look; the defaults take much longer)

The results, one entry for each training, are written after every training; ablation.json beside this file holds those of the
defaults, and appendix-D.ipynb draws them.
"""

import argparse
import contextlib
import io
import json
import math
import os
import platform
import sys
from pathlib import Path

import torch
from previous_chapters import (
    GPTModel,
    OneLineParser,
    evaluate_model,
    fuse_gelu,
    gpt2_tokenizer,
    int_at_least,
    pick_device,
    positive_float,
)
from story_data import SMALL_CONFIG, SmallVocabulary, create_loaders, split_story
from tqdm import tqdm
from training_loop import train_model

FLOOR = 1e-5  # first rate of the warm-up, last rate of the decay
VARIANTS = {  # name -> parts of the loop that are on
    "plain": (),
    "warm-up": ("warm-up",),
    "cosine": ("cosine",),
    "clipping": ("clipping",),
    "all": ("warm-up", "cosine", "clipping"),
}


def settings_of(parts: tuple, peak_lr: float, warmup_steps: int) -> dict:
    """Return arguments for train_model; each part that is missing gets the value that switches it off."""
    return {
        "warmup_steps": warmup_steps if "warm-up" in parts else 0,
        "initial_lr": FLOOR,
        "min_lr": FLOOR if "cosine" in parts else peak_lr,  # a decay from the peak to the peak
        "max_norm": 1.0 if "clipping" in parts else math.inf,
    }


def train_variant(parts: tuple, peak_lr: float, seed: int, texts: tuple[str, str], args: argparse.Namespace) -> dict:
    """Train a fresh model; return its losses: of the whole training text, and of the validation text (last, best of all epochs)."""
    tokenizer = SmallVocabulary(gpt2_tokenizer(), texts)
    cfg = {**SMALL_CONFIG, "emb_dim": args.emb_dim, "n_layers": args.n_layers, "vocab_size": len(tokenizer.old_ids)}
    loaders = create_loaders(texts, tokenizer, cfg["context_length"], args.batch_size)
    num_batches = len(loaders[0])
    device = pick_device(args.device)
    torch.manual_seed(seed)
    model = GPTModel(cfg).to(device)
    fuse_gelu(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, weight_decay=0.1)
    settings = settings_of(parts, peak_lr, warmup_steps=args.epochs * num_batches // 5)
    with contextlib.redirect_stdout(io.StringIO()):
        _, val_losses, _, _ = train_model(model, *loaders, optimizer, device, args.epochs, num_batches, 1, "Nell", tokenizer, **settings)
    train_loss, val_loss = evaluate_model(model, *loaders, device, eval_iter=num_batches)
    return {"train_loss": train_loss, "val_loss": val_loss, "best_val_loss": min(*val_losses, val_loss)}


def machine() -> str:
    """Processor, cores and PyTorch: what one needs to know about a log."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = named[0] if named else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores, {processor}, Python {platform.python_version()}, torch {torch.__version__}"


def run(args: argparse.Namespace) -> list[dict]:
    """Train every variant at every rate with every seed; write the log after each training and return its runs."""
    texts, runs = split_story(), []
    grid = [(seed, rate, name) for seed in args.seeds for rate in args.rates for name in VARIANTS]
    sizes = {key: getattr(args, key) for key in ("emb_dim", "n_layers", "epochs", "batch_size")}
    for seed, rate, name in tqdm(grid, unit="training", disable=None):
        losses = train_variant(VARIANTS[name], rate, seed, texts, args)
        runs.append({"variant": name, "peak_lr": rate, "seed": seed, **{key: round(loss, 4) for key, loss in losses.items()}})
        log = {"machine": machine(), "device": args.device, "settings": sizes, "runs": runs}
        part = Path(args.output).with_suffix(".part")
        part.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
        part.replace(args.output)
    return runs


def print_table(runs: list[dict]) -> None:
    """Print for each rate and variant the mean and the range of the final training loss over the seeds."""
    for rate in dict.fromkeys(run["peak_lr"] for run in runs):
        for name in VARIANTS:
            losses = [run["train_loss"] for run in runs if (run["variant"], run["peak_lr"]) == (name, rate)]
            mean = sum(losses) / len(losses)
            print(f"peak rate {rate:<7g} {name:9} train loss {mean:.3f} ({min(losses):.3f} to {max(losses):.3f})")


def main(argv: list[str] | None = None) -> int:
    """Parse the options, train, print the table; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Measure what warm-up, cosine decay and clipping are worth on the course's story.")
    parser.add_argument("--rates", type=positive_float, nargs="+", default=[1e-3, 3e-3, 1e-2, 3e-2], help="peak learning rates")
    parser.add_argument("--seeds", type=int, nargs="+", default=[123, 124, 125, 126, 127], help="one training for each")
    parser.add_argument("--epochs", type=int_at_least(1), default=15, help="passes over the text")
    parser.add_argument("--batch_size", type=int_at_least(1), default=4, help="windows per update")
    parser.add_argument("--emb_dim", type=int_at_least(4), default=SMALL_CONFIG["emb_dim"], help="width of the model, a multiple of 4")
    parser.add_argument("--n_layers", type=int_at_least(1), default=SMALL_CONFIG["n_layers"], help="transformer blocks")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--output", default="runs/ablation.json", help="log of all trainings (JSON)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing log")
    args = parser.parse_args(argv)
    if Path(args.output).exists() and not args.overwrite:
        parser.error(f"{args.output} exists: add --overwrite to replace it, or name another file")
    try:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        print_table(run(args))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, f"stopped; the trainings that were finished are in {args.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
