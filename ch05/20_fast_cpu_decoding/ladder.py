"""Rung by rung from a loop of PyTorch calls to one compiled step over 4 bits, beside Hugging Face, llama.cpp and the memory's limit.

    python ladder.py --json ladder.json --readme README.md                          # the whole measurement, on a quiet machine
    python ladder.py --models gpt2-mini --threads 1 --contexts 16 --rounds 1        # a minute

All programs of a model take turns, so a busy moment hits all of them; figures are medians. The yardstick is the speed at which
this machine reads memory, measured in the same turns: a token costs at least the weights and the cache, read once.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from llama import find_smollm2, load_smollm2, machine_figures, read_gguf, write_between_marks
from previous_chapters import STORY_FILE, OneLineParser, int_at_least, interleaved, read_bandwidth, read_text, waiting_programs
from tqdm import tqdm

FIRST_CALL = """
import time, torch
from fast_decode import FastModel
from llama import Llama3Model
cfg = {"vocab_size": 32, "context_length": 8, "emb_dim": 32, "n_heads": 2, "n_layers": 1, "hidden_dim": 32, "n_kv_groups": 1,
       "rope_base": 10000.0, "rope_freq": None, "dtype": torch.float32}
fast = FastModel(Llama3Model(cfg), "int8")
started = time.perf_counter()
fast.read_token(1, fast.new_cache())
print(time.perf_counter() - started)
"""


def compare_rungs(rungs: dict, idx, rounds: int) -> dict:
    """Tokens a second of all rungs, medians of `rounds` turns; each rung's share of what the memory allows."""
    runs = {name: (lambda rung=rung: rung.run(idx)) for name, rung in rungs.items()}
    for run in runs.values():
        run()  # the first run of each reads the prompt, and compiles where nothing is kept
    ids, speeds = interleaved({"memory": lambda: (None, read_bandwidth()), **runs}, rounds)
    bandwidth = statistics.median(speeds.pop("memory"))
    exact = [one for name, rung in rungs.items() if rung.exact for one in ids[name]]
    found = {}
    for name, rung in rungs.items():
        read, speed = rung.weight_bytes + rung.cache_bytes * idx.shape[1], statistics.median(speeds[name])
        found[name] = {"tokens_per_s": round(speed, 1), "slowest": round(min(speeds[name]), 1), "fastest": round(max(speeds[name]), 1),
                       "megabytes": round(read / 1e6, 1), "share_of_limit": round(speed * read / bandwidth, 3)}  # fmt: skip
    return {"bandwidth_gb_per_s": round(bandwidth / 1e9, 1), "same_text": all(one == exact[0] for one in exact), "rungs": found}


