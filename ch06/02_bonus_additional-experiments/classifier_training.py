"""Loss, accuracy and training loop of chapter 6, with a choice of the token that is read, of labels that do not count, and more.

It adds to chapter 6's gpt_class_finetune.py: trainable_token_pos, average_embeddings, ignore_index, accumulation_steps, max_steps.
"""

import math
from collections.abc import Callable

import torch
import torch.nn as nn
from classifier import measuring
from torch.utils.data import DataLoader
from unmasked_gpt import is_text_token, text_lengths


def text_logits(
    model: nn.Module, input_batch: torch.Tensor, trainable_token_pos: int | str = -1, average_embeddings: bool = False
) -> torch.Tensor:
    """Return one row of logits for each text of a batch (b, num_tokens): (b, num_classes).

    trainable_token_pos: -1 or "flexible" reads at the text's own last token, wherever padding begins; 0 or "first" at its first;
    "last" at the last column, even if that is padding. average_embeddings takes the mean over the text's tokens instead. (The
    head is linear: the mean of its outputs is its output for the mean of the embeddings.)
    """
    logits = model(input_batch)  # (b, num_tokens, num_classes)
    if average_embeddings:
        is_text = is_text_token(input_batch)[:, :, None]  # (b, num_tokens, 1)
        return (logits * is_text).sum(dim=1) / is_text.sum(dim=1)  # (b, num_classes)
    if trainable_token_pos in (-1, "flexible"):
        rows = torch.arange(len(input_batch), device=input_batch.device)  # (b)
        return logits[rows, text_lengths(input_batch) - 1]  # (b, num_classes)
    columns = {"first": 0, 0: 0, "last": -1}
    if trainable_token_pos not in columns:
        raise ValueError(f"trainable_token_pos must be -1, 0, flexible, first or last, got {trainable_token_pos!r}")
    return logits[:, columns[trainable_token_pos]]  # (b, num_classes)


def calc_loss_batch(
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    model: nn.Module,
    device: torch.device,
    trainable_token_pos: int | str = -1,
    ignore_index: int = -100,
    average_embeddings: bool = False,
) -> torch.Tensor:
    """Return the mean cross-entropy of a batch of texts; texts with the label ignore_index do not count, and alone they give 0."""
    target_batch = target_batch.to(device)
    logits = text_logits(model, input_batch.to(device), trainable_token_pos, average_embeddings)  # (b, num_classes)
    total = nn.functional.cross_entropy(logits, target_batch, ignore_index=ignore_index, reduction="sum")
    return total / (target_batch != ignore_index).sum().clamp(min=1)


def calc_loss_loader(
    data_loader: DataLoader,
    model: nn.Module,
    device: torch.device,
    num_batches: int | None = None,
    trainable_token_pos: int | str = -1,
    ignore_index: int = -100,
    average_embeddings: bool = False,
) -> float:
    """Return the mean loss over the texts of the first num_batches batches (all if None); NaN if none counts."""
    reading = (trainable_token_pos, ignore_index, average_embeddings)
    total_loss, total = 0.0, 0
    num_batches = len(data_loader) if num_batches is None else min(num_batches, len(data_loader))
    with measuring(model):
        for _, (input_batch, target_batch) in zip(range(num_batches), data_loader):
            counted = (target_batch != ignore_index).sum().item()
            total_loss += calc_loss_batch(input_batch, target_batch, model, device, *reading).item() * counted
            total += counted
    return total_loss / total if total else math.nan


@torch.no_grad()
def right_answers(
    data_loader: DataLoader,
    model: nn.Module,
    device: torch.device,
    num_batches: int | None = None,
    trainable_token_pos: int | str = -1,
    average_embeddings: bool = False,
) -> list[bool]:
    """Return for each text of the first num_batches batches (all if None) whether the model is right."""
    right = []
    num_batches = len(data_loader) if num_batches is None else min(num_batches, len(data_loader))
    with measuring(model):
        for _, (input_batch, target_batch) in zip(range(num_batches), data_loader):
            logits = text_logits(model, input_batch.to(device), trainable_token_pos, average_embeddings)  # (b, num_classes)
            right += (logits.argmax(dim=-1) == target_batch.to(device)).tolist()
    return right


def calc_accuracy_loader(
    data_loader: DataLoader,
    model: nn.Module,
    device: torch.device,
    num_batches: int | None = None,
    trainable_token_pos: int | str = -1,
    average_embeddings: bool = False,
) -> float:
    """Return the share of right answers in the first num_batches batches (all if None); NaN if there are none."""
    right = right_answers(data_loader, model, device, num_batches, trainable_token_pos, average_embeddings)
    return sum(right) / len(right) if right else math.nan


def evaluate_model(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    device: torch.device,
    eval_iter: int,
    trainable_token_pos: int | str = -1,
    ignore_index: int = -100,
    average_embeddings: bool = False,
) -> tuple[float, float]:
    """Return (train_loss, val_loss) over eval_iter batches each. Mode and random draws stay as they are."""
    how = (device, eval_iter, trainable_token_pos, ignore_index, average_embeddings)
    with torch.random.fork_rng():  # the training loader shuffles: measuring must not change the training
        return calc_loss_loader(train_loader, model, *how), calc_loss_loader(val_loader, model, *how)


def train_classifier_simple(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int,
    max_steps: int | None = None,
    trainable_token_pos: int | str = -1,
    accumulation_steps: int = 1,
    ignore_index: int = -100,
    average_embeddings: bool = False,
    after_batch: Callable | None = None,
) -> tuple[list, list, list, list, int]:
    """Train for num_epochs, or max_steps updates, and return (train_losses, val_losses, train_accs, val_accs, examples_seen).

    An update uses the mean gradient of accumulation_steps batches, or of what is left at the end of an epoch. Losses are measured
    after update 0 and every eval_freq updates, accuracies once an epoch. after_batch(num_tokens) is called after each batch.
    """
    if not len(train_loader) or not len(val_loader):
        raise ValueError(f"no batch to train or to validate on: {len(train_loader)} and {len(val_loader)} batches")
    loss_options = (trainable_token_pos, ignore_index, average_embeddings)
    train_losses, val_losses, train_accs, val_accs = [], [], [], []
    examples_seen, step, batches = 0, -1, len(train_loader)
    optimizer.zero_grad()
    for _ in range(num_epochs):
        model.train()
        for number, (input_batch, target_batch) in enumerate(train_loader):
            group_start = number - number % accumulation_steps
            group_size = min(accumulation_steps, batches - group_start)  # new: the last group of an epoch may be short
            loss = calc_loss_batch(input_batch, target_batch, model, device, *loss_options)
            (loss / group_size).backward()
            examples_seen += len(input_batch)
            if after_batch is not None:
                after_batch(input_batch.numel())
            if number + 1 < group_start + group_size:
                continue
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter, *loss_options)
                train_losses.append(train_loss)
                val_losses.append(val_loss)
            if step + 1 == max_steps:
                break
        reading = (eval_iter, trainable_token_pos, average_embeddings)
        with torch.random.fork_rng():
            train_accs.append(calc_accuracy_loader(train_loader, model, device, *reading))
            val_accs.append(calc_accuracy_loader(val_loader, model, device, *reading))
        if step + 1 == max_steps:
            break
    return train_losses, val_losses, train_accs, val_accs, examples_seen
