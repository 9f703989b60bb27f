"""Measure what three models do untrained by you: their loss on a story they have never read, and five tasks by example.

    python base_models.py --output base-models.json

The story is The Tide Clock, written for this course. Losses are in nats per byte, since the models' tokenizers differ. The
file base-models.json beside this program is its committed result; the notebook what-a-base-model-is.ipynb draws it.
"""

import json
import math
import platform
import sys
import time
from pathlib import Path

import torch
from few_shot import QUESTIONS, SHOTS, few_shot_prompts, line_is_right, mentions, question_prompts, task_pairs
from previous_chapters import STORY_FILE, OneLineParser, int_at_least
from readers import NAMES, answer_texts, continue_texts, load_reader, nats_by_position, token_nats
from tqdm import tqdm

BIN_BYTES = 2000  # of the curve over the story
NEW_TOKENS = {"line": 8, "answer": 24}  # an example's answer is a word; a question may be answered in a sentence


def story_losses(reader, text: str, windows: list[int]) -> dict:
    """Loss of the whole text for each window (tokens the model sees at once), and its course for the largest one."""
    ids = reader.encode(text)
    size = len(text.encode())
    longest = len(ids) + 1 if reader.cached else reader.context_length
    rows = []
    for window in [*[window for window in windows if window < longest], longest]:
        nats = token_nats(reader, ids, window)
        total = math.fsum(nats)
        rows.append({"window": window, "nats": round(total, 1), "nats_per_token": round(total / len(ids), 4),
                     "nats_per_byte": round(total / size, 4)})
    curve = [round(value, 4) for value in nats_by_position(reader, ids, nats, BIN_BYTES)]
    return {"tokens": len(ids), "bytes": size, "windows": rows, "bin_bytes": BIN_BYTES, "nats_per_byte_by_position": curve}


def task_scores(reader, task: str, shots, num_items: int, seed: int) -> dict:
    """Right answers of `num_items`: to the question in words, and after 0, 1, 2, ... examples; up to four wrong ones, spelled out."""
    pairs = task_pairs(task, seed)[:num_items]
    answers = [answer for _, answer in pairs]
    written = answer_texts(reader, question_prompts(task, seed)[:num_items], NEW_TOKENS["answer"])
    scores, wrong = {"question": sum(map(mentions, written, answers))}, []
    for num_shots in shots:
        written = continue_texts(reader, few_shot_prompts(task, num_shots, seed)[:num_items], NEW_TOKENS["line"])
        right = list(map(line_is_right, written, answers))
        scores[str(num_shots)] = sum(right)
        wrong = [f"{question}:{line.splitlines()[0] if line else ''}" for (question, _), line, ok in zip(pairs, written, right, strict=True)
                 if not ok]
    return {"right": scores, "wrong_after_most_examples": wrong[:4]}


def processor_name() -> str:
    """The processor as Linux names it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def measure(name: str, text: str, args) -> dict:
    """All measurements of one model."""
    reader, start = load_reader(name), time.perf_counter()
    result = {"parameters": reader.num_parameters, "story": story_losses(reader, text, args.windows), "tasks": {}}
    for task in tqdm(args.tasks, desc=f"{name}: tasks", disable=None):
        result["tasks"][task] = task_scores(reader, task, args.shots, args.num_items, args.seed)
    return {**result, "seconds": round(time.perf_counter() - start)}


def command_line(argv) -> tuple:
    """Parse the options; an output that exists is refused before anything long begins."""
    parser = OneLineParser("Measure losses and few-shot answers of three language models.")
    parser.add_argument("--output", type=Path, default=Path("base-models.json"), help="JSON file to write; it must not exist")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES), help="models to measure")
    parser.add_argument("--windows", nargs="+", type=int_at_least(2), default=[256, 1024], help="tokens seen at once, besides all")
    parser.add_argument("--max_bytes", type=int_at_least(100), default=None, help="only the beginning of the story")
    parser.add_argument("--tasks", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), help="few-shot tasks")
    parser.add_argument("--shots", nargs="+", type=int, choices=range(max(SHOTS) + 1), default=list(SHOTS), help="examples in a prompt")
    parser.add_argument("--num_items", type=int_at_least(1), default=24, help="questions of each task")
    parser.add_argument("--seed", type=int, default=123, help="draws the examples and the sums")
    args = parser.parse_args(argv)
    if args.output.exists():
        parser.error(f"{args.output} exists; remove it or choose another --output")
    if not args.output.resolve().parent.is_dir():
        parser.error(f"there is no folder {args.output.resolve().parent}")
    return parser, args


def main(argv=None) -> None:
    """Measure and write one JSON file, in one step at the end."""
    parser, args = command_line(argv)
    text = STORY_FILE.read_text(encoding="utf-8").encode()[: args.max_bytes].decode("utf-8", errors="ignore")
    try:
        models = {name: measure(name, text, args) for name in args.models}
    except FileNotFoundError as error:
        parser.error(str(error))
    about = {"text": STORY_FILE.name, "processor": processor_name(), "torch": torch.__version__, "dtype": "float32", "seed": args.seed,
             "num_items": args.num_items, "terms": "Gemma: https://ai.google.dev/gemma/terms"}
    temporary = args.output.with_name(f"{args.output.name}.tmp")
    temporary.write_text(json.dumps({"about": about, "models": models}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    sys.exit(main())
