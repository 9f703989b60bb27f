"""Score answers exactly: 799 of the 1,100 entries of `instruction-data.json` have answers that a program can verify.

`verify(check, answer)` accepts what a reasonable person accepts, however it is worded, and nothing else. The checks stand
in `instruction-data-families.json`, entry by entry in the order of the data; `instruction_data_verifiers.py` says how an
answer is read. `instruction-verifiable-test.json` holds further questions to measure with. Chapter 7.

Verify the data:      python instruction_data_checks.py
Score some answers:   python instruction_data_checks.py --answers instruction-data-with-response.json --key model_response
"""

import json
import sys
from pathlib import Path

from instruction_data_verifiers import VERIFIERS, right_form
from previous_chapters import OneLineParser, read_text

FOLDER = Path(__file__).resolve().parent
DATA_FILE = Path(__file__).resolve().parent / "instruction-data.json"  # each path in full, so that the file is copied with its reader
FAMILIES_FILE = Path(__file__).resolve().parent / "instruction-data-families.json"
VERIFIABLE_TEST_FILE = Path(__file__).resolve().parent / "instruction-verifiable-test.json"
FIELDS = ("instruction", "input", "output")
GROUPS = ("unseen", "seen", "rephrased")  # of the verifiable test
LONGEST = 60  # words: whoever says more than that is guessing or wandering
SPLITS = {"train": 935, "test": 110, "val": 55}  # by position, in this order


def verify(check: dict, answer: str | None, question: str = "") -> bool:
    """True if the answer is right. With the question's text, its words and numbers may be repeated, and an echo of it fails.

    No answer, and more than 60 words, are never right. Raises KeyError for a check of an unknown kind.
    """
    verifier = VERIFIERS[check["kind"]]
    if not isinstance(answer, str) or not 0 < len(answer.split()) <= LONGEST:
        return False
    return verifier(check, answer.strip(), question)


def well_formed(check: dict | None, answer: str | None) -> bool:
    """True if the answer has the form its task asks for, whatever it says.

    A text is one line that begins like a sentence and ends with a mark (in the family uppercase: has capitals only), a word
    one line of at most ten, a number one number ("48 + 25 = 73" too), a list two items or more with something between them;
    without a check, anything of 1 to 80 words.
    """
    return isinstance(answer, str) and bool(answer.strip()) and right_form(check, answer.strip())


def question_of(entry: dict) -> str:
    """Instruction and input in one text."""
    return f"{entry['instruction']}\n{entry['input']}".strip()


# ---- files ----


def read_list(path: str | Path) -> list[dict]:
    """Read a JSON list of objects; anything else is a ValueError of one line."""
    text = read_text(path)
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise ValueError(f"{path} is not a JSON list of objects")
    return data


def load_data(path: str | Path = DATA_FILE) -> list[dict[str, str]]:
    """Read the entries; ValueError names the first one without the three text fields."""
    data = read_list(path)
    for number, entry in enumerate(data):
        for field in FIELDS:
            if not isinstance(entry.get(field), str):
                raise ValueError(f"{path}: entry {number} has no text field '{field}'")
    return data


def load_families(path: str | Path = FAMILIES_FILE) -> list[dict]:
    """Read [{"family": name, "check": dict or None, "known": bool}] in the order of the data; ValueError names the first broken entry."""
    families = read_list(path)
    for number, entry in enumerate(families):
        check = entry.get("check")
        if not isinstance(entry.get("family"), str) or "check" not in entry:
            raise ValueError(f"{path}: entry {number} needs the fields 'family' and 'check'")
        if check is not None and (not isinstance(check, dict) or check.get("kind") not in VERIFIERS):
            raise ValueError(f"{path}: entry {number} has a check of an unknown kind")
    return families


def load_verifiable_test(path: str | Path = VERIFIABLE_TEST_FILE) -> list[dict]:
    """Read the questions that only measure: entries with `family`, `check` and `known`, in the groups unseen, seen and rephrased."""
    load_families(path)  # they have the same fields
    data = load_data(path)
    for number, entry in enumerate(data):
        if entry.get("group") not in GROUPS:
            raise ValueError(f"{path}: entry {number} is in none of the groups {', '.join(GROUPS)}")
    return data


def split(data: list) -> tuple[list, list, list]:
    """Cut a list of 1,100 into train (935), test (110) and validation (55), by position in this order."""
    if len(data) != sum(SPLITS.values()):
        raise ValueError(f"{len(data)} entries; the splits need {sum(SPLITS.values())}")
    train, test = SPLITS["train"], SPLITS["train"] + SPLITS["test"]
    return data[:train], data[train:test], data[test:]


