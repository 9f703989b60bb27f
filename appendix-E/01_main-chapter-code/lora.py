"""Appendix E in one file: low-rank adapters (LoRA), which fine-tune a model while its own weights stay as they are.

Two thin matrices A and B stand beside the weight of each linear layer, and only they are trained. They can be saved without
the model, added to its weights for inference (`merge_lora`) and taken out again (`unmerge_lora`).

    for parameter in model.parameters():  # first freeze, then replace: the adapters are new and will be trained
        parameter.requires_grad = False
    replace_linear_with_lora(model, rank=16, alpha=16)
"""

import math
import warnings

import torch
import torch.nn as nn


def check_adapter_size(in_dim: int, out_dim: int, rank: int, alpha: float) -> None:
    """Raise ValueError for a rank below 1 or above both dimensions, and for an alpha that is not positive. Section E.4.

    A rank above the smaller dimension works, but a lower one could do the same: it gives a warning.
    """
    smaller = min(in_dim, out_dim)
    if not 1 <= rank <= max(in_dim, out_dim):
        raise ValueError(f"rank must be between 1 and {smaller} for a layer {in_dim} -> {out_dim}, got {rank}")
    if not alpha > 0:
        raise ValueError(f"alpha must be greater than 0, got {alpha}")
    if rank > smaller:
        warnings.warn(f"rank {rank} for a layer {in_dim} -> {out_dim}: rank {smaller} could do the same", stacklevel=3)


