"""Files of weights for chapter 5's GPTModel: configurations, and reading and writing a state dict with every damage as one line.

Plumbing of the three notebooks of this folder and of convert_weights.py. A file holds the model's own state dict, either as
PyTorch writes it (.pth) or as safetensors.
"""

import hashlib
import os
import pickle
import shutil
from pathlib import Path

import safetensors
import torch
import torch.nn as nn
from previous_chapters import MODELS_DIR, SIZES, config_of, find_mini, read_settings, size_name
from safetensors.torch import load_file, save_file

BASE_CONFIG = {"vocab_size": 50257, "context_length": 1024, "drop_rate": 0.0, "qkv_bias": True}  # what all of GPT-2 shares
FORMATS = ("pth", "safetensors")
RESERVE = 2**20  # bytes that writing leaves free


def config_from_settings(settings: dict) -> dict:
    """Return a configuration for GPTModel from a published one (n_vocab, n_ctx, n_embd, n_head, n_layer)."""
    return {**BASE_CONFIG, **config_of(settings)}


def model_config(model_size: str, models_dir: str | Path = MODELS_DIR) -> dict:
    """Return the configuration of "gpt2-small (124M)", "124M", ..., or of the course's own "gpt2-mini (mini)".

    Raises ValueError for an unknown size, or if gpt2-mini, whose config.json is read, is not on this machine.
    """
    size = size_name(model_size)
    return config_from_settings(SIZES[size] if size != "mini" else read_settings(find_mini(models_dir) / "config.json"))


def refuse_other_files(path: Path) -> None:
    """Raise ValueError, with one line, for a missing file and for what downloads often bring instead of weights."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist, or is no file")
    with open(path, "rb") as file:
        start = file.read(1024).lstrip().lower()
    if not start:
        raise ValueError(f"{path} is empty")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{path} is a web page, not weights: download the file itself, not the page about it")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not weights: run git lfs pull, or download the file in a browser")


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a .pth or .safetensors file. Raises ValueError, with one line, for anything else."""
    path = Path(path)
    refuse_other_files(path)
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path} is no file of plain weights: weights_only=True refuses what could run code") from None
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError):
        raise ValueError(f"{path} is truncated or damaged: write or download it again") from None
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ValueError(f"{path} holds no state dict, a dictionary from names to tensors")
    return weights


def check_state_dict(model: nn.Module, state_dict: dict) -> None:
    """Raise ValueError, with one line, for the first name or shape in which a state dict differs from a model."""
    expected = model.state_dict()
    for name in expected:
        if name not in state_dict:
            raise ValueError(f"the weights lack {name}")
        if state_dict[name].shape != expected[name].shape:
            shapes = tuple(expected[name].shape), tuple(state_dict[name].shape)
            raise ValueError(f"{name}: the model has shape {shapes[0]}, the weights have {shapes[1]}")
    extra = [name for name in state_dict if name not in expected]
    if extra:
        raise ValueError(f"the weights hold {extra[0]}, for which the model has no place")


def load_model(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill a model from a file and return it in eval mode. Raises ValueError, with one line, before anything is changed."""
    state_dict = read_weights(path)
    try:
        check_state_dict(model, state_dict)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    model.load_state_dict(state_dict)
    return model.eval()


def write_weights(state_dict: dict, path: str | Path, file_format: str) -> Path:
    """Write a state dict as "pth" or "safetensors" under a temporary name, then rename: the file is whole or absent.

    A tensor that stands under two names is written once as pth; safetensors knows no sharing and gets a copy for each name.
    Raises OSError, with one line, if the disk is full or cannot be written, and ValueError for an unknown format.
    """
    path, seen = Path(path), {}
    if file_format not in FORMATS:
        raise ValueError(f"unknown format {file_format!r} (known: {', '.join(FORMATS)})")
    for name, tensor in state_dict.items():
        seen.setdefault(tensor.data_ptr() if file_format == "pth" else name, tensor.nbytes)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from None
    if free < sum(seen.values()) + RESERVE:
        raise OSError(f"{path} takes {sum(seen.values()):,} bytes, but the disk has only {free:,} left")
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        if file_format == "pth":
            torch.save(state_dict, temporary)
        else:
            save_file({name: tensor.clone().contiguous() for name, tensor in state_dict.items()}, temporary, {"format": "pt"})
        os.replace(temporary, path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        detail = getattr(error, "strerror", None) or "is the disk full?"  # PyTorch's own text speaks of positions in an archive
        raise OSError(f"{path} cannot be written: {detail}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def fingerprint(model: nn.Module) -> str:
    """Return twelve hexadecimal digits of the SHA-256 of all names and numbers; models that differ practically never share one."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
