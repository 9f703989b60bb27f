"""The GPT you trained, in the formats of others: a Hugging Face folder, or one GGUF file for llama.cpp and its relatives.

    python export_gpt.py --checkpoint ../01_main-chapter-code/my-gpt/model.pth --format hf --output my-gpt-hf
    python export_gpt.py --checkpoint ../01_main-chapter-code/my-gpt/model.pth --format gguf --output my-gpt.gguf

Reads what chapter 5's gpt_train.py saves: model.pth, and config.json beside it.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from previous_chapters import export_gpt2, hugging_face_weights

CONFIG_KEYS = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")


def read_checkpoint(path) -> tuple[dict, dict]:
    """(config, state dict) of a trained GPT; FileNotFoundError or ValueError in one line if either does not fit."""
    path = Path(path)
    for needed in (path, path.parent / "config.json"):
        if not needed.is_file():
            raise FileNotFoundError(f"no file {needed}; gpt_train.py writes model.pth and config.json")
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in many ways
        raise ValueError(f"{path} or its config.json cannot be read: {type(error).__name__}") from error
    missing = [key for key in CONFIG_KEYS if key not in config]
    if missing:
        raise ValueError(f"{path.parent / 'config.json'} lacks {', '.join(missing)}")
    if not isinstance(state, dict) or "tok_emb.weight" not in state:
        raise ValueError(f"{path} holds no GPT of this course (no tensor tok_emb.weight)")
    if state["tok_emb.weight"].shape != (config["vocab_size"], config["emb_dim"]):
        raise ValueError(f"{path} and config.json disagree: tok_emb.weight is {tuple(state['tok_emb.weight'].shape)}")
    return config, state


def is_tied(state: dict) -> bool:
    """True if the output head holds the same numbers as the token embedding."""
    return torch.equal(state["tok_emb.weight"], state["out_head.weight"])


def write_hf(config: dict, state: dict, folder: Path) -> None:
    """config.json and model.safetensors, in float32, that `GPT2LMHeadModel.from_pretrained(folder)` loads."""
    export_gpt2(state, {**config, "drop_rate": 0.0, "tied": is_tied(state)}, folder, torch.float32)


def write_gguf(config: dict, state: dict, path: Path) -> None:
    """One GGUF file with weights, sizes and tokenizer, all numbers in float32; linear layers are stored as (outputs, inputs)."""
    import gguf

    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name("GPT trained in chapter 5")
    writer.add_block_count(config["n_layers"])
    writer.add_context_length(config["context_length"])
    writer.add_embedding_length(config["emb_dim"])
    writer.add_feed_forward_length(4 * config["emb_dim"])
    writer.add_head_count(config["n_heads"])
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_tokenizer(writer, config["vocab_size"])
    parts = {
        "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
        "ln_1": "attn_norm", "ln_2": "ffn_norm",
    }
    top = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"}
    for name, tensor in hugging_face_weights(state, {**config, "tied": False}).items():
        module, kind = name.removeprefix("transformer.").rsplit(".", 1)
        if module.startswith("h."):
            _, layer, part = module.split(".", 2)
            tensor = tensor.T if tensor.dim() == 2 else tensor  # back to (outputs, inputs), which llama.cpp multiplies with
            writer.add_tensor(f"blk.{layer}.{parts[part]}.{kind}", tensor.contiguous().numpy())
        else:
            writer.add_tensor(f"{top[module]}.{kind}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer, vocab_size: int) -> None:
    """GPT-2's vocabulary and merges, so that the file also knows how to read text; only for GPT-2's vocabulary size."""
    if vocab_size != 50_257:
        return
    from previous_chapters import gpt2_data_folder

    folder = gpt2_data_folder()
    vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    merges = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
    writer.add_token_merges([merge for merge in merges if merge])
    writer.add_bos_token_id(50_256)
    writer.add_eos_token_id(50_256)


def export(checkpoint, kind: str, output) -> None:
    """Write `output` (a folder for hf, a file for gguf) whole or not at all; FileExistsError if it is there already."""
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists; name another --output or remove it")
    config, state = read_checkpoint(checkpoint)
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".export-", dir=output.parent))  # beside the target, so that renaming is one step
    try:
        {"hf": write_hf, "gguf": write_gguf}[kind](config, state, scratch / "whole")
        os.replace(scratch / "whole", output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main(argv=None) -> None:
    """Export a checkpoint from the command line."""
    parser = argparse.ArgumentParser(description="Export a trained GPT to Hugging Face's format or to GGUF.", allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help="model.pth of gpt_train.py, with config.json beside it")
    parser.add_argument("--format", choices=("hf", "gguf"), required=True, help="hf: folder for Hugging Face; gguf: one file for llama.cpp")
    parser.add_argument("--output", required=True, help="folder (hf) or file (gguf) to write")
    args = parser.parse_args(argv)
    try:
        export(args.checkpoint, args.format, args.output)
    except (OSError, ValueError, KeyError) as error:
        parser.exit(2, f"export_gpt.py: error: {error}\n")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    sys.exit(main())
