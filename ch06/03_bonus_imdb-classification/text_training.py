"""Train and measure classifiers of texts, one loop for a GPT and for the BERT family. The scripts of this folder share it.

Chapter 6 reads a GPT at each text's last real token. Here the place can be chosen, to compare. A model of the BERT family reads
a batch of ids with an attention mask, and gives one row of logits a text.
"""

import contextlib
import json
import math
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn
from classifier import last_token_logits, measuring, plot_values
from download_prepare_dataset import DATA_DIR
from previous_chapters import PrintAboveBar, adamw, int_at_least, peak_memory_gb, positive_float
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

POSITIONS = {"flexible": "flexible", "last": -1, "first": 0}  # --trainable_token_pos -> trainable_token_pos
NUM_CLASSES = 2


def text_logits(
    model: nn.Module,
    input_batch,
    trainable_token_pos: int | str = "flexible",
    average_embeddings: bool = False,
    pad_token_id: int = 50256,
) -> torch.Tensor:
    """Return one row of logits a text, (b, num_classes).

    A GPT gets ids (b, num_tokens). It is read at its last real token ("flexible"), or in a column: 0 the first, -1 the last, which
    in a short text is padding; with average_embeddings the mean over the real tokens is read instead. A model of the BERT family
    gets {"input_ids", "attention_mask"} and decides itself.
    """
    if not torch.is_tensor(input_batch):
        return model(**input_batch).logits
    if average_embeddings:
        logits = model(input_batch)  # (b, num_tokens, num_classes)
        is_text = (input_batch != pad_token_id).to(logits.dtype)  # (b, num_tokens)
        is_text[:, 0] = 1  # a text without tokens is one padding token
        # The head is linear: the mean of its outputs is its output for the mean embedding.
        return (logits * is_text[:, :, None]).sum(dim=1) / is_text.sum(dim=1, keepdim=True)  # (b, num_classes)
    if trainable_token_pos == "flexible":
        return last_token_logits(model, input_batch, pad_token_id)
    return model(input_batch)[:, trainable_token_pos]


def to_device(input_batch, device: torch.device):
    """Return a tensor, or a dictionary of tensors, on the device."""
    if torch.is_tensor(input_batch):
        return input_batch.to(device)
    return {name: tensor.to(device) for name, tensor in input_batch.items()}


def calc_loss_batch(
    input_batch,
    target_batch: torch.Tensor,
    model: nn.Module,
    device: torch.device,
    trainable_token_pos="flexible",
    average_embeddings=False,
) -> torch.Tensor:
    """Return the mean cross-entropy of a batch of texts with labels (b), a scalar."""
    logits = text_logits(model, to_device(input_batch, device), trainable_token_pos, average_embeddings)  # (b, num_classes)
    return nn.functional.cross_entropy(logits, target_batch.to(device))


def calc_loss_loader(
    data_loader: DataLoader,
    model: nn.Module,
    device: torch.device,
    num_batches=None,
    trainable_token_pos="flexible",
    average_embeddings=False,
) -> float:
    """Return the mean loss a text over the first num_batches batches (all if None); NaN if there are none."""
    total_loss, total = 0.0, 0
    num_batches = len(data_loader) if num_batches is None else min(num_batches, len(data_loader))
    with measuring(model):
        for _, (input_batch, target_batch) in zip(range(num_batches), data_loader, strict=False):
            loss = calc_loss_batch(input_batch, target_batch, model, device, trainable_token_pos, average_embeddings)
            total_loss += loss.item() * len(target_batch)
            total += len(target_batch)
    return total_loss / total if total else math.nan


