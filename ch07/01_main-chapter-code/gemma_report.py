"""What tuning gave Gemma 3 270M: reads its answers from gemma-log.json, verifies each one anew, counts, and draws.

    python gemma_report.py                                    # print the tables
    python gemma_report.py --join before/log.json "all weights, seed 123=gemma-model/log.json" "LoRA, rank 16=gemma-lora/log.json"

The second command writes gemma-log.json from the log.json files of gemma_instruction_finetuning.py: first one with answers of
the untuned model (--before), then any number of trainings, each with the name it is to have. ch07-gemma3.ipynb draws the result.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

from instruction_data_checks import GROUPS, load_data, load_verifiable_test, print_table, question_of, read_list, verify, well_formed
from previous_chapters import COLORS, OneLineParser, read_text

LOG_FILE = Path(__file__).resolve().parent / "gemma-log.json"
MINI_FILE = Path(__file__).resolve().parent / "exercise-experiments-log.jsonl"  # gpt2-mini, with the loss on the answers, and otherwise
ABOUT = {
    "model": "The answers were written by Gemma 3 270M, as published and tuned on this course's instructions.",
    "terms": "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms",
}
RUN_COLORS = [COLORS[name] for name in ("red", "blue", "sky", "green", "orange", "black")]  # before, then one a run
MARKERS = "osD^vP"
WINDOW = 20  # updates: single batches of 8 entries differ too much to draw
CUT = 200  # characters kept of an answer that did not end
ABSENT = "this writes it: python gemma_report.py --join ..."


# ---- reading ----


def asked_questions() -> list[dict]:
    """The questions in the order of the answers: the data's test split (group "test"), then the verifiable test. ch07-gemma3.ipynb."""
    data, families = load_data()[935:1045], read_list(Path(__file__).resolve().parent / "instruction-data-families.json")[935:1045]
    return [{**entry, **family, "group": "test"} for entry, family in zip(data, families)] + load_verifiable_test()


def fingerprint(questions: list[dict]) -> str:
    """A checksum of the questions, so that answers are never held against other questions. ch07-gemma3.ipynb."""
    return hashlib.sha256("\n".join(map(question_of, questions)).encode()).hexdigest()


def read_log(path: str | Path, *parts: str) -> dict:
    """Read a JSON object; ValueError in one line for another file, and if one of the parts is missing."""
    try:
        log = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    for part in parts:
        if not isinstance(log, dict) or part not in log:
            raise ValueError(f"{path} has no part {part!r}")
    return log


def check_answers(answered: dict, count: int, whose: str) -> dict:
    """Return {"answers", "ended", ...} as it is; ValueError if it does not hold `count` texts and as many booleans."""
    for field, kind in (("answers", str), ("ended", bool)):
        values = answered.get(field) if isinstance(answered, dict) else None
        if not isinstance(values, list) or len(values) != count or not all(isinstance(value, kind) for value in values):
            raise ValueError(f"{whose} does not have {count} {field}, one for each question")
    return answered


