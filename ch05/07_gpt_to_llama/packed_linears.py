"""Linear layers packed for decoding: fewer, larger products, and weights in the order in which one token reads them.

A model that writes one token at a time multiplies a single row by every matrix, so it spends its time waiting for weights
from memory. `pack_for_decoding` changes how they lie there and nothing else: names, numbers, training and saving stay.
"""

import torch
import torch.nn.functional as F
from torch import nn


def pack(linears) -> torch.Tensor:
    """Put the weights of bias-free linear layers that read the same input side by side; returns them as one matrix.

    The result is (sum of out_features, d_in), and each layer's weight becomes a view into it, so nothing is stored twice. On a
    CPU in float32 the matrix is kept column by column: PyTorch's product of one row with it is then about half as fast again.
    Section 3.10 of standalone-llama32.ipynb.
    """
    packed = torch.cat([linear.weight.detach() for linear in linears])  # (all_out_features, d_in)
    if packed.dtype == torch.float32 and packed.device.type == "cpu":
        packed = packed.T.contiguous().T  # the same matrix, stored by columns
    for linear, part in zip(linears, packed.split([linear.out_features for linear in linears])):
        linear.weight.data = part
    return packed


def still_packed(linears, packed) -> bool:
    """Whether `packed` holds the layers' weights: not after a move to another device or type, a copy, or an exchanged layer."""
    if packed is None or torch.is_grad_enabled():  # gradients flow to the layers, not to the packed matrix
        return False
    place = packed.data_ptr()
    for linear in linears:
        if type(linear) is not nn.Linear or linear.weight.data_ptr() != place:
            return False
        place += linear.out_features * packed.stride(0) * packed.element_size()
    return True


def linear_outputs(x, linears, packed=None):
    """What each layer makes of x (b, num_tokens, d_in), as a tuple; one product if `packed` holds their weights, else one each.

    Section 3.10 of standalone-llama32.ipynb.
    """
    if still_packed(linears, packed):
        return F.linear(x, packed).split([linear.out_features for linear in linears], dim=-1)
    return tuple(linear(x) for linear in linears)


def unpack(model) -> None:
    """Forget the packed matrices, as a move to another device must; the layers keep their weights. Section 3.10."""
    for module in model.modules():
        for name in getattr(module, "packs", {}):
            setattr(module, name, None)


def pack_for_decoding(model):
    """Pack all layers of a model whose modules name their groups in `packs`, and the remaining linear layers one by one.

    Returns the model. Call it last, after loading and moving; a model that is moved later computes as before, only slower.
    Files written by safetensors need `.contiguous()` weights; torch.save takes them as they are. Section 3.10.
    """
    done = set()
    for module in list(model.modules()):
        for name, members in getattr(module, "packs", {}).items():
            linears = [getattr(module, member) for member in members]
            setattr(module, name, pack(linears))
            done.update(id(linear) for linear in linears)
    for module in model.modules():
        if type(module) is nn.Linear and id(module) not in done:
            pack([module])
    return model
