# Generated from ch05/07_gpt_to_llama/llama_weights.py by `make copies`; do not edit.
"""Published weights into a Llama model, with every mismatch named; llama.py offers both functions under its own name."""

import warnings

import torch


def assign(left, right, tensor_name="unknown"):
    """Copy `right` into the parameter `left` and return `left`; ValueError if the shapes differ."""
    if left.shape != right.shape:
        raise ValueError(f"{tensor_name}: the model needs {tuple(left.shape)}, the weights have {tuple(right.shape)}")
    if left.dtype != right.dtype:
        warnings.warn(f"weights of {right.dtype} are stored as {left.dtype}", stacklevel=2)
    with torch.no_grad():
        left.copy_(right)
    return left


def load_weights_into_llama(model, param_config, params):
    """Copy weights with Hugging Face's names into the model; without lm_head.weight, head and embedding share one tensor.

    param_config: n_layers is read. KeyError names missing tensors, ValueError a wrong shape; a warning names unused ones.
    """
    wanted = {"model.embed_tokens.weight": model.tok_emb, "model.norm.weight": model.final_norm}
    for number, block in enumerate(model.trf_blocks[: param_config["n_layers"]]):
        prefix = f"model.layers.{number}."
        att, ff = block.att, block.ff
        parts = {
            "self_attn.q_proj": att.W_query, "self_attn.k_proj": att.W_key,
            "self_attn.v_proj": att.W_value, "self_attn.o_proj": att.out_proj,
            "mlp.gate_proj": ff.fc1, "mlp.up_proj": ff.fc2, "mlp.down_proj": ff.fc3,
            "input_layernorm": block.norm1, "post_attention_layernorm": block.norm2,
        }
        wanted |= {f"{prefix}{part}.weight": module for part, module in parts.items()}
    if "lm_head.weight" in params:
        wanted["lm_head.weight"] = model.out_head
    missing, unused = [name for name in wanted if name not in params], [name for name in params if name not in wanted]
    if missing:
        raise KeyError(f"{len(missing)} tensors are missing, first {missing[0]}")
    for name, module in wanted.items():
        assign(module.weight, params[name], name)
    if "lm_head.weight" not in params:
        model.out_head.weight = model.tok_emb.weight
    if unused:
        warnings.warn(f"{len(unused)} tensors were not used, first {unused[0]}", stacklevel=2)