def load_gemma_log(path: str | Path = LOG_FILE) -> dict:
    """Return {"before": answered, "runs": [{"name", "run", "after": answered}]}, answered = {"answers", "ended", "seconds"}.

    ValueError in one line if the file is missing, damaged, or belongs to other questions than those beside this program.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; {ABSENT}")
    log, questions = read_log(path, "questions", "before", "runs"), asked_questions()
    if log["questions"] != fingerprint(questions):
        raise ValueError(f"the answers in {path} belong to other questions: train again, then {ABSENT}")
    check_answers(log["before"], len(questions), f"{path}, before")
    for run in log["runs"]:
        check_answers(run["after"], len(questions), f"{path}, {run['name']}")
    return log


def mini_marks(path: str | Path = MINI_FILE) -> dict | None:
    """Return {group: {"of", "right", "well_formed", "ended"}} of gpt2-mini with the loss on the answers, or None if it was not measured."""
    if not Path(path).is_file():
        return None
    runs = [json.loads(line) for line in read_text(path).splitlines() if line.strip()]
    return next((run["marks"] for run in runs if run["run"] == "mask-instructions"), None)


# ---- marking ----


def mark(answered: dict, questions: list[dict]) -> list[dict]:
    """Return the questions with `answer`, `ended`, `well_formed`, and `right` (None without a check). ch07-gemma3.ipynb.

    An answer that did not end is neither right nor well formed, whatever it begins with.
    """
    rows = []
    for question, answer, ended in zip(questions, answered["answers"], answered["ended"], strict=True):
        check = question["check"]
        right = None if check is None else ended and verify(check, answer, question_of(question))
        rows.append({**question, "answer": answer, "ended": ended, "well_formed": ended and well_formed(check, answer), "right": right})
    return rows


def count(rows: list[dict], field: str = "right", **where: str) -> tuple[int, int]:
    """Return (how many, of how many) rows have the field, among those where it is known and that have the values in `where`."""
    chosen = [row for row in rows if row[field] is not None and all(row[key] == value for key, value in where.items())]
    return sum(row[field] for row in chosen), len(chosen)


def right_first_lines(rows: list[dict], **where: str) -> tuple[int, int]:
    """Count as right what has a right first line, whatever follows: the gentlest reading of an answer without an end. ch07-gemma3.ipynb."""
    lines = [{**row, "right": verify(row["check"], row["answer"].split("\n")[0], question_of(row))} for row in rows if row["check"]]
    return count(lines, **where)


def by_family(marked: dict[str, list[dict]], group: str = "unseen") -> list[tuple]:
    """Rows (family, questions, right in the first set of answers, in the second, ...), best of the last set first."""
    names = dict.fromkeys(row["family"] for rows in marked.values() for row in rows if row["group"] == group)
    table = [
        (name, count(next(iter(marked.values())), group=group, family=name)[1])
        + tuple(count(rows, group=group, family=name)[0] for rows in marked.values())
        for name in names
    ]
    return sorted(table, key=lambda row: (-row[-1] / row[1], row[0]))


# ---- figures ----


def draw_losses(log: dict):
    """Training loss, as a mean over WINDOW updates, and validation loss of every run over its updates. ch07-gemma3.ipynb."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7.5, 3), sharey=True)
    for run, color, marker in zip(log["runs"], RUN_COLORS[1:], MARKERS[1:]):
        losses, number, freq = run["run"]["train_losses"], run["run"]["updates"], run["run"]["eval_freq"]
        means = [sum(losses[end - WINDOW : end]) / WINDOW for end in range(WINDOW, number + 1)]
        measured = [update for update in range(1, number + 1) if update == 1 or update % freq == 0]
        axes[0].plot(range(WINDOW, number + 1), means, color=color)
        axes[1].plot(measured, run["run"]["val_losses"], color=color, marker=marker, markersize=5, label=run["name"])
    axes[0].set(title=f"On training batches, means of {WINDOW}", xlabel="updates", ylabel="loss per answer token (nats)")
    axes[1].set(title="On the validation entries", xlabel="updates")
    axes[1].legend()
    return fig


def draw_families(marked: dict[str, list[dict]]):
    """Share of right answers on unseen words in each family, a point for each set of answers. ch07-gemma3.ipynb."""
    import matplotlib.pyplot as plt

    before, *after = marked
    table = by_family({name: marked[name] for name in (before, *after)})[::-1]
    places = range(len(table))
    fig, ax = plt.subplots(figsize=(7.5, 5))
    ax.hlines(places, [row[2] / row[1] for row in table], [row[3] / row[1] for row in table], color="#BBBBBB", linewidth=3, zorder=0)
    for column, (name, color, marker) in enumerate(zip(marked, RUN_COLORS, MARKERS), 2):
        ax.scatter([row[column] / row[1] for row in table], places, color=color, marker=marker, s=36, label=name, clip_on=False)
    ax.set_yticks(places, [row[0].replace("_", " ") for row in table])
    ax.set(xlim=(0, 1), xlabel="share right, of 20 questions with words that tuning never showed")
    base, of = count(marked[before], group="unseen")
    totals = [count(marked[name], group="unseen")[0] for name in after]
    ax.set_title(f"Words never seen in tuning: {base} of {of} right before, {min(totals)} to {max(totals)} after")
    fig.legend(loc="outside lower center", ncols=len(marked))
    return fig


def shares(rows: list[dict]) -> list[float]:
    """[form, recall, rule]: share of well-formed answers in both groups, of right ones on seen words, of right ones on unseen words."""
    told = [row for row in rows if row["group"] in ("seen", "unseen")]
    counts = count(told, "well_formed"), count(told, group="seen"), count(told, group="unseen")
    return [number / of for number, of in counts]


