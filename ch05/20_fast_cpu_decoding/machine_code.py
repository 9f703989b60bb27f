"""Where numba keeps machine code between runs, and how this folder's functions are compiled."""

import hashlib
import os
import sqlite3
import tempfile
from pathlib import Path

import numba

LOCKS = []  # open until the process ends, however it ends


def own_slot(folder: Path) -> Path | None:
    """The first numbered subfolder that no running process uses, ours until this one ends; None if none can be locked.

    numba's index of kept machine code is not made for two writers: each would give its own code the next number, and one
    would then load the other's code for other types, which crashes. A database's exclusive lock works on every system.
    """
    for number in range(64):
        slot = folder / str(number)
        slot.mkdir(parents=True, exist_ok=True)
        try:
            lock = sqlite3.connect(slot / "in-use.db", timeout=0, check_same_thread=False)
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:  # another process has it
            continue
        LOCKS.append(lock)
        return slot
    return None


def compiled_folder() -> Path | None:
    """Where numba keeps machine code between runs: a folder named for these sources, or None if none can be written.

    numba itself would not notice that a function called by a kept one was edited; with the name, an edit means a new folder.
    """
    # where these definitions are borrowed, all are in one file
    others = ("fast_storage.py", "kernels.py", "decode_steps.py", "compiled_linears.py")
    paths = [Path(__file__), *(Path(__file__).with_name(name) for name in others)]
    sources = b"".join(path.read_bytes() for path in paths if path.is_file())
    places = (os.environ.get("LLM_COURSE_CACHE"), os.environ.get("XDG_CACHE_HOME"), Path.home() / ".cache", tempfile.gettempdir())
    for place in filter(None, places):
        folder = Path(place) / "llm-course" / f"compiled-{hashlib.sha256(sources).hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return own_slot(folder)
        except OSError:
            continue
    return None


def numba_ready(folder: Path | None) -> bool:
    """Tell numba how threads are made and where machine code is kept; returns whether it can be kept."""
    numba.config.THREADING_LAYER = "workqueue"  # numba's OpenMP pool is PyTorch's too, and would change its number of threads
    if folder is not None:
        numba.config.CACHE_DIR = str(folder)
    return folder is not None


COMPILED = compiled_folder()
QUICK = {"fastmath": True, "nogil": True}  # fastmath: sums in any order, or nothing would run in parallel lanes
# Only functions that Python calls are kept, each with all that it calls. A kept one compiled from a part that was itself kept,
# with threads in it, crashes when a third process loads it.
KEPT = {**QUICK, "cache": numba_ready(COMPILED)}
