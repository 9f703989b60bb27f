"""Report near-duplicates in a JSON list of entries, and remove repeated questions when asked. near_duplicates.py does the work.

Run it:  python find-near-duplicates.py                                            (a few built-in entries)
         python find-near-duplicates.py --json_file instruction-examples.json      (the examples of this folder)
         python find-near-duplicates.py --json_file instruction-data.json --train_entries 935      (training against the rest)
"""

import argparse
import json
import os
import sys
from pathlib import Path

from instructions import read_list
from near_duplicates import (
    QUESTION_FIELDS,
    THRESHOLD,
    find_print_and_remove_near_duplicates,
    print_pairs,
    similar_pairs,
)
from previous_chapters import OneLineParser, int_at_least

EXAMPLES = [
    {"instruction": "What is the capital of Chile?", "input": "", "output": "The capital of Chile is Santiago."},
    {"instruction": "Make the sentence shorter.", "input": "The cat that is gray sleeps.", "output": "The gray cat sleeps."},
    {"instruction": "what is the capital of chile", "input": "", "output": "It is Santiago."},
    {"instruction": "What's the capital of Chile?", "input": "", "output": "Santiago is the capital of Chile."},
    {"instruction": "Make the sentence shorter.", "input": "We ate all of the soup that was left.", "output": "We ate the leftover soup."},
    {"instruction": "Name a city in Chile that is not the capital.", "input": "", "output": "Concepción is a city in Chile."},
]


def similarity(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range (allowed: 0 to 1)")
    return value


def check_output(output: str | None, json_file: str | None, remove: bool) -> None:
    """Raise ValueError before any work if the result would have no place, or would replace a file."""
    if remove and not output:
        raise ValueError("--remove_duplicates needs --json_output_file, the file to write what stays to")
    if output and not remove:
        raise ValueError("--json_output_file is written with --remove_duplicates only")
    if not output:
        return
    path = Path(output)
    if json_file and path.resolve() == Path(json_file).resolve():
        raise ValueError("--json_output_file is the input file; name another one")
    if path.exists():
        raise ValueError(f"{output} exists already; remove it, or name another --json_output_file")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} does not exist")


def write_list(entries: list[dict], output: str) -> None:
    """Write the whole list under another name, then rename it: nobody finds half a file."""
    part = Path(output).with_name(Path(output).name + ".part")
    part.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, output)


def across(entries: list[dict], train_entries: int, remove: bool, threshold: float) -> list[dict]:
    """Print the questions that the first entries share with the rest; return the list, without these training entries if asked."""
    train, rest = entries[:train_entries], entries[train_entries:]
    pairs = similar_pairs(train, rest, threshold)
    print(f"{len(pairs)} pairs of a training question and a later one, similarity {threshold} or more in instruction and input")
    print_pairs([(i, j + train_entries, similarity) for i, j, similarity in pairs], entries, entries, QUESTION_FIELDS)
    leaked = {i for i, _, _ in pairs}
    if not remove:
        return entries
    print(f"\nremoved from training: {len(leaked)} entries; training is now the first {train_entries - len(leaked)}")
    return [entry for position, entry in enumerate(entries) if position not in leaked]


def main(argv: list[str] | None = None) -> int:
    """Command line; see the top of the file."""
    parser = OneLineParser("Report near-duplicates in a JSON list of entries, and remove repeated questions.")
    parser.add_argument("--json_file", help="JSON list of objects (none: a few built-in entries)")
    parser.add_argument("--threshold", type=similarity, default=THRESHOLD, help="least similarity to report, from 0 to 1")
    parser.add_argument("--train_entries", type=int_at_least(1), help="compare the first N entries, the training set, with the rest")
    parser.add_argument("--remove_duplicates", action="store_true", help="also write the list without the repeated questions")
    parser.add_argument("--json_output_file", help="new file for --remove_duplicates")
    args = parser.parse_args(argv)
    try:
        check_output(args.json_output_file, args.json_file, args.remove_duplicates)
        entries = read_list(args.json_file) if args.json_file else EXAMPLES
        if args.train_entries and args.train_entries >= len(entries):
            raise ValueError(f"--train_entries is {args.train_entries}, but there are only {len(entries)} entries: nothing is left to test")
        if args.train_entries:
            kept = across(entries, args.train_entries, args.remove_duplicates, args.threshold)
        else:
            kept = find_print_and_remove_near_duplicates(entries, args.remove_duplicates, args.threshold)
        if args.remove_duplicates:
            write_list(kept, args.json_output_file)
            print(f"{len(kept)} of {len(entries)} entries written to {args.json_output_file}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
