"""What every measurement of speed needs: the machine named, its memory's speed, and runs that take turns."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm


def processor_name() -> str:
    """What this processor calls itself. Folder 03 of chapter 4, its benchmark."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def waiting_programs() -> float | None:
    """How many programs wanted a processor in the last minute (the load average); more than it has cores slows all runs down.

    None on Windows. Folder 03 of chapter 4, its benchmark.
    """
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def read_bandwidth(megabytes: int = 400) -> float:
    """Bytes a second that this machine reads from memory, by summing up numbers: the median of three.

    Folder 03 of chapter 4, its benchmark.
    """
    block, seconds = torch.rand(megabytes * 250_000), []
    for _ in range(4):
        started = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - started)
    return megabytes * 1e6 / statistics.median(seconds[1:])


def interleaved(runs: dict[str, Callable], rounds: int) -> tuple[dict, dict]:
    """Call all runs in turn, `rounds` times: (name -> list of what they returned first, name -> list of what came second).

    So a busy moment of the machine hits all of them. Folder 03 of chapter 4, its benchmark.
    """
    first, second = {name: [] for name in runs}, {name: [] for name in runs}
    bar = tqdm(total=rounds * len(runs), file=sys.stderr, leave=False)
    for _ in range(rounds):
        for name, run in runs.items():
            bar.set_description(name)
            ids, seconds = run()
            first[name].append(ids)
            second[name].append(seconds)
            bar.update()
    bar.close()
    return first, second


def assert_equal_ids(ids: dict) -> None:
    """RuntimeError unless all runs chose the same tokens: a faster wrong answer is no result.

    Folder 03 of chapter 4, its benchmark.
    """
    flat = [(name, one) for name, several in ids.items() for one in several]
    for name, one in flat:
        if not torch.equal(one, flat[0][1]):
            raise RuntimeError(f"{name} chose other tokens than {flat[0][0]}")


def timed(function: Callable) -> tuple[torch.Tensor, float]:
    """(what the function returns, the seconds it took). Folder 03 of chapter 4, its benchmark."""
    started = time.perf_counter()
    return function(), time.perf_counter() - started
