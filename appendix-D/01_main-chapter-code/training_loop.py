"""Appendix D in one file: chapter 5's training loop with warm-up, cosine decay and gradient clipping.

    from training_loop import train_model

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)  # 0.01 is the peak rate
    train_losses, val_losses, tokens_seen, rates = train_model(
        model, train_loader, val_loader, optimizer, device, n_epochs=15, eval_freq=5, eval_iter=1,
        start_context="Nell", tokenizer=tokenizer, warmup_steps=27, initial_lr=1e-5, min_lr=1e-5,
    )

ablation.py runs it with each of the three parts switched off in turn.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn as nn
from previous_chapters import calc_loss_batch, evaluate_model, generate_and_print_sample
from torch.utils.data import DataLoader


def find_highest_gradient(model: nn.Module) -> torch.Tensor | None:
    """Return the largest gradient of the model by absolute value, a scalar; None before the first backward(). Section D.3."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack([gradient.abs().max() for gradient in gradients]).max() if gradients else None


def check_schedule(total_steps: int, warmup_steps: int, peak_lr: float) -> None:
    """Raise ValueError, naming the numbers, for a training without steps, a warm-up that does not fit, or a peak of 0. Section D.4."""
    if total_steps < 1:
        raise ValueError(f"{total_steps} training steps: the loader is empty or n_epochs is below 1")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps must be between 0 and the {total_steps} steps of this training, got {warmup_steps}")
    if not peak_lr > 0:
        raise ValueError(f"the optimizer's learning rate, the peak of the schedule, must be positive, got {peak_lr}")


@contextlib.contextmanager
def rates_put_back(optimizer: torch.optim.Optimizer) -> Iterator[list[float]]:
    """Yield the learning rates of the parameter groups and give them back at the end: a second training has the same peaks.

    Section D.4.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    try:
        yield peaks
    finally:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak


def train_model(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    n_epochs: int,
    eval_freq: int,
    eval_iter: int,
    start_context: str,
    tokenizer,
    warmup_steps: int,
    initial_lr: float = 3e-05,
    min_lr: float = 1e-6,
    orig_book_version: bool = False,
    max_norm: float = 1.0,
) -> tuple[list, list, list, list]:
    """Train with warm-up, cosine decay and clipping; return (train_losses, val_losses, track_tokens_seen, track_lrs).

    The peak rate is that of the optimizer's first group; other groups keep their ratio to it. The first update uses
    initial_lr, update number warmup_steps (counted from 0) the peak, the last one min_lr. Losses are measured after update 0 and
    after every multiple of eval_freq; track_lrs has one rate for each update. Clipping to the norm max_norm begins with
    update warmup_steps, or one update later if orig_book_version. Raises ValueError as check_schedule does. Section D.4.
    """
    train_losses, val_losses, track_tokens_seen, track_lrs = [], [], [], []
    tokens_seen, step = 0, -1
    total_steps = n_epochs * len(train_loader)
    peak_lr = optimizer.param_groups[0]["lr"]
    check_schedule(total_steps, warmup_steps, peak_lr)
    decay_steps = max(1, total_steps - 1 - warmup_steps)  # from the peak to the last update
    model.train()
    with rates_put_back(optimizer) as peaks:
        for epoch in range(n_epochs):
            for input_batch, target_batch in train_loader:
                step += 1
                if step < warmup_steps:
                    lr = initial_lr + step * (peak_lr - initial_lr) / warmup_steps
                else:
                    progress = (step - warmup_steps) / decay_steps
                    lr = min_lr + 0.5 * (peak_lr - min_lr) * (1 + math.cos(math.pi * progress))
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = lr * (peak / peak_lr)
                track_lrs.append(lr)
                optimizer.zero_grad()
                loss = calc_loss_batch(input_batch, target_batch, model, device)
                loss.backward()
                if step > warmup_steps or (step == warmup_steps and not orig_book_version):
                    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
                optimizer.step()
                tokens_seen += input_batch.numel()
                if step % eval_freq == 0:
                    train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                    train_losses.append(train_loss)
                    val_losses.append(val_loss)
                    track_tokens_seen.append(tokens_seen)
                    print(f"epoch {epoch + 1}, step {step:3d}: train loss {train_loss:.3f}, val loss {val_loss:.3f}, rate {lr:.6f}")
            generate_and_print_sample(model, tokenizer, device, start_context)
    return train_losses, val_losses, track_tokens_seen, track_lrs
