"""GPT-2's weights from the flat dictionary of a safetensors file into chapter 4's GPTModel.

The functions are born in weight-loading-hf-safetensors.ipynb. The dictionary has Hugging Face's names, such as h.0.attn.c_attn.weight.
"""

import torch
import torch.nn as nn


def published_names(n_layers: int) -> list[str]:
    """Return the names of all tensors of a GPT-2 with n_layers blocks, as Hugging Face writes them. Section 3."""
    layers = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2"]
    in_blocks = [f"h.{b}.{layer}.{kind}" for b in range(n_layers) for layer in layers for kind in ("weight", "bias")]
    return ["wte.weight", "wpe.weight", *in_blocks, "ln_f.weight", "ln_f.bias"]


def without_extras(params: dict) -> dict:
    """Drop what some files hold beside the weights: causal masks, a second copy of the embedding, a prefix. Section 3."""
    params = {name.removeprefix("transformer."): tensor for name, tensor in params.items()}
    if "lm_head.weight" in params and torch.equal(params["lm_head.weight"], params.get("wte.weight", torch.empty(0))):
        del params["lm_head.weight"]
    return {name: tensor for name, tensor in params.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}


def in_our_names(params: dict, n_layers: int) -> dict:
    """Return the tensors under GPTModel's names: split where GPT-2 fuses, transposed where it stores (in, out). Section 4."""
    found = {"tok_emb.weight": params["wte.weight"], "pos_emb.weight": params["wpe.weight"]}
    linears = {"attn.c_proj": "att.out_proj", "mlp.c_fc": "ff.layers.0", "mlp.c_proj": "ff.layers.2"}
    for b in range(n_layers):
        theirs, ours = f"h.{b}", f"trf_blocks.{b}"
        for kind in ("weight", "bias"):
            thirds = params[f"{theirs}.attn.c_attn.{kind}"].tensor_split(3, dim=-1)
            for name, third in zip(("query", "key", "value"), thirds):
                found[f"{ours}.att.W_{name}.{kind}"] = third.transpose(0, -1)  # leaves a bias, one row of numbers, as it is
            for their_layer, our_layer in linears.items():
                found[f"{ours}.{our_layer}.{kind}"] = params[f"{theirs}.{their_layer}.{kind}"].transpose(0, -1)
        for number in (1, 2):
            found[f"{ours}.norm{number}.scale"] = params[f"{theirs}.ln_{number}.weight"]
            found[f"{ours}.norm{number}.shift"] = params[f"{theirs}.ln_{number}.bias"]
    found |= {"final_norm.scale": params["ln_f.weight"], "final_norm.shift": params["ln_f.bias"]}
    return found | {"out_head.weight": params["wte.weight"]}


def assign(left: torch.Tensor | None, right: torch.Tensor) -> nn.Parameter:
    """Return the numbers of `right` as a new parameter of left's type and device; ValueError on unequal shapes. Section 5."""
    if left is None or left.shape != right.shape:
        place = "no such parameter" if left is None else f"shape {tuple(left.shape)}"
        raise ValueError(f"the model has {place}, the file has shape {tuple(right.shape)}")
    return nn.Parameter(torch.empty_like(left).copy_(right))


def load_weights_into_gpt(gpt: nn.Module, params: dict) -> None:
    """Give a GPTModel the weights `params`, a flat dictionary with Hugging Face's names. Section 5.

    Raises ValueError, naming the tensor, for missing and extra names and unequal shapes; the model then stays as it was.
    """
    params = without_extras(params)
    expected = published_names(len(gpt.trf_blocks))
    missing, extra = [n for n in expected if n not in params], [n for n in params if n not in expected]
    if missing or extra:
        raise ValueError(f"the file lacks {missing[0]}" if missing else f"the file holds {extra[0]}, for which the model has no place")
    found = []
    for name, tensor in in_our_names(params, len(gpt.trf_blocks)).items():
        layer_name, _, attribute = name.rpartition(".")
        layer = gpt.get_submodule(layer_name)
        try:
            found.append((layer, attribute, assign(getattr(layer, attribute), tensor)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for layer, attribute, parameter in found:
        setattr(layer, attribute, parameter)
