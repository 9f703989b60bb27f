"""How fast Gemma 3 270M reads and writes here: this folder's code, Hugging Face's `generate`, and llama.cpp on the same file.

    python benchmark_gemma3.py                                     # three minutes on two cores
    python benchmark_gemma3.py --dtypes fp32 --rows 1 --rounds 1
    python benchmark_gemma3.py --json benchmark_gemma3.json --readme README.md

All programs have the same weights and take turns. llama.cpp multiplies with the file's blocks of 4 to 8 bits, so it reads less
than a quarter of the bytes; it is shown with one row.
"""

import sys

import torch
from gemma3 import load_gemma3
from gemma3_reference import hugging_face_twin
from gemma3_weights import GemmaNames
from gemma_files import find_gemma3
from llama import (
    BENCHMARK_DTYPES,
    BENCHMARK_TEXT,
    benchmark_command,
    compare_programs,
    hugging_face_program,
    llama_cpp_program,
    our_program,
    read_gguf,
    weight_bytes,
)
from previous_chapters import OneLineParser, int_at_least


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
    parser = OneLineParser("Speed of Gemma 3 270M on this machine, beside other programs.")
    parser.add_argument("--new_tokens", type=int_at_least(4), default=24, help="tokens to write")
    benchmark_command("Gemma 3 270M", measure_gemma3, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