def measure(models, threads_wanted, contexts, new_tokens: int, rounds: int) -> list[dict]:
    """One comparison for each model, number of threads and length of the text so far; what is not installed is left out in one line."""
    from ladder_programs import MODELS  # here, because it needs numba, and --help does not

    results = []
    for model in models:
        build, longest, vocab_size = MODELS[model]
        if longest < new_tokens + 2:
            raise ValueError(f"{new_tokens} new tokens leave no room for a prompt in the context of {longest} of {model}")
        for threads in threads_wanted:
            torch.set_num_threads(threads)
            for context in dict.fromkeys(min(context, longest - new_tokens) for context in contexts):
                figures = {"model": model, "threads": threads, "context": context, "new_tokens": new_tokens, "rounds": rounds}
                idx = torch.randint(vocab_size // 2, (1, context), generator=torch.Generator().manual_seed(123))
                try:
                    found = compare_rungs(build(context, new_tokens, threads), idx, rounds)  # here, so that only one set is in memory
                except FileNotFoundError as error:
                    print(f"{model} is left out: {error}", file=sys.stderr)
                    continue
                results.append({**figures, "load": waiting_programs(), **found})
    return results


@torch.inference_mode()
def losses_of_forms(num_tokens: int) -> dict:
    """Loss of SmolLM2 on the course's story, which no model has been trained on, in each form; differences to float32 are paired."""
    from fast_decode import FORMS, FastModel, file_blocks

    model, tokenizer = load_smollm2()
    ids = tokenizer.encode(read_text(STORY_FILE))[: num_tokens + 1]
    found, first, file = {}, None, read_gguf(find_smollm2())
    forms = {**{form: form for form in FORMS}, "file": file_blocks(*file), "file_rounded": file_blocks(*file, rounded=True)}
    for name, weights in forms.items():
        fast, losses = FastModel(model, weights, threads=1), []
        cache = fast.new_cache()
        for token, target in tqdm(list(zip(ids, ids[1:])), desc=f"loss, {name}", leave=False):
            logits = torch.from_numpy(fast.read_token(token, cache)).double()
            losses.append((logits.logsumexp(0) - logits[target]).item())
        losses = torch.tensor(losses)
        first = losses if first is None else first
        above = losses - first
        found[name] = {"loss": round(losses.mean().item(), 4), "above": round(above.mean().item(), 4),
                       "standard_error": round((above.std() / len(above) ** 0.5).item(), 4)}  # fmt: skip
    return {"tokens": len(ids) - 1, "text": STORY_FILE.name, "forms": found}


def first_calls() -> dict:
    """Seconds of a first token in a new program: with nothing compiled yet, and with the machine code kept on disk."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", FIRST_CALL]
        options = {"cwd": Path(__file__).parent, "env": {**os.environ, "LLM_COURSE_CACHE": folder}, "capture_output": True, "check": True}
        compiled, kept = (float(subprocess.run(command, **options).stdout) for _ in range(2))
    return {"compiled": round(compiled, 2), "kept": round(kept, 2)}


def results_tables(figures: dict) -> str:
    """The figures as Markdown: one table for each model and number of threads, a column for each length of the text."""
    machine = figures["machine"]
    lines = [f"{machine['processor']}, torch {machine['torch']}, transformers {machine['transformers']}, xllamacpp {machine['xllamacpp']}, "
             f"load average {machine['load']} at the beginning; {figures['seconds'] / 60:.0f} minutes. A first token takes "
             f"{figures['first_call']['compiled']} s uncompiled, {figures['first_call']['kept']} s later."]  # fmt: skip
    groups = {}
    for result in figures["results"]:
        groups.setdefault((result["model"], result["threads"]), []).append(result)
    for (model, threads), results in groups.items():
        heads = [f"{one['context']:,} tokens so far | share of {one['bandwidth_gb_per_s']} GB/s" for one in results]
        lines += ["", f"**{model}, {threads} thread{'s' * (threads > 1)}**, tokens/s:", "", f"| rung | {' | '.join(heads)} |",
                  "|---|" + "---|---|" * len(results)]  # fmt: skip
        for name in results[0]["rungs"]:
            cells = [f"{one['rungs'][name]['tokens_per_s']:.1f} | {one['rungs'][name]['share_of_limit']:.0%}" for one in results]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if loss := figures.get("loss"):
        lines += ["", f"Loss of SmolLM2 on {loss['tokens']:,} tokens of {loss['text']}, and its difference to float32:", "",
                  "| weights | loss | difference |", "|---|---|---|"]  # fmt: skip
        lines += [
            f"| {name} | {one['loss']:.4f} | {one['above']:+.4f} ± {one['standard_error']:.4f} |" for name, one in loss["forms"].items()
        ]
    return "\n".join(lines)


MODEL_NAMES = {"smollm2": "SmolLM2-135M", "gpt2-mini": "gpt2-mini", "gpt2-124m": "GPT-2 124M, random weights", "gemma": "Gemma 3 270M"}


def build_parser() -> OneLineParser:
    parser = OneLineParser("Measure rung by rung how fast models write on this machine.")
    parser.add_argument("--models", nargs="+", choices=tuple(MODEL_NAMES), default=list(MODEL_NAMES), help="which models to measure")
    parser.add_argument("--threads", nargs="+", type=int_at_least(1), default=[1, 2], help="numbers of threads")
    parser.add_argument(
        "--contexts", nargs="+", type=int_at_least(2), default=[16, 2000], help="tokens of the text so far, or as many as fit"
    )
    parser.add_argument("--new_tokens", type=int_at_least(3), default=48, help="tokens to write in each turn")
    parser.add_argument("--rounds", type=int_at_least(1), default=5, help="turns of each program")
    parser.add_argument("--loss_tokens", type=int_at_least(0), default=2048, help="tokens of the story for the loss; 0: leave it out")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--readme", type=Path, help="also write the tables between the marks of this README")
    return parser


def main(argv=None) -> None:
    """Measure, print the tables, write them where the options say."""
    parser = build_parser()
    args = parser.parse_args(argv)
    started, machine = time.perf_counter(), machine_figures()
    try:
        models = [MODEL_NAMES[name] for name in dict.fromkeys(args.models)]
        results = measure(models, dict.fromkeys(args.threads), dict.fromkeys(args.contexts), args.new_tokens, args.rounds)
        figures = {"machine": machine, "first_call": first_calls(), "results": results}
        if args.loss_tokens:
            figures["loss"] = losses_of_forms(args.loss_tokens)
        figures["seconds"] = round(time.perf_counter() - started)
        print(results_tables(figures))
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8", newline="\n")
        if args.readme:
            write_between_marks(args.readme, results_tables(figures))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
