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
from gguf_reader import read_gguf
from previous_chapters import export_gpt2, hugging_face_weights
from safetensors.torch import load_file

CONFIG_KEYS = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
GPT2_VOCABULARY = 50_257


def read_checkpoint(path) -> tuple[dict, dict]:
    """(config, state dict in float32) of a trained GPT, whatever its precision; FileNotFoundError or ValueError in one line
    if either does not fit."""
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
    state = {name: tensor.float() for name, tensor in state.items()}
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{path}: {broken[0]} holds numbers that are not finite; such a model is not exported")
    return config, state


def is_tied(state: dict) -> bool:
    """True if the output head holds the same numbers as the token embedding."""
    return torch.equal(state["tok_emb.weight"], state["out_head.weight"])


def write_hf(config: dict, state: dict, folder: Path) -> None:
    """config.json and model.safetensors, in float32, that `GPT2LMHeadModel.from_pretrained(folder)` loads."""
    cfg = {**config, "drop_rate": 0.0, "tied": is_tied(state)}
    export_gpt2(state, cfg, folder, torch.float32)
    check_written(hugging_face_weights(state, cfg), load_file(folder / "model.safetensors"), folder)


def gguf_weights(config: dict, state: dict) -> dict[str, torch.Tensor]:
    """The weights under GGUF's names; linear layers as (outputs, inputs), which llama.cpp multiplies with."""
    parts = {
        "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
        "ln_1": "attn_norm", "ln_2": "ffn_norm",
    }
    top = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"}
    found = {}
    for name, tensor in hugging_face_weights(state, {**config, "tied": False}).items():
        module, kind = name.removeprefix("transformer.").rsplit(".", 1)
        if module.startswith("h."):
            _, layer, part = module.split(".", 2)
            found[f"blk.{layer}.{parts[part]}.{kind}"] = (tensor.T if tensor.dim() == 2 else tensor).contiguous()
        else:
            found[f"{top[module]}.{kind}"] = tensor
    return found


def write_gguf(config: dict, state: dict, path: Path) -> None:
    """One GGUF file with weights, sizes and tokenizer, all numbers in float32."""
    import gguf

    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name("GPT trained in chapter 5")
    writer.add_block_count(config["n_layers"])
    writer.add_context_length(config["context_length"])
    writer.add_embedding_length(config["emb_dim"])
    writer.add_feed_forward_length(4 * config["emb_dim"])
    writer.add_head_count(config["n_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_tokenizer(writer, config["vocab_size"])
    weights = gguf_weights(config, state)
    for name, tensor in weights.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_written(weights, read_gguf(path)[1], path)


def check_written(weights, found, path: Path) -> None:
    """Compare what was written with what is read back; ValueError names the first tensor that differs."""
    for name in sorted({*weights, *found}):
        if name not in weights or name not in found or not torch.equal(weights[name], found[name]):
            raise ValueError(f"{path.name} does not hold {name} as it was written; is the disk full or damaged?")


def add_tokenizer(writer, vocab_size: int) -> None:
    """GPT-2's vocabulary and merges, so that the file also knows how to read text.

    A larger vocabulary (some models round it up) gets unused tokens at its end. A smaller one belongs to a tokenizer that is
    not known here: the file says that it has none, and llama.cpp loads it for ids alone.
    """
    if vocab_size < GPT2_VOCABULARY:
        writer.add_tokenizer_model("no_vocab")
        return
    from previous_chapters import gpt2_data_folder

    folder = gpt2_data_folder()
    vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    merges = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    unused = [f"<|unused_{number}|>" for number in range(GPT2_VOCABULARY, vocab_size)]
    tokens = sorted(vocabulary, key=vocabulary.get) + unused
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (GPT2_VOCABULARY - 1) + [3] + [5] * len(unused))  # 1: text, 3: control (<|endoftext|>), 5: unused
    writer.add_token_merges([merge for merge in merges if merge])
    writer.add_bos_token_id(50_256)
    writer.add_eos_token_id(50_256)


def export(checkpoint, kind: str, output) -> None:
    """Write `output` (a folder for hf, a file for gguf) whole, read back and compared, or not at all.

    FileExistsError if it is there already, ImportError if the package gguf is missing.
    """
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
    except (OSError, ValueError, KeyError, ImportError) as error:
        parser.exit(2, f"export_gpt.py: error: {error}\n")
    print(f"wrote {args.output} and read it back: every number is there")


if __name__ == "__main__":
    sys.exit(main())