# ---- scores ----


def score(answers: list, data: list[dict], families: list[dict], start: int = 0) -> dict[str, tuple[int, int]]:
    """Count right answers: {family: (right, verifiable)} over the entries start, start + 1, ... that the answers belong to.

    For the answers to the test split, start is 935. None and "" count as wrong; entries without a check are left out.
    """
    if start < 0 or start + len(answers) > len(data) or len(data) != len(families):
        raise ValueError(f"{len(answers)} answers from entry {start} on do not fit {len(data)} entries and {len(families)} families")
    table = {}
    for answer, entry, row in zip(answers, data[start:], families[start:]):
        if row["check"] is not None:
            right, total = table.get(row["family"], (0, 0))
            table[row["family"]] = (right + verify(row["check"], answer, question_of(entry)), total + 1)
    return table


def rows_of(answered: list[dict], key: str, known: list[tuple[dict, dict]], path: str) -> list[dict]:
    """Return the row (family, check) of each answered entry, found by its question; ValueError names the first without answer or place."""
    rows = {(entry["instruction"], entry["input"]): row for entry, row in known}
    found = []
    for number, entry in enumerate(answered):
        if key not in entry:
            raise ValueError(f"{path}: entry {number} has no field '{key}'")
        row = rows.get((entry.get("instruction"), entry.get("input")))
        if row is None:
            raise ValueError(f"{path}: entry {number} is not in the instruction data")
        found.append(row)
    return found


def score_file(path: str, key: str, data: list[dict], families: list[dict]) -> dict[str, tuple[int, int]]:
    """Score a file of answers to entries of the data or of the verifiable test, in any order."""
    answered, test = read_list(path), load_verifiable_test()
    rows = rows_of(answered, key, [*zip(test, test), *zip(data, families)], path)
    table = score([entry[key] for entry in answered], answered, rows)
    if not table:
        raise ValueError(f"{path}: no entry can be verified")
    return table


def wrong_entries(data: list[dict], families: list[dict]) -> list[str]:
    """One line for each entry whose own output its verifier does not accept."""
    lines = []
    for number, (entry, row) in enumerate(zip(data, families)):
        if row["check"] is not None and not verify(row["check"], entry["output"], question_of(entry)):
            lines.append(f"entry {number} ({row['family']}): {entry['output']!r} fails {row['check']}")
    return lines


def summary(data: list[dict], families: list[dict]) -> list[tuple]:
    """Rows (family, entries, verifiable, train, test, val), verifiable families first."""
    rows = {}
    for place, part in enumerate(split(families)):
        for row in part:
            counts = rows.setdefault(row["family"], [0] * 5)
            counts[0] += 1
            counts[1] += row["check"] is not None
            counts[2 + place] += 1
    return sorted(((family, *counts) for family, counts in rows.items()), key=lambda row: (row[2] == 0, row[0]))


def print_table(header: tuple, rows: list[tuple]) -> None:
    """Print rows with a total, the first column left, numbers right."""
    total = ("total", *(sum(column) for column in list(zip(*rows))[1:]))
    for row in [header, *rows, total]:
        print(f"{row[0]:<20}" + "".join(f"{cell:>11}" for cell in row[1:]))


def main(argv: list[str] | None = None) -> int:
    """Command line; see the top of the file. Returns 1 if an entry of the data fails its own check."""
    parser = OneLineParser("Verify the instruction data, or score answers to it.")
    parser.add_argument("--data", default=DATA_FILE, help="instruction data")
    parser.add_argument("--families", default=FAMILIES_FILE, help="families and checks")
    parser.add_argument("--answers", help="JSON list of entries with answers, for example instruction-data-with-response.json")
    parser.add_argument("--key", default="model_response", help="field of the answers")
    args = parser.parse_args(argv)
    try:
        data, families = load_data(args.data), load_families(args.families)
        split(data), split(families)
        table = score_file(args.answers, args.key, data, families) if args.answers else None
    except ValueError as error:
        parser.error(str(error))
    if table:
        print_table(("family", "right", "of"), [(family, *counts) for family, counts in sorted(table.items())])
        return 0
    print_table(("family", "entries", "verified", "train", "test", "val"), summary(data, families))
    wrong = wrong_entries(data, families)
    print("\n".join([*wrong, f"{len(wrong)} entries fail"]) if wrong else "every verifiable output is right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
