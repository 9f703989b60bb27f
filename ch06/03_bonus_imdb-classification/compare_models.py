"""Measure every row of the README's table, one process each, and draw accuracy, time and memory.

Each finished run adds a line to results.jsonl, and a run whose line is there is not repeated: stop and go on as you like.

Run it:  python compare_models.py                  (all that is missing, then the table and the plot; more than an hour on one core)
         python compare_models.py --draw_only       (the table and the plot of the runs that are there)
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from statistics import mean

from download_prepare_dataset import DATA_DIR, SIZES_OF, load_reviews, partition_and_save
from matplotlib.figure import Figure
from previous_chapters import COLORS, OneLineParser
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
BASELINES = "train_sklearn_logreg.py"
RUNS = {  # command -> the rows of the table that it measures
    BASELINES: ["always \"liked\"", "word counts, logistic regression"],
    "train_gpt.py --trainable_layers last_block --learning_rate 5e-4": ["gpt2-mini, last block"],
    "train_gpt.py --trainable_layers all --learning_rate 5e-4": ["gpt2-mini, all layers"],
    "train_gpt.py --trainable_layers all --weights random --learning_rate 5e-4": ["gpt2-mini, all layers, random start"],
    "train_bert_hf.py --trainable_layers last_layer --learning_rate 1e-3": ["MiniLM, head on [CLS]"],
    "train_bert_hf.py --trainable_layers last_layer --pooling mean --learning_rate 3e-3": ["MiniLM, head on the mean"],
    "train_bert_hf.py --trainable_layers all --learning_rate 5e-5": ["MiniLM, all layers"],
}  # fmt: skip
MARK_START, MARK_END = "<!-- results:start -->", "<!-- results:end -->"


def describe_machine() -> dict:
    """Return the log's first line: processor and versions."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "scikit-learn")}
    return {"processor": named[1] if named else platform.processor(), "python": platform.python_version(), **versions}


