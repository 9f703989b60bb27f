"""What DPO changed in Gemma 3 270M: reads its answers from gemma-dpo-log.json, judges each one anew, and counts.

    python gemma_dpo_report.py                                                       # print the tables
    python gemma_dpo_report.py --join gemma-dpo-model/log.json gemma-dpo-beta-0.5/log.json

The second command writes gemma-dpo-log.json from the log.json files of gemma_dpo.py. dpo-from-scratch.ipynb draws the result.
"""

import json
import re
import sys
from pathlib import Path

from instructions import asked_questions, check_answers, fingerprint, read_log, split_data
from preference_batches import load_pairs
from previous_chapters import OneLineParser
from tone import learn_tones, report_lines, tone_accuracy, tone_report

LOG_FILE = Path(__file__).resolve().parent / "gemma-dpo-log.json"
PARTS = {"the 110 test entries": slice(0, 110), "the 482 further questions": slice(110, None)}


def read_gemma_dpo_log(path: str | Path = LOG_FILE) -> dict:
    """Return {"before": answered, "runs": [{"name", "run", "after": answered}]}, answered = {"answers", "ended", "seconds"}.

    ValueError in one line if the file is missing or damaged, or if its answers belong to other questions.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; this writes it: python gemma_dpo_report.py --join ...")
    log, questions = read_log(path, "questions", "before", "runs"), asked_questions()
    if log["questions"] != fingerprint(questions):
        raise ValueError(f"the answers in {path} belong to other questions: train again")
    for name, answered in [("before", log["before"]), *((run["name"], run["after"]) for run in log["runs"])]:
        check_answers(answered, len(questions), f"{path}, {name}")
    return log


def write_log(log: dict, path: str | Path) -> None:
    """Write a log as JSON, an answer on each line, numbers side by side."""
    text = json.dumps(log, indent=0, ensure_ascii=False)
    text = re.sub(r"(?<=[\[,])\n(?=(?:true|false|-?\d[\d.e+-]*)[,\n])", "", text)
    Path(path).write_text(text + "\n", encoding="utf-8", newline="\n")


def join(paths: list[str]) -> dict:
    """Return one log out of several, with the `before` of the first; ValueError if they began with other answers."""
    logs = [read_gemma_dpo_log(path) for path in paths]
    if any(log["before"]["answers"] != logs[0]["before"]["answers"] for log in logs):
        raise ValueError(f"{', '.join(paths)} started from different models: their answers before tuning differ")
    return {**logs[0], "runs": [run for log in logs for run in log["runs"]]}


def reports_of(log: dict, part: slice, table: dict) -> dict[str, dict]:
    """Return {"before" or name of the run: tone_report of its answers to a part of the questions}. dpo-from-scratch.ipynb, section 7."""
    questions = asked_questions()[part]
    answered = {"before": log["before"], **{run["name"]: run["after"] for run in log["runs"]}}
    return {name: tone_report(questions, one["answers"][part], one["ended"][part], table) for name, one in answered.items()}


def print_reports(log: dict) -> None:
    """Print what changed, for the test entries and for the further questions that a program can verify."""
    train_data, test_data, _ = split_data(load_pairs())
    table = learn_tones(train_data)
    for title, part in PARTS.items():
        print(f"{title}\n{report_lines(reports_of(log, part, table), tone_accuracy(test_data, table))}\n")


def main(argv: list[str] | None = None) -> int:
    """Print the tables, or join logs; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Count what preference tuning changed in the answers of Gemma 3 270M.")
    parser.add_argument("--log", default=str(LOG_FILE), help="file with all answers, read or written")
    parser.add_argument("--join", nargs="+", metavar="LOG", help="log.json files of gemma_dpo.py")
    args = parser.parse_args(argv)
    try:
        if args.join:
            write_log(join(args.join), args.log)
        print_reports(read_gemma_dpo_log(args.log))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
