"""Measure what a function costs: the peak memory of a whole process, the peak of the GPU where there is one, the seconds.

The operating system notes for every process the most memory it ever held. A short peak cannot be missed there, as it can by
sampling; but only Linux can reset the note, and memory that a process freed earlier would be used again uncounted. So each
function runs in a fresh Python process, and what a process holds that imports the same code and builds nothing, the
baseline, is subtracted. Plumbing of this folder; section 1 of the notebook explains it.

    from memory_tools import memory_usage_in_gb
    memory_usage_in_gb(best_practices, folder="my-model")
"""

import builtins
import dis
import gc
import importlib
import json
import marshal
import os
import pickle
import subprocess
import sys
import threading
import time
import types
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

import torch
import torch.nn as nn

GIB = 2**30


class MeasuringFailed(RuntimeError):
    """The function could not be sent to a fresh process, or ended in an error there; the message says which."""


@dataclass
class Measurement:
    """What `measure` found. Bytes are those beyond the baseline process; None: this system does not tell."""

    peak: int  # most memory held, until every weight of the returned model had been read once
    loaded: int  # the same, when the function returned: mapped weights that nobody has read are not in memory yet
    private: int | None  # held at the end by this process alone; what is missing to the total mirrors files
    gpu: int | None  # most GPU memory in tensors
    seconds: float  # of the function alone
    timeline: list  # pairs of seconds and bytes while it ran, sampled for a picture; the peak above is not taken from it


# ---- inside one process ---------------------------------------------------------------------------------------------

def linux_status(key: str) -> int | None:
    """Return a line of /proc/self/status in bytes, or None where there is no such line."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(found[0]) * 1024 if found else None


def peak_memory() -> int:
    """Return the most bytes this process ever held in memory (its peak resident set), as the operating system counted them."""
    peak = linux_status("VmHWM")  # "high water mark"
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kibibytes


def start_memory_tracking() -> None:
    """Set the GPU's peak counter back; without a GPU do nothing, because most systems keep the peak of a process for good."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def print_memory_usage() -> None:
    """Print the peak memory of this process since it began and, with a GPU, of the GPU since `start_memory_tracking`, in GiB."""
    print(f"peak memory of this process: {peak_memory() / GIB:.2f} GiB")
    if torch.cuda.is_available():
        print(f"peak memory of the GPU: {torch.cuda.max_memory_allocated() / GIB:.2f} GiB")


def cleanup() -> None:
    """Free what nothing refers to any more, on the GPU too, and set the GPU's peak counter back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    start_memory_tracking()


# ---- a function on its way to another process -----------------------------------------------------------------------

def importable(module_name: str) -> bool:
    """True if a fresh process finds the module on sys.path or in Python itself; False for a notebook's own definitions."""
    top = module_name.split(".")[0]
    spec = None if top == "__main__" else PathFinder.find_spec(top)
    return top in sys.builtin_module_names or (spec is not None and spec.origin is not None)


def global_names(code: types.CodeType) -> set:
    """Names that compiled code looks up outside of itself, comprehensions and inner functions included."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(global_names(const) for const in code.co_consts if isinstance(const, types.CodeType)))


def pack(name: str, value, packed: dict) -> dict:
    """Add to `packed` a definition and everything it uses: modules by name, a notebook's functions as compiled code."""
    if isinstance(value, types.ModuleType):
        packed[name] = ("module", value.__name__)
    elif isinstance(value, types.FunctionType) and not importable(value.__module__):
        if value.__code__.co_freevars:
            raise MeasuringFailed(f"{name} uses variables of a function around it; define it at the top level")
        packed[name] = ("code", marshal.dumps(value.__code__), value.__defaults__, value.__kwdefaults__)
        for other in sorted(global_names(value.__code__) & set(value.__globals__) - set(packed)):
            pack(other, value.__globals__[other], packed)
    else:
        packed[name] = ("value", value)
    return packed


def unpack(packed: dict) -> dict:
    """The inverse of `pack`: a namespace with the definitions, ready to be called."""
    space = {"__name__": "sent_here", "__builtins__": builtins}
    for name, (kind, content, *rest) in packed.items():
        if kind == "code":
            space[name] = types.FunctionType(marshal.loads(content), space, name, rest[0])
            space[name].__kwdefaults__ = rest[1]
        else:
            space[name] = importlib.import_module(content) if kind == "module" else content
    return space


