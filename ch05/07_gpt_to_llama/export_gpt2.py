# Generated from ch05/03_bonus_pretraining_on_gutenberg/export_gpt2.py by `make copies`; do not edit.
"""Write a trained GPT as Hugging Face's GPT-2: `config.json` and `model.safetensors`.

The folder loads with `transformers.GPT2LMHeadModel.from_pretrained(folder)`. GPT-2 stores its linear layers as (in, out), the
transpose of PyTorch's, and the three attention projections side by side as one tensor, `c_attn`.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

END_OF_TEXT = 50256


def hugging_face_config(cfg: dict, dtype: torch.dtype) -> dict:
    """Return the contents of config.json for a model configuration with the keys of this course and `tied`."""
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "vocab_size": cfg["vocab_size"], "n_positions": cfg["context_length"], "n_ctx": cfg["context_length"],
        "n_embd": cfg["emb_dim"], "n_head": cfg["n_heads"], "n_layer": cfg["n_layers"], "n_inner": None,
        "attn_pdrop": cfg.get("attn_drop_rate", cfg["drop_rate"]), "embd_pdrop": cfg["drop_rate"], "resid_pdrop": cfg["drop_rate"],
        "bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT, "tie_word_embeddings": cfg["tied"],
        "torch_dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip


def hugging_face_weights(state_dict: dict, cfg: dict) -> dict[str, torch.Tensor]:
    """Return the weights of a GPTModel under GPT-2's names; a missing bias of the projections becomes zeros.

    state_dict: as of GPTModel. The output head is left out when it is tied to the embedding.
    """
    found = {"wte.weight": state_dict["tok_emb.weight"], "wpe.weight": state_dict["pos_emb.weight"]}
    for b in range(cfg["n_layers"]):
        ours, theirs = f"trf_blocks.{b}.", f"h.{b}."
        parts = [state_dict[f"{ours}att.W_{name}.weight"] for name in ("query", "key", "value")]
        biases = [state_dict.get(f"{ours}att.W_{name}.bias", torch.zeros(cfg["emb_dim"])) for name in ("query", "key", "value")]
        found[f"{theirs}attn.c_attn.weight"] = torch.cat(parts).T  # (emb_dim, 3 * emb_dim)
        found[f"{theirs}attn.c_attn.bias"] = torch.cat(biases)
        linears = {"attn.c_proj": "att.out_proj", "mlp.c_fc": "ff.layers.0", "mlp.c_proj": "ff.layers.2"}
        for their_name, our_name in linears.items():
            found[f"{theirs}{their_name}.weight"] = state_dict[f"{ours}{our_name}.weight"].T  # (in, out)
            found[f"{theirs}{their_name}.bias"] = state_dict[f"{ours}{our_name}.bias"]
        for their_name, our_name in {"ln_1": "norm1", "ln_2": "norm2"}.items():
            found[f"{theirs}{their_name}.weight"] = state_dict[f"{ours}{our_name}.scale"]
            found[f"{theirs}{their_name}.bias"] = state_dict[f"{ours}{our_name}.shift"]
    found["ln_f.weight"], found["ln_f.bias"] = state_dict["final_norm.scale"], state_dict["final_norm.shift"]
    if not cfg["tied"]:  # beside a head of its own, the rest needs the prefix that Hugging Face's model with a head uses
        found = {f"transformer.{name}": tensor for name, tensor in found.items()}
        found["lm_head.weight"] = state_dict["out_head.weight"]
    return found


def export_gpt2(state_dict: dict, cfg: dict, folder: str | Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write config.json and model.safetensors into a folder and return the path of the weights.

    ValueError if a weight does not fit the number type; float16 ends at 65,504.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, tensor in hugging_face_weights(state_dict, cfg).items():
        tensor = tensor.detach().to("cpu", dtype).contiguous().clone()
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds numbers that {str(dtype).removeprefix('torch.')} cannot: not exported")
        weights[name] = tensor
    temporary = folder / "model.safetensors.tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hugging_face_config(cfg, dtype), indent=2) + "\n", encoding="utf-8")
    return folder / "model.safetensors"