def mini_shares(marks: dict) -> list[float]:
    """The same three shares from the marks of gpt2-mini."""
    seen, unseen = marks["seen"], marks["unseen"]
    formed = (seen["well_formed"] + unseen["well_formed"]) / (seen["of"] + unseen["of"])
    return [formed, seen["right"] / seen["of"], unseen["right"] / unseen["of"]]


def draw_form_recall_rule(marked: dict[str, list[dict]], mini: dict | None = None):
    """Bars of `shares` for every set of answers, gpt2-mini first if it was measured. ch07-gemma3.ipynb."""
    import matplotlib.pyplot as plt

    bars = {"gpt2-mini, tuned": mini_shares(mini)} if mini else {}
    bars |= {f"Gemma, {name}": shares(rows) for name, rows in marked.items()}
    colors = [COLORS["purple"]] * bool(mini) + RUN_COLORS
    fig, ax = plt.subplots(figsize=(7.5, 3.4))
    width = 0.8 / len(bars)
    for number, ((name, values), color) in enumerate(zip(bars.items(), colors)):
        places = [place - 0.4 + width * (number + 0.5) for place in range(3)]
        ax.bar(places, values, 0.92 * width, color=color, label=name)
        for place, value in zip(places, values):
            ax.text(place, value + 0.01, f"{value:.0%}", ha="center", fontsize=9)
    ax.set_xticks(range(3), ["form\n(answer looks as it should)", "recall\n(right, words seen)", "rule\n(right, words unseen)"])
    ax.set(ylim=(0, 1.1), ylabel="share of answers", title="Form, recall, rule")
    fig.legend(loc="outside lower center", ncols=3)
    return fig


# ---- command line ----


def join(before_path: str, named_paths: list[str], questions: list[dict]) -> str:
    """Return the text of gemma-log.json from log.json files; `named_paths` are "NAME=PATH". Answers have one line each."""
    before = check_answers(read_log(before_path, "before")["before"], len(questions), before_path)
    pairs = list(zip(before["answers"], before["ended"]))
    before = {**before, "answers": [answer if ended else answer[:CUT] for answer, ended in pairs]}
    runs = []
    for name, found, path in (text.partition("=") for text in named_paths):
        if not found or not name:
            raise ValueError(f"{name!r} is not of the form NAME=PATH")
        log = read_log(path, "run", "after")
        runs.append({"name": name, "run": log["run"], "after": check_answers(log["after"], len(questions), path)})
    log = {**ABOUT, "questions": fingerprint(questions), "before": before, "runs": runs}
    text = json.dumps(log, indent=0, ensure_ascii=False)
    return re.sub(r"(?<=[\[,])\n(?=(?:true|false|-?\d[\d.e+-]*)[,\n])", "", text) + "\n"  # short values share a line


def print_report(log: dict, questions: list[dict]) -> None:
    """Print right answers by group, and on unseen words by family."""
    marked = {"before": mark(log["before"], questions), **{run["name"]: mark(run["after"], questions) for run in log["runs"]}}
    for name, rows in marked.items():
        numbers = [f"{group} {right}/{of}" for group in ("test", *GROUPS) for right, of in [count(rows, group=group)]]
        form = f"{count(rows, 'ended')[0]} of {len(rows)} ended, {count(rows, 'well_formed')[0]} well formed"
        print(f"{name}: {form}; right: {', '.join(numbers)}")
    print("\nRight on unseen words")
    print_table(("family", "of", "before", *(f"run {number + 1}" for number in range(len(log["runs"])))), by_family(marked))


def command_line(argv: list[str] | None = None) -> int:
    """Print the tables, or join logs; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Count the right answers of Gemma 3 270M before and after tuning.")
    parser.add_argument("--log", default=str(LOG_FILE), help="file with all answers, read or written")
    parser.add_argument("--join", nargs="+", metavar="LOG", help="a log.json with `before`, then NAME=log.json of each training")
    args = parser.parse_args(argv)
    try:
        questions = asked_questions()
        if args.join:
            text = join(args.join[0], args.join[1:], questions)
            Path(args.log).write_text(text, encoding="utf-8", newline="\n")
        print_report(load_gemma_log(args.log), questions)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