# ---- measuring ------------------------------------------------------------------------------------------------------

def measure(func, *args, **kwargs) -> Measurement:
    """Run func(*args, **kwargs) in a fresh process; if it returns a model, read each weight once; return what that cost.

    Raises MeasuringFailed, with one line, if the function cannot be sent there or ends in an error.
    """
    found, idle = _in_fresh_process(func, args, kwargs), _baseline()
    for key in ("peak", "loaded", "private"):
        found[key] = None if found[key] is None else found[key] - idle[key]
    found["timeline"] = [(moment, held - idle["peak"]) for moment, held in found["timeline"]]
    return Measurement(**found)


def memory_usage_in_gb(func, *args, **kwargs) -> float:
    """Return the peak memory of a fresh process that runs func(*args, **kwargs), minus the baseline process, in GiB (2**30 bytes)."""
    return measure(func, *args, **kwargs).peak / GIB


@cache
def _baseline() -> dict:
    return _in_fresh_process(None, (), {})


def _in_fresh_process(func, args: tuple, kwargs: dict) -> dict:
    name = getattr(func, "__name__", "the baseline")
    try:
        packed = pack(name, func, {}) if func else {}
        message = pickle.dumps({"name": name if func else None, "packed": packed, "args": args, "kwargs": kwargs})
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise MeasuringFailed(f"{name} cannot be sent to a fresh process: {error}") from None
    places = {**os.environ, "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)}  # it finds what we find
    child = subprocess.run([sys.executable, str(Path(__file__).resolve())], input=message, capture_output=True, env=places)
    if child.returncode != 0:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["perhaps memory ran out"]
        raise MeasuringFailed(f"the process of {name} ended with code {child.returncode}: {last[0]}")
    answer = json.loads(child.stdout.splitlines()[-1])
    if "error" in answer:
        raise MeasuringFailed(f"{name}: {answer['error']}")
    return answer


# ---- in the fresh process -------------------------------------------------------------------------------------------

def warm_up() -> None:
    """Load the code that building and loading a model needs, so that it counts for the baseline."""
    import weight_loading  # noqa: F401

    torch.empty_like(torch.empty(1, device="meta"), device="cpu")  # what `to_empty` does: PyTorch loads 40 MB of code for it

    if torch.cuda.is_available():
        torch.empty(1, device="cuda")


def read_all(model: nn.Module) -> None:
    """Read every weight once, without copying any: only then is a mapped file really in memory."""
    for parameter in model.parameters():
        parameter.detach().amax().item()


def _sample(timeline: list, start: float, stop: threading.Event) -> None:
    page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    statm = Path("/proc/self/statm")
    while page and statm.exists() and not stop.wait(0.01):
        timeline.append((round(time.perf_counter() - start, 3), int(statm.read_text().split()[1]) * page))


def run_job(message: bytes) -> dict:
    """Do what `_in_fresh_process` asks for; return the numbers of a Measurement, not yet compared with the baseline."""
    warm_up()
    job = pickle.loads(message)
    space, timeline, stop = unpack(job["packed"]), [], threading.Event()
    start_memory_tracking()
    start = time.perf_counter()
    sampler = threading.Thread(target=_sample, args=(timeline, start, stop), daemon=True)
    sampler.start()
    result = space[job["name"]](*job["args"], **job["kwargs"]) if job["name"] else None
    seconds, loaded = time.perf_counter() - start, peak_memory()
    if isinstance(result, nn.Module):
        read_all(result)
    stop.set()
    sampler.join()
    held = linux_status("VmRSS")
    timeline[2000:] = [] if held is None else [(round(time.perf_counter() - start, 3), held)]  # the end, which sampling may miss
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    peak = peak_memory()
    return {
        "peak": peak, "loaded": loaded, "private": linux_status("RssAnon"), "gpu": gpu, "seconds": seconds, "timeline": timeline,
    }


if __name__ == "__main__":
    try:
        answer = run_job(sys.stdin.buffer.read())
    except Exception as error:  # whatever it is, the other process reports it as one line
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    print("\n" + json.dumps(answer))
