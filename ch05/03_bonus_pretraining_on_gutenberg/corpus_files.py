"""Plumbing around text files: find them in a fixed order, read them or say why not, tell how long the rest will take."""

import sys
import time
from pathlib import Path

from previous_chapters import likely_encoding

ENDINGS = (".txt", ".txt.utf8")


def find_text_files(folder: str | Path) -> list[Path]:
    """Return the .txt and .txt.utf8 files below a folder, sorted by path; ValueError if there are none.

    Sorted, because the order in which a file system lists a folder differs between machines.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}")
    files = sorted((path for path in folder.rglob("*") if path.name.endswith(ENDINGS) and path.is_file()), key=lambda p: p.as_posix())
    if not files:
        raise ValueError(f"no text files in {folder} (looked for {' and '.join(ENDINGS)})")
    return files


def read_document(path: Path, fallback_encoding: str = "latin1") -> str:
    """Return a text file in UTF-8 or, as old books are, in `fallback_encoding`, without a byte-order mark.

    ValueError with a short reason for a file that is empty, binary, in UTF-16 or unreadable.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    if not data.strip():
        raise ValueError("empty")
    if b"\0" in data:
        encoding = likely_encoding(data)
        raise ValueError(f"probably {encoding}, not UTF-8: save it as UTF-8" if encoding else "binary, not text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode(fallback_encoding, errors="replace")


def convert_time(seconds: float) -> tuple[int, int, int]:
    """Return whole (hours, minutes, seconds)."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return hours, minutes, seconds


def time_text(seconds: float) -> str:
    """Return a duration such as "1h 02m 07s"."""
    hours, minutes, seconds = convert_time(seconds)
    return f"{hours}h {minutes:02}m {seconds:02}s"


def print_eta(start_time: float, book_start_time: float, index: int, total_files: int) -> None:
    """Print on stderr how long file `index` (counted from 1) took, how long all took so far, and how long the rest may take.

    Both times are values of time.monotonic(), or both of time.time().
    """
    now = time.time() if start_time > 1e9 else time.monotonic()  # seconds since 1970 are above 10^9
    elapsed = now - start_time
    left = elapsed / index * (total_files - index)
    parts = f"{time_text(now - book_start_time)}, all so far {time_text(elapsed)}, about {time_text(left)} left"
    print(f"file {index} of {total_files}: {parts}", file=sys.stderr)
