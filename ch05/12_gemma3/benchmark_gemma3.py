"""How fast Gemma 3 270M reads and writes here: this folder's code, Hugging Face's `generate`, and llama.cpp on the same file.

    python benchmark_gemma3.py                                     # three minutes on two cores
    python benchmark_gemma3.py --dtypes fp32 --rows 1 --rounds 1
    python benchmark_gemma3.py --json benchmark_gemma3.json --readme README.md

All programs have the same weights and take turns. llama.cpp multiplies with the file's blocks of 4 to 8 bits, so it reads a
fifth of the bytes; it is shown with one row.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from gemma3 import load_gemma3
from gemma3_reference import hugging_face_twin
from gemma3_weights import GemmaNames
from gemma_files import find_gemma3
from llama import (
    BENCHMARK_DTYPES,
    BENCHMARK_TEXT,
    compare_programs,
    hugging_face_program,
    llama_cpp_program,
    machine_figures,
    our_program,
    read_gguf,
    results_table,
    weight_bytes,
    write_results,
)


def measure_gemma3(dtype_name: str, rows: int, prompt_tokens: int, new_tokens: int, rounds: int) -> dict:
    """One comparison of ours with Hugging Face's; with one row and float32, with llama.cpp too where its package is installed."""
    dtype, path = BENCHMARK_DTYPES[dtype_name], find_gemma3()
    ours, tokenizer = load_gemma3(dtype)
    _, tensors = read_gguf(path)
    names = GemmaNames(tensors)
    twin = hugging_face_twin(ours.cfg, {name: names[name] for name in names}, attention="sdpa").to(dtype)
    idx = torch.tensor([tokenizer.encode(BENCHMARK_TEXT * prompt_tokens)[:prompt_tokens]]).repeat(rows, 1)
    programs = {"ours": our_program(ours, new_tokens), "Hugging Face": hugging_face_program(twin, new_tokens)}
    read_bytes = dict.fromkeys(programs, weight_bytes(ours))
    if rows == 1 and dtype_name == "fp32" and (program := llama_cpp_program(path, new_tokens, prompt_tokens + new_tokens)):
        programs["llama.cpp"], read_bytes["llama.cpp"] = program, sum(size for *_, size in tensors.table.values())
    return {"dtype": dtype_name, "new_tokens": new_tokens, **compare_programs(programs, read_bytes, idx, rounds)}


def main(argv=None) -> None:
    """Print the figures side by side."""
    parser = argparse.ArgumentParser(description="Speed of Gemma 3 270M on this machine, beside other programs.", allow_abbrev=False)
    parser.add_argument("--dtypes", nargs="+", choices=BENCHMARK_DTYPES, default=list(BENCHMARK_DTYPES), help="default: fp32 bf16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64], help="texts at a time (default: 1 64)")
    parser.add_argument("--prompt_tokens", type=int, default=64, help="length of the prompt (default: %(default)s)")
    parser.add_argument("--new_tokens", type=int, default=24, help="tokens to write (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often the programs take turns (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--readme", type=Path, help="also write the table between the marks of this README")
    args = parser.parse_args(argv)
    if args.new_tokens < 4 or args.prompt_tokens < 4 or args.rounds < 1 or min(args.rows) < 1:
        parser.exit(2, "benchmark_gemma3.py: error: --new_tokens and --prompt_tokens must be at least 4, --rows and --rounds at least 1\n")
    try:
        figures = {"model": "Gemma 3 270M", **machine_figures(), "results": []}
        for rows in args.rows:
            for dtype_name in args.dtypes:
                figures["results"].append(measure_gemma3(dtype_name, rows, args.prompt_tokens, args.new_tokens, args.rounds))
        print(results_table(figures))
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        if args.readme:
            write_results(figures, args.readme)
    except (OSError, ValueError, RuntimeError) as error:
        parser.exit(2, f"benchmark_gemma3.py: error: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
