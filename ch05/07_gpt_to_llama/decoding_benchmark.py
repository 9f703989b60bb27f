"""Reading a prompt and writing, timed apart: our code, Hugging Face's `generate` and llama.cpp on the same weights, taking turns.

`benchmark.py` measures SmolLM2 with it, folder 12 measures Gemma. To write one token, a program reads all weights from memory
once, so the fair yardstick is the speed at which this machine reads memory (`read_bandwidth`).
"""

import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from llama_generate import generate_text_simple
from previous_chapters import OneLineParser, int_at_least, interleaved, processor_name, read_bandwidth, waiting_programs
from torch import nn

BENCHMARK_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MARK_RESULTS, MARK_RESULTS_END = "<!-- results:start -->", "<!-- results:end -->"
BENCHMARK_TEXT = "The tide comes in and the tide goes out, and nobody in the harbor looks at the clock. "


def timed_passes(model, run):
    """(what run() returns, seconds of each pass through the model until the next one): the first pass reads the prompt."""
    times = [time.perf_counter()]
    hook = model.register_forward_hook(lambda *_: times.append(time.perf_counter()))
    try:
        result = run()
    finally:
        hook.remove()
    return result, [after - before for before, after in zip(times, times[1:])]


def speeds_of_passes(passes, idx) -> tuple[float, float]:
    """(prompt tokens a second, new tokens a second) of all rows of idx (b, num_tokens) together, from `timed_passes`."""
    rows, num_tokens = idx.shape
    return rows * num_tokens / passes[0], rows / statistics.median(passes[1:])


def our_program(model, new_tokens: int):
    """A function from idx (b, num_tokens) to (ids, (prompt tokens/s, new tokens/s)) for a model of this course with a KV cache."""

    def run(idx):
        ids, passes = timed_passes(model, lambda: generate_text_simple(model, idx, new_tokens))
        return ids, speeds_of_passes(passes, idx)

    return run