def calc_accuracy_loader(
    data_loader: DataLoader,
    model: nn.Module,
    device: torch.device,
    num_batches=None,
    trainable_token_pos="flexible",
    average_embeddings=False,
) -> float:
    """Return the share of right answers in the first num_batches batches (all if None); NaN if there are none."""
    correct, total = 0, 0
    num_batches = len(data_loader) if num_batches is None else min(num_batches, len(data_loader))
    with measuring(model):
        for _, (input_batch, target_batch) in zip(range(num_batches), data_loader, strict=False):
            logits = text_logits(model, to_device(input_batch, device), trainable_token_pos, average_embeddings)  # (b, num_classes)
            correct += (logits.argmax(dim=-1) == target_batch.to(device)).sum().item()
            total += len(target_batch)
    return correct / total if total else math.nan


def evaluate_model(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    device: torch.device,
    eval_iter: int,
    trainable_token_pos="flexible",
    average_embeddings=False,
) -> tuple[float, float]:
    """Return (train_loss, val_loss) over eval_iter batches each. Mode and random draws stay as they are."""
    reading = (trainable_token_pos, average_embeddings)
    with torch.random.fork_rng():  # the training loader shuffles: measuring must not change the order of what follows
        train_loss = calc_loss_loader(train_loader, model, device, eval_iter, *reading)
        val_loss = calc_loss_loader(val_loader, model, device, eval_iter, *reading)
    return train_loss, val_loss


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
    trainable_token_pos="flexible",
    average_embeddings=False,
    after_step: Callable | None = None,
) -> tuple[list, list, list, list, int]:
    """Train for num_epochs, or max_steps updates, and return (train_losses, val_losses, train_accs, val_accs, examples_seen).

    As in chapter 6, losses are measured after update 0 and every eval_freq updates, accuracies at the end of each epoch, both
    over eval_iter batches. `after_step()` is called after each update. ValueError for a loader without batches.
    """
    if not len(train_loader) or not len(val_loader):
        raise ValueError(f"no batch to train or to validate on: {len(train_loader)} and {len(val_loader)} batches")
    train_losses, val_losses, train_accs, val_accs = [], [], [], []
    reading = (trainable_token_pos, average_embeddings)
    examples_seen, updates = 0, 0
    for epoch in range(num_epochs):
        model.train()
        for input_batch, target_batch in train_loader:
            if updates == max_steps:
                break
            optimizer.zero_grad()
            loss = calc_loss_batch(input_batch, target_batch, model, device, *reading)
            loss.backward()
            optimizer.step()
            examples_seen += len(target_batch)
            if updates % eval_freq == 0:
                losses = evaluate_model(model, train_loader, val_loader, device, eval_iter, *reading)
                train_losses.append(losses[0])
                val_losses.append(losses[1])
                print(f"epoch {epoch + 1}, step {updates:4d}: train loss {losses[0]:.3f}, val loss {losses[1]:.3f}")
            updates += 1
            if after_step is not None:
                after_step()
        with torch.random.fork_rng():
            train_accs.append(calc_accuracy_loader(train_loader, model, device, eval_iter, *reading))
            val_accs.append(calc_accuracy_loader(val_loader, model, device, eval_iter, *reading))
        print(f"epoch {epoch + 1}: train accuracy {train_accs[-1]:.1%}, val accuracy {val_accs[-1]:.1%}")
        if updates == max_steps:
            break
    return train_losses, val_losses, train_accs, val_accs, examples_seen


def add_training_options(parser: ArgumentParser, num_epochs: int = 1) -> None:
    """Add the options that every training script of this folder has."""
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR, help="folder of the CSV files")
    parser.add_argument("--context_length", type=int_at_least(1), default=256, help="longer texts are cut to this many tokens")
    parser.add_argument("--num_epochs", type=int_at_least(1), default=num_epochs, help="passes over the training texts")
    parser.add_argument("--max_steps", type=int_at_least(1), help="stop after this many updates")
    parser.add_argument("--batch_size", type=int_at_least(1), default=8, help="texts per update")
    parser.add_argument("--learning_rate", type=positive_float, help="of AdamW; decided by the model if not given")
    parser.add_argument("--eval_freq", type=int_at_least(1), default=50, help="updates from one measurement to the next")
    parser.add_argument("--eval_iter", type=int_at_least(1), default=20, help="batches per measurement")
    parser.add_argument("--output_dir", type=Path, help="folder for result.json, log.txt and loss-plot.pdf; without it nothing is kept")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in output_dir")
    parser.add_argument("--seed", type=int, default=123, help="random seed: head and order of the texts")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")


