"""Measure every row of the result table: one run of additional_experiments.py for each row and seed, each in a process of its own.

Finished runs are appended to results.jsonl, and what is there already is not run again: stop with Ctrl-C, go on with the same
command. report_results.py draws the log and writes the table into README.md.

Run it:  python run_all.py                      (one core: about an hour)
         python run_all.py --kind learning_rate  (the search for the learning rates, before)
         python run_all.py --kind timing         (a few updates of each row, without --fast: time and memory)
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from previous_chapters import OneLineParser, int_at_least
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent
LOG = FOLDER / "results.jsonl"
SEEDS = [123, 124, 125]
ROWS = {
    "baseline": "",
    "last column": "--trainable_token_pos last",
    "first token": "--trainable_token_pos first",
    "head only": "--trainable_layers last_layer",
    "last two blocks": "--trainable_layers last_two_blocks",
    "all layers": "--trainable_layers all",
    "random start, last block": "--weights random",
    "random start, all layers": "--weights random --trainable_layers all",
    "LoRA": "--trainable_layers lora --lora_rank 16 --lora_alpha 16",
    "LoRA, merged form": "--trainable_layers lora_alternative --lora_rank 16 --lora_alpha 16",
    "whole context": "--context_length model_context_length",
    "whole context, last column": "--context_length model_context_length --trainable_token_pos last",
    "no padding, batch 1": "--no_padding --batch_size 1",
    "no padding, 8 accumulated": "--no_padding --batch_size 1 --accumulation_steps 8",
    "no causal mask": "--disable_causal_mask",
    "ignored label 50256": "--ignore_index 50256",
    "mean over tokens": "--average_embeddings",
}
CANDIDATES = {  # learning rates tried for what a row trains, with a seed that the table does not use
    "head only": [1e-3, 3e-3, 1e-2, 3e-2],
    "baseline": [2e-4, 5e-4, 1e-3, 2e-3, 5e-3],
    "last two blocks": [2e-4, 5e-4, 1e-3, 2e-3],
    "all layers": [2e-4, 5e-4],
    "random start, all layers": [2e-4, 1e-3],
    "LoRA": [1e-3, 3e-3],
}
SEARCH_SEED = 1
TIMED_UPDATES = 10
COSTS_AS_BASELINE = ["last column", "first token", "random start, last block", "ignored label 50256", "mean over tokens"]
UNMEASURED = "--eval_freq 1000000 --eval_iter 1"  # losses on the way are not needed here


def jobs_of(kind: str, seeds: list[int]) -> list[dict]:
    """Return {kind, row, options} of every run of a kind; the options decide what is run."""
    if kind == "learning_rate":
        found = [(row, f"{ROWS[row]} --learning_rate {rate} --seed {SEARCH_SEED} --fast") for row in CANDIDATES for rate in CANDIDATES[row]]
    elif kind == "timing":
        found = [(row, f"{ROWS[row]} --max_steps {TIMED_UPDATES} --seed {seeds[0]}") for row in ROWS if row not in COSTS_AS_BASELINE]
    else:
        found = [(row, f"{ROWS[row]} --seed {seed} --fast") for seed in seeds for row in ROWS]
    return [{"kind": kind, "row": row, "options": options.strip()} for row, options in found]


def machine(threads: int) -> dict:
    """Return what the measurements depend on."""
    import torch

    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        processor = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), processor)
    return {"python": platform.python_version(), "torch": torch.__version__, "processor": processor, "threads": threads}


def read_log(path: Path = LOG) -> tuple[dict, list[dict]]:
    """Return (first line: the machine, all finished runs); ({}, []) without a log."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return (json.loads(lines[0]), [json.loads(line) for line in lines[1:]]) if lines else ({}, [])


def run(job: dict, threads: int) -> dict:
    """Do one run in a process of its own, whose peak memory is then its own; RuntimeError with its last line if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(FOLDER / "additional_experiments.py"), *job["options"].split(), *UNMEASURED.split()]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([*command, "--output_dir", folder], env=environment, capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            raise RuntimeError(f"{job['options']}: {done.stderr.strip().splitlines()[-1]}")
        return {**job, **json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Measure every row of the result table; finished runs are kept in a log.")
    parser.add_argument("--kind", choices=["result", "learning_rate", "timing"], default="result", help="what to measure")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="one run of each row for each")
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=list(ROWS), help="rows to measure")
    parser.add_argument("--threads", type=int_at_least(1), default=1, help="processor threads of a run")
    parser.add_argument("--log", type=Path, default=LOG, help="file of finished runs")
    args = parser.parse_args(argv)
    try:
        here, finished = read_log(args.log)
        if not here:
            args.log.write_text(json.dumps(machine(args.threads)) + "\n", encoding="utf-8")
        known = {(job["kind"], job["options"]) for job in finished}
        jobs = [job for job in jobs_of(args.kind, args.seeds) if job["row"] in args.rows and (job["kind"], job["options"]) not in known]
        for job in tqdm(jobs, unit="runs"):
            result = run(job, args.threads)
            with args.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
    except (OSError, ValueError, RuntimeError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on with the run that was broken off\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
