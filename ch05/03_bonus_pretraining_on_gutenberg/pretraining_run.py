"""Plumbing of a long training run: several processes, checkpoints, a log as JSON lines, a loss curve, a stop at Ctrl-C."""

import contextlib
import gc
import json
import os
import re
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from previous_chapters import TrainingState, pick_device, save_atomically
from torch import nn

CHECKPOINT_NAME = re.compile(r"model_pg_(\d+)(?:_interrupted)?\.pth$")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; without torchrun: the only one."""

    rank: int = 0
    world: int = 1

    def mean(self, value: float, device: torch.device) -> float:
        """Return the mean of a number over all processes; each must call it."""
        if self.world == 1:
            return value
        total = torch.tensor(value, device=device, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item() / self.world

    def anyone(self, flag: bool, device: torch.device) -> bool:
        """Tell whether any process says yes; each must call it."""
        return self.mean(float(flag), device) > 0

    def gather(self, thing) -> list:
        """Return what each process gave, in order of rank."""
        things = [thing] * self.world
        if self.world > 1:
            dist.all_gather_object(things, thing)
        return things

    def wait(self) -> None:
        """Return when every process is here."""
        if self.world > 1:
            dist.barrier()

    def leave(self) -> None:
        """Part from the other processes. Whatever still holds the wrapped model must have let go of it."""
        if self.world > 1:
            gc.collect()  # a wrapped model is part of a circle of references, and its group cannot end before it
            dist.destroy_process_group()


def join_processes(device_name: str) -> tuple[Ranks, torch.device]:
    """Meet the other processes of torchrun (gloo on the CPU, NCCL on GPUs); returns (ranks, this process's device)."""
    if "RANK" not in os.environ:
        return Ranks(), pick_device(device_name)
    device = pick_device(device_name)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size()), device


def share_gradients(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Wrap a model so that its gradients are the mean over all processes; alone, the model itself."""
    if ranks.world == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside the wrapper of `share_gradients`."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


@dataclass
class PretrainingState(TrainingState):
    """Chapter 5's training state, with what is measured between two evaluations."""

    loss_sum: float = 0.0  # of the steps since the last evaluation
    loss_steps: int = 0
    seconds: float = 0.0  # spent training, breaks left out
    log: list = field(default_factory=list)  # one entry per evaluation, as in log.jsonl


def save_run(path: Path, model: nn.Module, optimizer, state: PretrainingState, settings: dict, ranks: Ranks, device: torch.device) -> None:
    """Write a checkpoint that decides how the run goes on; each process calls it, the first one writes."""
    rng = ranks.gather([torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None])
    if ranks.rank:
        return
    weights, states = unwrap(model).state_dict(), optimizer.state_dict()
    save_atomically(
        {"model_state_dict": weights, "optimizer_state_dict": states, "state": vars(state), "rng": rng, "settings": settings}, path
    )
    print(f"saved {path}")


def latest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint of a run with the most steps; ValueError if there is none."""
    found = [(int(match.group(1)), path) for path in Path(folder).glob("model_pg_*.pth") if (match := CHECKPOINT_NAME.match(path.name))]
    if not found:
        raise ValueError(f"nothing to resume: no checkpoint model_pg_*.pth in {folder}")
    return max(found)[1]


def restore_run(checkpoint: dict, model: nn.Module, optimizer, ranks: Ranks, device: torch.device) -> PretrainingState:
    """Put a checkpoint back into model, optimizer and this process's random generators; returns where the run stood."""
    unwrap(model).load_state_dict(checkpoint["model_state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    cpu_rng, cuda_rng = checkpoint["rng"][ranks.rank]
    torch.set_rng_state(cpu_rng)
    if cuda_rng is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda_rng, device)
    return PretrainingState(**checkpoint["state"])


class RunLog:
    """log.jsonl: one line per evaluation. A resumed run begins it anew with the entries of its checkpoint, so none is double."""

    def __init__(self, folder: Path, state: PretrainingState):
        self.path = Path(folder) / "log.jsonl"
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in state.log), encoding="utf-8")

    def add(self, entry: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def plot_run(log: list[dict], path: Path) -> None:
    """Draw training and validation losses over the tokens seen."""
    fig = Figure(figsize=(6.5, 3.2), layout="constrained")
    ax = fig.subplots()
    tokens = [entry["tokens_seen"] / 1e6 for entry in log]
    names = [name for name in log[-1] if name.endswith("_loss")]
    for name, color in zip(names, ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"], strict=False):
        ax.plot(tokens, [entry.get(name, float("nan")) for entry in log], color=color, label=name.replace("_", " "))
    ax.set(xlabel="tokens seen (millions)", ylabel="loss (nats per token)", title="Loss on text that is trained on, and on held-out text")
    ax.legend(frameon=False)
    fig.savefig(path)


@contextlib.contextmanager
def stop_on_interrupt():
    """Within this block Ctrl-C sets `flag.set()` instead of stopping in mid-step; a second Ctrl-C stops at once."""
    flag = threading.Event()

    def handler(number, frame):
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