class LoRALayer(nn.Module):
    """The adapter: x (..., in_dim) -> alpha / rank * x @ A @ B (..., out_dim), zero until B is trained.

    Raises ValueError for a rank or an alpha that cannot work. Appendix E, section E.4 (Hu et al. 2021).
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, alpha: float):
        super().__init__()
        check_adapter_size(in_dim, out_dim, rank, alpha)
        self.rank = rank
        self.alpha = alpha
        self.A = nn.Parameter(torch.empty(in_dim, rank))  # (in_dim, rank)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.B = nn.Parameter(torch.zeros(rank, out_dim))  # (rank, out_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x @ self.A  # the last dimension shrinks from in_dim to rank
        x = x @ self.B  # and grows from rank to out_dim
        return self.alpha / self.rank * x

    def delta_weight(self) -> torch.Tensor:
        """Return what the adapter would add to the weight of its layer, in the layout of nn.Linear: (out_dim, in_dim)."""
        product = self.A @ self.B  # (in_dim, out_dim)
        return self.alpha / self.rank * product.T  # (out_dim, in_dim)


class LinearWithLoRA(nn.Module):
    """A linear layer with an adapter beside it, on the layer's device and in its dtype: (..., d_in) -> (..., d_out). Section E.4."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear
        self.in_features, self.out_features = linear.in_features, linear.out_features  # chapter 3's attention asks for them
        adapter = LoRALayer(linear.in_features, linear.out_features, rank, alpha)
        self.lora = adapter.to(device=linear.weight.device, dtype=linear.weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.lora(x)


class LinearWithLoRAMerged(LinearWithLoRA):
    """The same function as LinearWithLoRA, but it adds the product of A and B to the weight at each call. Section E.4."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        combined = self.linear.weight + self.lora.delta_weight()  # (d_out, d_in)
        return nn.functional.linear(x, combined, self.linear.bias)


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` the part of the model that is called `name`, such as trf_blocks.0.att.W_query. Section E.4."""
    parent_name, _, own_name = name.rpartition(".")
    model.get_submodule(parent_name).add_module(own_name, module)


def is_target(name: str, targets: tuple[str, ...] | None) -> bool:
    """True if one of the targets is a part of the dotted name, or several parts in a row; None means every name. Section E.4."""
    return targets is None or any(f".{target}." in f".{name}." for target in targets)


def check_targets(names: list[str], targets: tuple[str, ...] | None) -> None:
    """Raise ValueError if there are no linear layers, no targets, or a target that is part of no name. Section E.4."""
    if not names:
        raise ValueError("the model contains no linear layers")
    if targets is not None and not targets:
        raise ValueError("targets is empty: without it, all linear layers are meant")
    for target in targets or ():
        if not any(is_target(name, (target,)) for name in names):
            raise ValueError(f"targets: no linear layer has {target!r} in its name; the first is {names[0]}")


def check_not_tied(model: nn.Module, name: str, layer: nn.Linear) -> None:
    """Raise ValueError if the layer's weight is also that of another part: merging an adapter would change both. Section E.4."""
    for other_name, other in model.named_modules():
        if other is not layer and getattr(other, "weight", None) is layer.weight:
            raise ValueError(f"{name} shares its weight with {other_name}, so it cannot have an adapter: leave it out with targets")


def find_linear_layers(model: nn.Module, targets: tuple[str, ...] | None = None) -> dict[str, nn.Linear]:
    """Return {name: layer} of the linear layers without adapter inside a model: all, or those with one of the targets in their name.

    A target is one part of a name or several: "att", "W_query", "trf_blocks.0", "out_head". A layer that the model uses in
    two places stands there twice. Raises ValueError for a model without linear layers, a target that no name contains, and a
    layer whose weight is also that of another part, as in a head tied to the embedding. Section E.4.
    """
    targets = (targets,) if isinstance(targets, str) else targets
    modules = model.named_modules(remove_duplicate=False)
    linear = {name: module for name, module in modules if name and isinstance(module, nn.Linear)}
    check_targets(list(linear), targets)
    found = {}
    for name, layer in linear.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        if is_target(name, targets) and not isinstance(parent, LinearWithLoRA):
            check_not_tied(model, name, layer)
            found[name] = layer
    return found


def replace_linear_with_lora(
    model: nn.Module, rank: int, alpha: float, alternative: bool = False, targets: tuple[str, ...] | None = None
) -> None:
    """Give the linear layers of a model an adapter, in place, at any depth, the head included. Freeze the model before. Section E.4.

    With `alternative` they become LinearWithLoRAMerged; `targets` chooses some of them. A layer that has an adapter keeps it.
    Raises ValueError for what `find_linear_layers` and `LoRALayer` refuse, and then changes nothing.
    """
    kind = LinearWithLoRAMerged if alternative else LinearWithLoRA
    layers = find_linear_layers(model, targets)
    adapted = {layer: kind(layer, rank, alpha) for layer in layers.values()}  # one for each layer, even if used twice
    for name, layer in layers.items():
        put_module(model, name, adapted[layer])


@torch.no_grad()
def merge_lora(model: nn.Module) -> dict[str, nn.Module]:
    """Add each adapter to the weight of its layer and put the plain layer back, in place: the model costs what it cost before.

    Returns {name: layer with adapter}, from which `unmerge_lora` restores the model. Raises ValueError if it has no adapters.
    Section E.4.
    """
    modules = model.named_modules(remove_duplicate=False)
    adapted = {name: module for name, module in modules if name and isinstance(module, LinearWithLoRA)}
    if not adapted:
        raise ValueError("the model contains no adapters")
    for layer in set(adapted.values()):  # one that is used in two places is changed once
        layer.linear.weight += layer.lora.delta_weight()  # (d_out, d_in)
    for name, layer in adapted.items():
        put_module(model, name, layer.linear)
    return adapted


@torch.no_grad()
def unmerge_lora(model: nn.Module, adapted: dict[str, nn.Module]) -> None:
    """Undo `merge_lora`, in place, up to rounding: subtract each adapter from the weight and put it beside the layer again.

    Raises ValueError, and changes nothing, unless `adapted` is what merging this model returned. Section E.4.
    """
    for name, layer in adapted.items():
        if model.get_submodule(name) is not layer.linear:
            raise ValueError(f"{name} was not merged from these adapters")
    for layer in set(adapted.values()):
        layer.linear.weight -= layer.lora.delta_weight()  # (d_out, d_in)
    for name, layer in adapted.items():
        put_module(model, name, layer)


def lora_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of the adapters alone. Store rank and alpha with them: alpha is in no tensor.

    A new head's own weights are no adapter and belong in the file, too. Raises ValueError without adapters. Section E.4.
    """
    adapters = {name for name, module in model.named_modules() if isinstance(module, LoRALayer)}
    if not adapters:
        raise ValueError("the model contains no adapters")
    return {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] in adapters}


def check_shapes(own: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> None:
    """Raise ValueError, with the first difference, unless both have the same names and shapes. Section E.4."""
    here = {name: tuple(tensor.shape) for name, tensor in own.items()}
    there = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise ValueError(f"{name}: the model has {here.get(name, 'none')}, the saved adapters have {there.get(name, 'none')}")


def load_lora_state_dict(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> None:
    """Copy saved adapters into a model whose layers have adapters of the same names and shapes; else ValueError. Section E.4."""
    own = lora_state_dict(model)
    check_shapes(own, state_dict)
    for name, tensor in own.items():
        tensor.copy_(state_dict[name])