def hugging_face_program(model, new_tokens: int):
    """The same for a Transformers model, greedy, with its default cache; generation goes on where an end token is chosen."""
    options = {"do_sample": False, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": 0}

    def run(idx):
        with torch.inference_mode():
            ids, passes = timed_passes(model, lambda: model.generate(idx, attention_mask=torch.ones_like(idx), **options))
        return ids, speeds_of_passes(passes, idx)

    return run


def llama_cpp_program(path, new_tokens: int, context: int):
    """The same for llama.cpp, one row only, with as many threads as PyTorch uses; None where its package is not installed.

    It multiplies with the file's quantized blocks, so its ids may differ from ours, and it reads fewer bytes.
    """
    try:
        import xllamacpp
    except ImportError:
        return None
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), context, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(params)
    request = {"max_tokens": new_tokens, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}

    def run(idx):
        timings = server.handle_completions({**request, "prompt": idx[0].tolist()})["timings"]
        if timings["prompt_n"] != idx.shape[1] or timings["predicted_n"] != new_tokens:
            raise RuntimeError(f"llama.cpp read {timings['prompt_n']} tokens and wrote {timings['predicted_n']}")
        return None, (timings["prompt_per_second"], timings["predicted_per_second"])

    return run


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights that one new token needs: those of the linear layers, a tied output head counted once."""
    return sum(layer.weight.nbytes for layer in model.modules() if isinstance(layer, nn.Linear))


def compare_programs(programs: dict, read_bytes: dict, idx, rounds: int) -> dict:
    """Let the programs take turns; name -> medians of prompt and writing speed, and for one row the share of the bandwidth.

    programs: name -> function of idx (b, num_tokens), the ones above; read_bytes: name -> bytes that one step reads.
    """
    for run in programs.values():
        run(idx[:, :4])  # the first run of each is slower
    bandwidths = []

    def with_bandwidth(run):
        bandwidths.append(read_bandwidth())
        return run(idx)

    ids, speeds = interleaved({name: (lambda run=run: with_bandwidth(run)) for name, run in programs.items()}, rounds)
    bandwidth, found = statistics.median(bandwidths), {}
    for name, pairs in speeds.items():
        prompt, writing = (statistics.median(values) for values in zip(*pairs))
        found[name] = {"prompt_tokens_per_s": round(prompt, 1), "new_tokens_per_s": round(writing, 1)}
        if len(idx) == 1:
            found[name]["share_of_bandwidth"] = round(writing * read_bytes[name] / bandwidth, 3)
    texts = [one for several in ids.values() for one in several if one is not None]
    return {"rows": len(idx), "prompt_tokens": idx.shape[1], "rounds": rounds, "bandwidth_gb_per_s": round(bandwidth / 1e9, 1),
            "same_ids": all(torch.equal(one, texts[0]) for one in texts), "programs": found}  # fmt: skip


def machine_figures() -> dict:
    """What the figures hold for: processor, threads, versions, and how busy the machine was."""
    versions = {}
    for package in ("torch", "transformers", "xllamacpp"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {"processor": processor_name(), "threads": torch.get_num_threads(), "python": platform.python_version(), **versions,
            "load": waiting_programs()}  # fmt: skip


def results_table(figures: dict) -> str:
    """The figures of one model as a Markdown table under a line that names the machine."""
    lines = [
        f"{figures['model']} on {figures['processor']}, {figures['threads']} threads, torch {figures['torch']}, transformers "
        f"{figures['transformers']}, load average {figures['load']} at the beginning; medians of runs that took turns.", "",
        "| numbers | rows | program | prompt, tokens/s | writing, tokens/s | beside Hugging Face | share of the memory's read speed |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in figures["results"]:
        slowest = one["programs"]["Hugging Face"]["new_tokens_per_s"]
        for name, speed in one["programs"].items():
            share = f"{speed['share_of_bandwidth']:.0%} of {one['bandwidth_gb_per_s']} GB/s" if "share_of_bandwidth" in speed else ""
            numbers = "as in the file" if name == "llama.cpp" else one["dtype"]
            lines.append(f"| {numbers} | {one['rows']} | {name} | {speed['prompt_tokens_per_s']:,.0f} | {speed['new_tokens_per_s']:,.1f} | "
                         f"{speed['new_tokens_per_s'] / slowest:.2f} | {share} |")  # fmt: skip
    return "\n".join(lines)


def write_between_marks(readme: Path, text: str) -> None:
    """Put a text between the two marks of a README; ValueError if they are missing."""
    page = readme.read_text(encoding="utf-8")
    if MARK_RESULTS not in page or MARK_RESULTS_END not in page:
        raise ValueError(f"{readme} lacks {MARK_RESULTS} or {MARK_RESULTS_END}")
    before, behind = page.split(MARK_RESULTS, 1)[0], page.split(MARK_RESULTS_END, 1)[1]
    readme.write_text(f"{before}{MARK_RESULTS}\n{text}\n{MARK_RESULTS_END}{behind}", encoding="utf-8", newline="\n")


def benchmark_command(model: str, measure: Callable, parser: OneLineParser, argv) -> None:
    """The command line of a benchmark: compare for each number of rows and each number type, print the table, write it where asked.

    measure: (name of the number type, rows, prompt tokens, new tokens, rounds) -> what `compare_programs` returns, and more.
    """
    parser.add_argument("--dtypes", nargs="+", choices=BENCHMARK_DTYPES, default=list(BENCHMARK_DTYPES), help="number types of the weights")
    parser.add_argument("--rows", type=int_at_least(1), nargs="+", default=[1, 64], help="texts at a time")
    parser.add_argument("--prompt_tokens", type=int_at_least(4), default=64, help="length of the prompt")
    parser.add_argument("--rounds", type=int_at_least(1), default=3, help="how often the programs take turns")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--readme", type=Path, help="also write the table between the marks of this README")
    args = parser.parse_args(argv)
    try:
        figures = {"model": model, **machine_figures(), "results": []}
        for rows in args.rows:
            for name in args.dtypes:
                figures["results"].append(measure(name, rows, args.prompt_tokens, args.new_tokens, args.rounds))
        print(results_table(figures))
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8", newline="\n")
        if args.readme:
            write_between_marks(args.readme, results_table(figures))
    except (OSError, ValueError, RuntimeError) as error:
        parser.error(str(error))
