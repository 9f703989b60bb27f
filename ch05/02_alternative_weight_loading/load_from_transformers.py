"""GPT-2's weights from a Hugging Face model object into chapter 4's GPTModel, layer by layer.

The functions are born in weight-loading-hf-transformers.ipynb. They never import transformers: they walk a model that exists.
"""

import torch
import torch.nn as nn


def assign_check(left: torch.Tensor | None, right: torch.Tensor) -> nn.Parameter:
    """Return the numbers of `right` as a new parameter of left's type and device; ValueError on unequal shapes. Section 3."""
    if left is None or left.shape != right.shape:
        place = "no such parameter" if left is None else f"shape {tuple(left.shape)}"
        raise ValueError(f"the model has {place}, the weights have shape {tuple(right.shape)}")
    return nn.Parameter(torch.empty_like(left).copy_(right.detach()))


def block_pairs(block: nn.Module, theirs: nn.Module) -> list[tuple]:
    """Pair our layers of a block with GPT-2's tensors: (our layer, name of its parameter, tensor). Section 3."""
    ours = (block.att.W_query, block.att.W_key, block.att.W_value)
    weights = theirs.attn.c_attn.weight.chunk(3, dim=1)  # (emb_dim, emb_dim) each: queries, keys, values
    biases = theirs.attn.c_attn.bias.chunk(3)  # (emb_dim) each
    linears = list(zip(ours, weights, biases))
    convs = {block.att.out_proj: theirs.attn.c_proj, block.ff.layers[0]: theirs.mlp.c_fc, block.ff.layers[2]: theirs.mlp.c_proj}
    linears += [(layer, conv.weight, conv.bias) for layer, conv in convs.items()]
    pairs = []
    for layer, weight, bias in linears:
        pairs += [(layer, "weight", weight.T), (layer, "bias", bias)]  # (in, out) becomes (out, in)
    for layer, norm in ((block.norm1, theirs.ln_1), (block.norm2, theirs.ln_2)):
        pairs += [(layer, "scale", norm.weight), (layer, "shift", norm.bias)]
    return pairs


def load_weights(gpt: nn.Module, gpt_hf: nn.Module) -> None:
    """Give a GPTModel the weights of a transformers.GPT2Model. Section 3.

    Raises ValueError, naming the parameter and both shapes, if they do not fit; the model then stays as it was.
    """
    heads, blocks = gpt.trf_blocks[0].att.num_heads, len(gpt.trf_blocks)
    if (heads, blocks) != (gpt_hf.config.n_head, gpt_hf.config.n_layer):
        theirs = f"{gpt_hf.config.n_head} heads and {gpt_hf.config.n_layer} blocks"
        raise ValueError(f"the model has {heads} heads and {blocks} blocks, the weights are for {theirs}")
    pairs = [(gpt.tok_emb, "weight", gpt_hf.wte.weight), (gpt.pos_emb, "weight", gpt_hf.wpe.weight)]
    for block, theirs in zip(gpt.trf_blocks, gpt_hf.h):
        pairs += block_pairs(block, theirs)
    pairs += [(gpt.final_norm, "scale", gpt_hf.ln_f.weight), (gpt.final_norm, "shift", gpt_hf.ln_f.bias)]
    pairs += [(gpt.out_head, "weight", gpt_hf.wte.weight)]  # the head is the token embedding once more

    names = {layer: name for name, layer in gpt.named_modules()}
    found = []
    for layer, name, tensor in pairs:  # first all checks and copies, then all changes
        try:
            found.append((layer, name, assign_check(getattr(layer, name), tensor)))
        except ValueError as error:
            raise ValueError(f"{names[layer]}.{name}: {error}") from None
    for layer, name, parameter in found:
        setattr(layer, name, parameter)
