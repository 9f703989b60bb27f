"""Warm-up, cosine decay and clipping from PyTorch itself: a short training that shows its learning rates.

Appendix D writes the schedule out by hand and explains it; here two of PyTorch's schedulers, joined by a third, do the same.

Run it:  python lr_schedulers.py --warmup_steps 8 --total_steps 40
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn as nn
from matplotlib.figure import Figure
from previous_chapters import (
    COLORS,
    STORY_CONFIG,
    STORY_FILE,
    GPTModel,
    OneLineParser,
    calc_loss_batch,
    create_split_loaders,
    int_at_least,
    pick_device,
    positive_float,
    read_text,
)
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader
from tqdm import tqdm

TINY_CONFIG = {**STORY_CONFIG, "context_length": 64, "emb_dim": 32, "n_layers": 1}


def make_scheduler(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup_steps: int, initial_lr: float, min_lr: float
) -> SequentialLR | CosineAnnealingLR:
    """Return a scheduler that sets the rate of every step 0, 1, ..., total_steps - 1; call its step() after the optimizer's.

    The rate rises linearly from initial_lr to the optimizer's own rate, the peak, at step warmup_steps, and falls from there
    along half a cosine to min_lr at the last step.
    """
    peak_lr = optimizer.param_groups[0]["lr"]
    decay = CosineAnnealingLR(optimizer, T_max=max(1, total_steps - 1 - warmup_steps), eta_min=min_lr)
    if warmup_steps == 0:
        return decay
    warmup = LinearLR(optimizer, start_factor=initial_lr / peak_lr, total_iters=warmup_steps)
    return SequentialLR(optimizer, [warmup, decay], milestones=[warmup_steps])


def endless(loader: DataLoader) -> Iterator:
    """Yield the loader's batches, epoch after epoch."""
    while True:
        yield from loader


def train(settings: dict, device: torch.device) -> tuple[list[float], list[float], list[float]]:
    """Train a tiny GPT on the story; return for each step the rate, the loss, and the gradient's norm before clipping."""
    torch.manual_seed(settings["seed"])
    train_loader, _ = create_split_loaders(read_text(STORY_FILE), TINY_CONFIG, batch_size=4)
    model = GPTModel(TINY_CONFIG).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["peak_lr"], weight_decay=0.1)
    scheduler = make_scheduler(optimizer, *(settings[key] for key in ("total_steps", "warmup_steps", "initial_lr", "min_lr")))
    rates, losses, norms = [], [], []
    batches = endless(train_loader)
    for _ in tqdm(range(settings["total_steps"]), unit="step", disable=None):
        optimizer.zero_grad()
        loss = calc_loss_batch(*next(batches), model, device)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), settings["max_norm"]).item())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # after the optimizer's step: it sets the rate of the next one
        losses.append(loss.item())
    return rates, losses, norms


def draw(rates: list[float], losses: list[float], path: Path) -> None:
    """Save a figure with the rate of every step on the left and the loss of its batch on the right."""
    fig = Figure(figsize=(6.5, 3.2), layout="constrained")
    left, right = fig.subplots(1, 2)
    left.plot(rates, color=COLORS["blue"])
    left.set(title="Rates that were used", xlabel="step", ylabel="learning rate", ylim=(0, None))
    right.plot(losses, color=COLORS["red"])
    right.set(title="Loss of each batch", xlabel="step", ylabel="loss (nats per token)")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path)


def main(argv: list[str] | None = None) -> int:
    """Parse the options, train, print and draw; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Train a tiny GPT for some steps with warm-up, cosine decay and clipping, and draw the learning rate.")
    parser.add_argument("--total_steps", type=int_at_least(1), default=40, help="updates")
    parser.add_argument("--warmup_steps", type=int_at_least(0), default=8, help="updates until the rate is at its peak")
    parser.add_argument("--peak_lr", type=positive_float, default=0.01, help="largest learning rate")
    parser.add_argument("--initial_lr", type=positive_float, default=1e-4, help="learning rate of the first update")
    parser.add_argument("--min_lr", type=positive_float, default=1e-5, help="learning rate of the last update")
    parser.add_argument("--max_norm", type=positive_float, default=1.0, help="longer gradients are scaled to this norm")
    parser.add_argument("--output", default="runs/schedule.png", help="where the figure goes")
    parser.add_argument("--seed", type=int, default=123, help="random seed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    if args.initial_lr > args.peak_lr or args.min_lr > args.peak_lr:
        parser.error(f"initial_lr {args.initial_lr} and min_lr {args.min_lr} must not be above peak_lr {args.peak_lr}")
    try:
        rates, losses, norms = train(vars(args), pick_device(args.device))
        draw(rates, losses, Path(args.output))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    for step in sorted({*range(0, args.total_steps, max(1, args.total_steps // 10)), args.total_steps - 1}):
        print(f"step {step:3d}: rate {rates[step]:.6f}, loss {losses[step]:.2f}, norm of the gradient {norms[step]:.2f}")
    if args.warmup_steps >= args.total_steps:
        print(
            f"warning: {args.warmup_steps} steps of warm-up in a run of {args.total_steps}: the rate never reaches "
            f"its peak of {args.peak_lr:g}, it ends at {rates[-1]:g}",
            file=sys.stderr,
        )
    print(f"figure in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
