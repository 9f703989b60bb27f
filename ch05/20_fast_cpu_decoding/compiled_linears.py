"""Linear layers of a PyTorch model exchanged for compiled products: the first step of the ladder, all else stays PyTorch."""

import numpy as np
import torch
from fast_storage import as_array, store_float32, store_int8
from kernels import multiply
from machine_code import KEPT
from numba import njit
from torch import nn


@njit(**KEPT)
def kept_multiply(matrix, x, y, threads):
    """y = matrix @ x, as Python calls it: its machine code is kept between runs."""
    multiply(matrix, x, y, threads)


class CompiledLinear(nn.Module):
    """A linear layer without bias whose product with one vector is compiled; more rows go to PyTorch. Notebook, section 5."""

    def __init__(self, linear: nn.Linear, weights: str = "float32", threads: int = 1):
        super().__init__()
        if linear.bias is not None:
            raise ValueError("only layers without bias are exchanged")
        self.linear, self.threads = linear, threads
        self.matrix = {"float32": store_float32, "int8": store_int8}[weights](as_array(linear.weight))

    @property
    def weight(self) -> torch.Tensor:
        return self.linear.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., d_in) -> (..., rows)"""
        if x.numel() > self.linear.in_features:
            return self.linear(x)
        y = np.empty(self.linear.out_features, np.float32)
        kept_multiply(self.matrix, x.reshape(-1).numpy(), y, self.threads)
        return torch.from_numpy(y).view(*x.shape[:-1], len(y))


def exchange_linears(model: nn.Module, weights: str = "float32", threads: int = 1) -> nn.Module:
    """Exchange all linear layers of a model in place and return it; use it under torch.inference_mode(). Notebook, section 5."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, CompiledLinear(child, weights, threads))
    return model
