"""Clocks for attention: time of a call, of a call with its gradients, and the memory that its tensors take at most.

Use it:  from mha_timing import time_pytorch_function
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable

import torch

WARM_UP = 1  # calls that are not counted: the first one starts threads, asks for memory, compiles


def time_pytorch_function(func: Callable, *input: torch.Tensor, num_repeats: int = 1_000) -> tuple[float, float]:
    """Mean and standard deviation, in milliseconds, of one call func(*input) with autograd off. Section 11."""
    with torch.inference_mode():
        return time_runs(lambda: func(*input), input[0].device, num_repeats)


def time_runs(run: Callable, device: torch.device, num_repeats: int) -> tuple[float, float]:
    """Mean and standard deviation of `run()` in milliseconds; CUDA by its own events, which wait for the kernels. Section 11."""
    milliseconds = []
    for repeat in range(WARM_UP + num_repeats):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            milliseconds.append(start.elapsed_time(end))
        else:
            started = time.perf_counter()
            run()
            if device.type == "mps":
                torch.mps.synchronize()
            milliseconds.append(1000 * (time.perf_counter() - started))
    counted = milliseconds[WARM_UP:]
    return statistics.mean(counted), statistics.pstdev(counted)


def forward_backward(func: Callable, embeddings: torch.Tensor) -> None:
    """One training step without the optimizer: output, a loss (the sum), gradients of input and weights. Section 11."""
    embeddings.grad = None
    loss = func(embeddings).sum()
    loss.backward()


def time_pytorch_function_forward_backward(func: Callable, *input: torch.Tensor, num_repeats: int = 1_000) -> tuple[float, float]:
    """Mean and standard deviation, in milliseconds, of one forward_backward(func, *input). Section 11."""
    return time_runs(lambda: forward_backward(func, *input), input[0].device, num_repeats)


def prepare_function(fn: Callable) -> Callable:
    """The function compiled for the shapes it is called with; the first call takes long. Section 11."""
    return torch.compile(fn, dynamic=False)


def peak_bytes(func: Callable, *input) -> int | None:
    """The most bytes that tensors made by func(*input) took at one moment; None where PyTorch cannot tell (MPS).

    The last input is a tensor, whose device counts. Section 11.
    """
    device = input[-1].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        func(*input)
        return torch.cuda.max_memory_allocated() - before
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would announce itself on stderr
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        func(*input)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative where a tensor was freed
        most = max(most, held)
    return most


def why_not_compiled(device: torch.device) -> str:
    """Empty if torch.compile can work here, else the reason. Section 11."""
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "c++", "clang++", "cl")):
        return "torch.compile needs a C++ compiler on the CPU, and none was found"
    return "torch.compile is not measured on MPS" if device.type == "mps" else ""
