"""Checkpoints from which a killed training run goes on bit for bit (on a CPU). Chapter 5, section 5.8.

A run is decided by its weights, its optimizer state, the order of its batches and the random draws of dropout; a checkpoint
holds all four.
"""

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn as nn
from torch.utils.data import DataLoader


@dataclass
class TrainingState:
    """Where a training run stands; saved with every checkpoint. Chapter 5, section 5.8."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # batches of the current epoch that are done
    step: int = -1  # number of the last update; the first one is step 0
    tokens_seen: int = 0
    epoch_rng: torch.Tensor | None = None  # random state when the epoch began: it decides the order of the batches
    train_losses: list = field(default_factory=list)
    val_losses: list = field(default_factory=list)
    track_tokens_seen: list = field(default_factory=list)


def remaining_batches(loader: DataLoader, state: TrainingState) -> Iterator:
    """Return an iterator over the batches of the current epoch that are still to do, in the epoch's own order. Section 5.8."""
    if state.batch == 0:
        state.epoch_rng = torch.get_rng_state()
        return iter(loader)
    rng_now = torch.get_rng_state()
    torch.set_rng_state(state.epoch_rng)  # shuffle as this epoch did when it began
    batches = iter(loader)
    for _ in range(state.batch):
        next(batches)
    torch.set_rng_state(rng_now)  # and go on drawing dropout masks where the run was
    return batches


def save_atomically(contents: dict, path: Path) -> None:
    """torch.save to a temporary file, then rename: a crash leaves the old file or the new one, never half of one. Section 5.8."""
    temporary = path.with_name(path.name + ".tmp")
    torch.save(contents, temporary)
    os.replace(temporary, path)


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState, settings: dict) -> None:
    """Save all that decides how a run goes on: weights, optimizer, position, random states, settings. Section 5.8."""
    checkpoint = {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": None,  # the learning rate is constant here; appendix D adds a schedule
        "state": vars(state),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all(),
        "settings": settings,
    }
    save_atomically(checkpoint, path)


def read_checkpoint(path: Path, settings: dict) -> dict:
    """Return a saved checkpoint. Raises ValueError if it is missing, damaged, or saved under other settings. Section 5.8."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        saved = dict(checkpoint["settings"])
    except FileNotFoundError:
        raise ValueError(f"nothing to resume: {path} does not exist") from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, pickle.UnpicklingError):
        raise ValueError(f"{path} is damaged, or no checkpoint of this script") from None
    differing = [f"{key} is {saved.get(key)} there, {value} here" for key, value in settings.items() if saved.get(key) != value]
    if differing:
        raise ValueError(f"{path} comes from another configuration: {'; '.join(differing)}")
    return checkpoint


def restore_checkpoint(checkpoint: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Put a checkpoint back into model, optimizer and random generators; returns where the run stood. Section 5.8.

    The optimizer keeps the learning rate and weight decay it has now: a changed command line must not lose silently
    against the file.
    """
    model.load_state_dict(checkpoint["model_state_dict"])
    asked = [{key: group[key] for key in ("lr", "weight_decay")} for group in optimizer.param_groups]
    optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    for group, values in zip(optimizer.param_groups, asked, strict=True):
        group.update(values)
    torch.set_rng_state(checkpoint["rng"])
    if torch.cuda.is_available() and checkpoint["cuda_rng"]:
        torch.cuda.set_rng_state_all(checkpoint["cuda_rng"])
    return TrainingState(**checkpoint["state"])
