"""What several texts at a time are worth: tokens a second of SmolLM2 with 1 to 64 prompts of unequal length in one batch.

    python batching.py                                        # three minutes on two cores
    python batching.py --rows 1 4 --new_tokens 4 --rounds 1
    python batching.py --json batching.json                   # the file that standalone-llama32.ipynb draws

A step reads all weights once, for one row or for 64. So more rows cost little at first, until the arithmetic takes longer than
the reading. Every row must write what it writes alone; rows in which rounding decided otherwise are counted.
"""

import json
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from decoding_benchmark import BENCHMARK_DTYPES, machine_figures, timed_passes
from llama import generate_batch, load_smollm2, pack_for_decoding
from previous_chapters import COLORS, OneLineParser, int_at_least, pick_device, use_course_style
from tqdm import tqdm

QUESTIONS = (
    "Name three colors.", "What is bread made of?", "Why do boats float, although iron sinks? Explain it to a child in two sentences.",
    "Write a title for a story about a clock.", "What is the capital of Italy?",
    "A train leaves at nine and arrives at noon. How many hours does it take, and how do you know?", "Say hello in French.",
    "Give me one reason to learn a language, and one reason not to.",
)  # fmt: skip


def measure(model, prompts: list[list[int]], alone: list[list[int]], new_tokens: int, rounds: int) -> dict:
    """Speeds of one batch, medians of several rounds; `alone` are the new ids of each prompt by itself."""
    reading, writing = [], []
    for _ in range(rounds):
        together, passes = timed_passes(model, lambda: generate_batch(model, prompts, new_tokens))
        reading.append(passes[0])
        writing.append(statistics.median(passes[1:]))
    longest, rows = max(map(len, prompts)), len(prompts)
    seconds = statistics.median(writing)
    return {
        "rows": rows, "padding_share": round(1 - sum(map(len, prompts)) / (rows * longest), 3),
        "prompt_tokens_per_s": round(sum(map(len, prompts)) / statistics.median(reading), 1),
        "step_ms": round(1000 * seconds, 1), "tokens_per_s": round(rows / seconds, 1),
        "rows_as_alone": sum(a == b for a, b in zip(together, alone, strict=True)),
    }  # fmt: skip


def draw_batching(figures: dict):
    """A figure: tokens a second of all rows together against the number of rows, beside what free rows would give."""
    rows = [one["rows"] for one in figures["results"]]
    speeds = [one["tokens_per_s"] for one in figures["results"]]
    fig, ax = plt.subplots()
    ax.plot(rows, [speeds[0] * number for number in rows], "--", color=COLORS["black"], label="if more rows cost nothing")
    ax.plot(rows, speeds, marker="o", color=COLORS["blue"], label="all rows together")
    ax.plot(rows, [speed / number for speed, number in zip(speeds, rows)], marker="s", color=COLORS["red"], label="each row")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(rows, labels=rows)
    ax.set(xlabel="rows in the batch", ylabel="new tokens a second")
    ax.set_title(f"{rows[-1]} rows: {speeds[-1] / speeds[0]:.0f} times the text of one row in the same time")
    ax.legend()
    return fig


def run(args) -> dict:
    """Measure all batch sizes, each after a short unmeasured one."""
    device, dtype = pick_device(args.device), BENCHMARK_DTYPES[args.dtype]
    model, tokenizer = load_smollm2(dtype)
    pack_for_decoding(model.to(device))
    questions = [tokenizer.encode_chat([{"role": "user", "content": question}]) for question in QUESTIONS]
    alone = [generate_batch(model, [prompt], args.new_tokens)[0] for prompt in tqdm(questions, desc="alone", unit="prompt")]
    results = []
    for rows in tqdm(args.rows, desc="batches", unit="batch"):
        prompts = [questions[row % len(questions)] for row in range(rows)]
        generate_batch(model, prompts, 2)
        results.append(measure(model, prompts, [alone[row % len(questions)] for row in range(rows)], args.new_tokens, args.rounds))
    settings = {"device": device.type, "dtype": args.dtype, "new_tokens": args.new_tokens, "rounds": args.rounds}
    return {"model": "SmolLM2-135M-Instruct", **machine_figures(), **settings, "results": results}


def main(argv: list[str] | None = None) -> int:
    """Print the figures, one line a batch size; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Tokens a second of SmolLM2-135M with several prompts at a time.")
    parser.add_argument("--rows", type=int_at_least(1), nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="prompts at a time")
    parser.add_argument("--new_tokens", type=int_at_least(3), default=24, help="tokens that each row writes")
    parser.add_argument("--rounds", type=int_at_least(1), default=3, help="runs of which the median counts")
    parser.add_argument("--dtype", choices=BENCHMARK_DTYPES, default="fp32", help="number type of the weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw them into this file")
    args = parser.parse_args(argv)
    try:
        figures = run(args)
        for one in figures["results"]:
            print("  ".join(f"{key} {value}" for key, value in one.items()))
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        if args.plot:
            use_course_style()
            draw_batching(figures).savefig(args.plot)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