def prepare_output(folder: Path | None, overwrite: bool) -> None:
    """Make the folder of a run. ValueError if results are there already, unless they may be replaced."""
    if folder is None:
        return
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"{folder} exists: add --overwrite to replace it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").unlink(missing_ok=True)


def accuracy_of(dataset: Dataset, collate: Callable, model: nn.Module, device: torch.device, reading: dict) -> float:
    """Return the share of right answers on a whole data set; texts of similar length go together, which saves padding."""
    by_length = sorted(range(len(dataset)), key=lambda index: len(dataset.encoded_texts[index]))
    return calc_accuracy_loader(DataLoader(Subset(dataset, by_length), 64, collate_fn=collate), model, device, **reading)


def fine_tune(model: nn.Module, datasets: list[Dataset], collate: Callable, device: torch.device, settings: dict, reading: dict) -> dict:
    """Train a classifier on datasets (training, validation, test), print and return what it reached; keeps it in output_dir.

    `collate` makes a batch of data set items; `reading` holds the keyword arguments of `text_logits`; `settings` the options.
    """
    if len(datasets[0]) < settings["batch_size"]:
        raise ValueError(f"{len(datasets[0])} training texts are fewer than batch_size {settings['batch_size']}")
    folder = settings["output_dir"]
    prepare_output(folder, settings["overwrite"])
    torch.manual_seed(settings["seed"])
    train_loader = DataLoader(datasets[0], settings["batch_size"], shuffle=True, drop_last=True, collate_fn=collate)
    val_loader = DataLoader(datasets[1], settings["batch_size"], collate_fn=collate)
    optimizer = adamw(model, settings["learning_rate"], 0.1, device)
    steps = min(settings["num_epochs"] * len(train_loader), settings["max_steps"] or math.inf)
    bar = tqdm(total=steps, unit="updates", mininterval=1)
    measured = [settings[name] for name in ("num_epochs", "eval_freq", "eval_iter", "max_steps")]
    with bar, contextlib.redirect_stdout(PrintAboveBar(sys.stdout, folder and folder / "log.txt")):
        start, processor = time.perf_counter(), time.process_time()
        values = train_classifier_simple(model, train_loader, val_loader, optimizer, device, *measured, **reading, after_step=bar.update)
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        accuracies = [accuracy_of(dataset, collate, model, device, reading) for dataset in datasets]
        print("accuracy: " + ", ".join(f"{part} {share:.2%}" for part, share in zip(("training", "validation", "test"), accuracies)))
    result = {"accuracy": dict(zip(("train", "validation", "test"), accuracies)), "updates": values[-1] // settings["batch_size"]}
    result |= {"trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    result |= {"parameters": sum(p.numel() for p in model.parameters()), "peak_memory_gb": round(peak_memory_gb(device), 2)}
    result |= {"seconds": round(seconds, 1), "processor_seconds": round(processor, 1), "threads": torch.get_num_threads()}
    if folder:
        epochs = [step / len(train_loader) for step in range(1, result["updates"] + 1, settings["eval_freq"])]
        plot_values(epochs, [epoch * len(train_loader) * settings["batch_size"] for epoch in epochs], *values[:2], "loss", folder)
        save_results([{"settings": {name: str(value) for name, value in settings.items()}, **result}], folder)
    return result


def save_results(results: list[dict], folder: Path) -> None:
    """Write folder/result.json, a list with one entry a model."""
    (folder / "result.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
