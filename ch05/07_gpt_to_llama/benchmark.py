"""How fast SmolLM2 reads and writes here: this folder's code, Hugging Face's `generate`, llama.cpp, and the machine's limit.

    python benchmark.py                                      # three minutes on two cores
    python benchmark.py --dtypes fp32 --rows 1 --rounds 1
    python benchmark.py --json benchmark.json --readme README.md

All programs have the same weights and take turns. llama.cpp multiplies with the file's 4-bit blocks, so it reads a seventh of
the bytes; it is shown with one row.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from decoding_benchmark import (
    BENCHMARK_DTYPES,
    BENCHMARK_TEXT,
    compare_programs,
    hugging_face_program,
    llama_cpp_program,
    machine_figures,
    our_program,
    results_table,
    weight_bytes,
    write_results,
)  # fmt: skip
from gguf_reader import HuggingFaceNames, find_smollm2, read_gguf
from llama import SMOLLM2_CONFIG_135M, load_smollm2


def smollm2_twin(dtype: torch.dtype):
    """Hugging Face's LlamaForCausalLM with SmolLM2's weights from the same file, in eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM  # here, because it takes seconds

    cfg = SMOLLM2_CONFIG_135M
    twin = LlamaForCausalLM(LlamaConfig(
        vocab_size=cfg["vocab_size"], hidden_size=cfg["emb_dim"], intermediate_size=cfg["hidden_dim"], num_hidden_layers=cfg["n_layers"],
        num_attention_heads=cfg["n_heads"], num_key_value_heads=cfg["n_kv_groups"], max_position_embeddings=cfg["context_length"],
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": cfg["rope_base"]}, tie_word_embeddings=True,
    )).to(dtype).eval()  # fmt: skip
    twin.load_state_dict(dict(HuggingFaceNames(*read_gguf(find_smollm2())).items()), strict=False)
    return twin


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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Speed of SmolLM2-135M on this machine, beside other programs.", allow_abbrev=False)
    parser.add_argument("--dtypes", nargs="+", choices=BENCHMARK_DTYPES, default=list(BENCHMARK_DTYPES), help="default: fp32 bf16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64], help="texts at a time (default: 1 64)")
    parser.add_argument("--prompt_tokens", type=int, default=64, help="length of the prompt (default: %(default)s)")
    parser.add_argument("--new_tokens", type=int, default=48, help="tokens to write (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often the programs take turns (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--readme", type=Path, help="also write the table between the marks of this README")
    return parser


def main(argv=None) -> None:
    """Print the figures side by side."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.new_tokens < 4 or args.prompt_tokens < 4 or args.rounds < 1 or min(args.rows) < 1:
        parser.exit(2, "benchmark.py: error: --new_tokens and --prompt_tokens must be at least 4, --rows and --rounds at least 1\n")
    try:
        figures = {"model": "SmolLM2-135M", **machine_figures(), "results": []}
        for rows in args.rows:
            for dtype_name in args.dtypes:
                figures["results"].append(measure(dtype_name, rows, args.prompt_tokens, args.new_tokens, args.rounds))
        print(results_table(figures))
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        if args.readme:
            write_results(figures, args.readme)
    except (OSError, ValueError, RuntimeError) as error:
        parser.exit(2, f"benchmark.py: error: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
