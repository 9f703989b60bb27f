"""How eval-example-data.json and more-answers.json were made: from the answers that the chapter's programs have stored.

    python make_eval_data.py            # writes both files; needs the chapter's main folder, and no model
    python make_eval_data.py --check    # compares them with what is stored; exit code 1 if they differ

Model 1 is Gemma 3 270M tuned on the chapter's 935 training entries (seed 123), model 2 the same model before tuning. Model 3 is
a second training with seed 7, model 4 the tuned gpt2-mini. All four were asked the first 100 of the 110 test entries.
"""

import json
import sys
from pathlib import Path

from previous_chapters import OneLineParser, read_text

FOLDER = Path(__file__).resolve().parent
MAIN_FOLDER = FOLDER.parent / "01_main-chapter-code"
TRAIN, ASKED = 935, 100  # training entries come first in the data, then the test entries
RUNS = {"model 1 response": "all weights, seed 123", "model 3 response": "all weights, seed 7"}  # as gemma-log.json names them
ABOUT = {
    "models": "Models 1 and 3: Gemma 3 270M tuned on this course's instructions, seeds 123 and 7. Model 2: Gemma 3 270M as published. "
    "Model 4: gpt2-mini tuned on this course's instructions.",
}


def read_json(path: Path):
    """Return what a JSON file holds; ValueError in one line if it is missing or broken."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None


def make_files(main_folder: Path) -> dict[str, str]:
    """Return {file name: text} of the two files, from data and answers in the chapter's main folder."""
    log, mini = read_json(main_folder / "gemma-log.json"), read_json(main_folder / "instruction-data-with-response.json")
    asked = slice(TRAIN, TRAIN + ASKED)
    entries = read_json(main_folder / "instruction-data.json")[asked]
    families = read_json(main_folder / "instruction-data-families.json")[asked]
    answers = {run["name"]: run["after"]["answers"] for run in log["runs"]}
    first, third = (answers[RUNS[key]] for key in ("model 1 response", "model 3 response"))
    fourth = {(entry["instruction"], entry["input"]): entry["model_response"] for entry in mini}
    data, more = [], []
    for i, (entry, family) in enumerate(zip(entries, families, strict=True)):
        data.append({**entry, "model 1 response": first[i], "model 2 response": log["before"]["answers"][i]})
        others = {"model 3 response": third[i], "model 4 response": fourth[entry["instruction"], entry["input"]]}
        more.append({"family": family["family"], "check": family["check"], **others})
    files = {"eval-example-data.json": data, "more-answers.json": {**ABOUT, "terms": log["terms"], "entries": more}}
    return {name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in files.items()}


def main(argv: list[str] | None = None) -> int:
    """Write or compare both files; returns 1 if they differ, exits with code 2 and one line on bad input."""
    parser = OneLineParser("Make eval-example-data.json and more-answers.json from the chapter's stored answers.")
    parser.add_argument("--main_folder", type=Path, default=MAIN_FOLDER, help="the chapter's main folder")
    parser.add_argument("--output_dir", type=Path, default=FOLDER, help="where the files go")
    parser.add_argument("--check", action="store_true", help="compare with the files there, write nothing")
    args = parser.parse_args(argv)
    try:
        files = make_files(args.main_folder)
        if args.check:
            stale = [name for name, text in files.items() if read_text(args.output_dir / name) != text]
            print("\n".join(f"{name} is not what the stored answers say" for name in stale) or "both files are as they should be")
            return 1 if stale else 0
        args.output_dir.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (args.output_dir / name).write_text(text, encoding="utf-8", newline="\n")
            print(f"{args.output_dir / name}: {ASKED} entries")
    except (ValueError, OSError, KeyError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