def read_log(path: Path) -> tuple[dict, list[dict]]:
    """Return (the log's first line, its runs); both empty if there is no log."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else [{}]
    return lines[0], lines[1:]


def missing_runs(runs: list[dict], seeds: list[int]) -> list[tuple[str, int]]:
    """Return the (command, seed) pairs that the log lacks, seed by seed; the baselines draw nothing and run once."""
    done = {(run["command"], run["seed"]) for run in runs}
    baselines = [] if any(run["command"] == BASELINES for run in runs) else [(BASELINES, seeds[0])]
    wanted = [(command, seed) for seed in seeds for command in RUNS if command != BASELINES]
    return baselines + [pair for pair in wanted if pair not in done]


def run(command: str, seed: int, data_dir: Path) -> list[dict]:
    """Run one command in a process of its own, one thread, and return its results, one for each row. RuntimeError if it fails."""
    script, *arguments = command.split()
    options = [] if command == BASELINES else ["--seed", str(seed), "--eval_freq", "200"]  # fewer measurements on the way
    with tempfile.TemporaryDirectory() as folder:
        process = [sys.executable, HERE / script, *arguments, *options, "--data_dir", data_dir, "--output_dir", folder]
        done = subprocess.run(process, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"{command} failed")
        results = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
    names = ("accuracy", "trained_parameters", "parameters", "updates", "seconds", "processor_seconds", "threads", "peak_memory_gb")
    kept = [{name: result[name] for name in names if name in result} for result in results]
    return [{"row": row, "command": command, "seed": seed, **result} for row, result in zip(RUNS[command], kept, strict=True)]


def summarize(runs: list[dict]) -> list[dict]:
    """Return one dictionary a row of the table, in the order of RUNS: means over the seeds, and all test accuracies."""
    rows = []
    for name in (row for rows_of_command in RUNS.values() for row in rows_of_command):
        own = [run for run in runs if run["row"] == name]
        if own:
            shares = {part: mean(run["accuracy"][part] for run in own) for part in ("train", "validation", "test")}
            usual = {key: mean(run[key] for run in own) for key in ("trained_parameters", "processor_seconds", "peak_memory_gb")}
            rows.append({"row": name, "command": own[0]["command"], **shares, **usual, "tests": [run["accuracy"]["test"] for run in own]})
    return rows


def table(rows: list[dict]) -> str:
    """Return the rows as a markdown table; accuracies in percent, with the range of the test accuracies over the seeds."""
    lines = ["| model | weights trained | training | validation | test | minutes | memory |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        spread = f" ({100 * min(row['tests']):.1f} to {100 * max(row['tests']):.1f})" if len(row["tests"]) > 1 else ""
        shares = " | ".join(f"{100 * row[part]:.1f} %" for part in ("train", "validation", "test"))
        cost = f"{row['processor_seconds'] / 60:.1f} | {row['peak_memory_gb']:.1f} GB"
        lines.append(f"| {row['row']} | {row['trained_parameters']:,.0f} | {shares}{spread} | {cost} |")
    return "\n".join(lines)


def draw(rows: list[dict]) -> Figure:
    """Return a figure with the test accuracy, the minutes and the memory of each row, side by side."""
    fig = Figure(figsize=(9, 3.6), layout="constrained")
    left, middle, right = fig.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1])
    places = range(len(rows), 0, -1)
    for place, row in zip(places, rows):
        left.plot([100 * share for share in row["tests"]], [place] * len(row["tests"]), "o", color=COLORS["blue"])
    left.axvline(100 * rows[0]["test"], color=COLORS["black"], linestyle=":", linewidth=1)
    middle.barh(places, [row["processor_seconds"] / 60 for row in rows], color=COLORS["orange"])
    right.barh(places, [row["peak_memory_gb"] for row in rows], color=COLORS["green"])
    left.set_yticks(list(places), [row["row"] for row in rows])
    left.set(xlabel="test accuracy (%), one dot a run")
    left.set_title("One epoch on 8,965 film reviews", loc="left", fontsize=11)
    middle.set(xlabel="minutes of one core")
    right.set(xlabel="peak memory (GB)")
    for ax in (left, middle, right):
        ax.spines[["top", "right"]].set_visible(False)
    return fig


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Measure the models of this folder on the film reviews, and draw the results.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[123, 124, 125], help="one run of each row for each")
    parser.add_argument("--draw_only", action=argparse.BooleanOptionalAction, default=False, help="run nothing")
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR, help="folder of the CSV files, which are written first")
    parser.add_argument("--output_dir", type=Path, default=HERE, help="folder of results.jsonl, comparison.png and README.md")
    args = parser.parse_args(argv)
    log = args.output_dir / "results.jsonl"
    try:
        if not args.draw_only:
            partition_and_save(load_reviews(), SIZES_OF["reviews"], args.data_dir, "reviews")
            args.output_dir.mkdir(parents=True, exist_ok=True)
            machine, runs = read_log(log)
            if not machine:
                log.write_text(json.dumps(describe_machine()) + "\n", encoding="utf-8")
            for command, seed in tqdm(missing_runs(runs, args.seeds), unit="runs"):
                lines = [json.dumps(result) + "\n" for result in run(command, seed, args.data_dir)]
                with log.open("a", encoding="utf-8") as file:
                    file.writelines(lines)
        rows = summarize(read_log(log)[1])
        if not rows:
            raise ValueError(f"{log} holds no runs yet; leave --draw_only out")
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(" ".join(str(error).split()))
    draw(rows).savefig(args.output_dir / "comparison.png", dpi=110)
    print(table(rows))
    page = args.output_dir / "README.md"
    if page.is_file():
        before, rest = page.read_text(encoding="utf-8").split(MARK_START)
        page.write_text(f"{before}{MARK_START}\n{table(rows)}\n{MARK_END}{rest.split(MARK_END)[1]}", encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
