"""Published weights into a Llama model, with every mismatch named before anything is copied; llama.py offers both functions."""

import warnings

import torch
from torch import nn


def assign(left, right, tensor_name="unknown"):
    """Copy `right` into the parameter `left` and return `left`; ValueError if the shapes differ (section 4.1)."""
    if left.shape != right.shape:
        raise ValueError(f"{tensor_name}: the model needs {tuple(left.shape)}, the weights have {tuple(right.shape)}")
    if left.dtype != right.dtype:
        warnings.warn(f"weights of {right.dtype} are stored as {left.dtype}", stacklevel=2)
    with torch.no_grad():
        left.copy_(right)
    return left


def tie_or_untie(model, params, tied=None):
    """Make head and embedding one parameter, or two, as `tied` says (None: as the checkpoint does).

    ValueError where checkpoint and flag contradict each other (section 4.1).
    """
    has_head = "lm_head.weight" in params
    if tied is False and not has_head:
        raise ValueError("the checkpoint has no lm_head.weight, so its head is its embedding; the configuration says tied: False")
    if tied and has_head and not torch.equal(params["lm_head.weight"], params["model.embed_tokens.weight"]):
        raise ValueError("the checkpoint's lm_head.weight differs from its embedding; the configuration says tied: True")
    if tied or not has_head:
        model.out_head.weight = model.tok_emb.weight
    elif model.out_head.weight is model.tok_emb.weight:
        model.out_head.weight = nn.Parameter(model.tok_emb.weight.detach().clone())


def load_weights_into_llama(model, param_config, params):
    """Copy weights with Hugging Face's names into the model.

    param_config: n_layers is read, and tied where it is given; without it, a checkpoint without lm_head.weight has a tied
    head. KeyError names missing tensors, ValueError a wrong shape or number of layers, both before anything is copied; a
    warning names unused tensors (section 4.1).
    """
    if param_config["n_layers"] != len(model.trf_blocks):
        raise ValueError(f"param_config has n_layers {param_config['n_layers']}, the model has {len(model.trf_blocks)} blocks")
    wanted = {"model.embed_tokens.weight": model.tok_emb, "model.norm.weight": model.final_norm}
    for number, block in enumerate(model.trf_blocks):
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
    shapes = params.shapes if hasattr(params, "shapes") else {name: tensor.shape for name, tensor in params.items()}
    for name, module in wanted.items():  # nothing is copied before everything fits
        if module.weight.shape != tuple(shapes[name]):
            raise ValueError(f"{name}: the model needs {tuple(module.weight.shape)}, the weights have {tuple(shapes[name])}")
    tie_or_untie(model, params, param_config.get("tied"))
    for name, module in wanted.items():
        assign(module.weight, params[name], name)
    if unused:
        warnings.warn(f"{len(unused)} tensors were not used, first {unused[0]}", stacklevel=2)
