"""How fast SmolLM2 reads and writes here: this folder's code, Hugging Face's `generate`, llama.cpp, and the machine's limit.

    python benchmark.py                                      # three minutes on two cores
    python benchmark.py --dtypes fp32 --rows 1 --rounds 1
    python benchmark.py --json benchmark.json --readme README.md

All programs have the same weights and take turns. llama.cpp multiplies with the file's 4-bit blocks, so it reads less than a
fifth of the bytes; it is shown with one row.
"""

import sys

import torch
from decoding_benchmark import (
    BENCHMARK_DTYPES,
    BENCHMARK_TEXT,
    benchmark_command,
    compare_programs,
    hugging_face_program,
    llama_cpp_program,
    our_program,
    weight_bytes,
)
from gguf_reader import find_smollm2, read_gguf
from llama import load_smollm2
from previous_chapters import OneLineParser, int_at_least
from smollm2_reference import smollm2_twin


def measure(dtype_name: str, rows: int, prompt_tokens: int, new_tokens: int, rounds: int) -> dict:
    """One comparison: with one row also the model to read and llama.cpp, with more only our fast model and Hugging Face's."""
    dtype = BENCHMARK_DTYPES[dtype_name]
    fast, tokenizer = load_smollm2(dtype)
    idx = torch.tensor([tokenizer.encode(BENCHMARK_TEXT * prompt_tokens)[:prompt_tokens]]).repeat(rows, 1)
    programs = {"ours, packed": our_program(fast, new_tokens), "Hugging Face": hugging_face_program(smollm2_twin(dtype), new_tokens)}
    read_bytes = dict.fromkeys(programs, weight_bytes(fast))
    if rows == 1:
        plain, _ = load_smollm2(dtype, fast=False)
        programs["ours, plain"], read_bytes["ours, plain"] = our_program(plain, new_tokens), weight_bytes(plain)
        if dtype_name == "fp32" and (program := llama_cpp_program(find_smollm2(), new_tokens, prompt_tokens + new_tokens)):
            _, tensors = read_gguf(find_smollm2())
            programs["llama.cpp"], read_bytes["llama.cpp"] = program, sum(size for *_, size in tensors.table.values())
    return {"dtype": dtype_name, "new_tokens": new_tokens, **compare_programs(programs, read_bytes, idx, rounds)}


def main(argv=None) -> None:
    """Print the figures side by side."""
    parser = OneLineParser("Speed of SmolLM2-135M on this machine, beside other programs.")
    parser.add_argument("--new_tokens", type=int_at_least(4), default=48, help="tokens to write")
    benchmark_command("SmolLM2-135M", measure, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
