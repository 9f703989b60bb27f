"""Fewer bits for each weight: a block quantizer in a few lines, two refinements, and what they cost in bytes.

Chapter 4's models keep each weight as a float32 number. A quantized matrix keeps a small whole number q for each weight, and
for each block of neighbors the scale that turns q back into a weight. quantization.ipynb builds this step by step;
quantization_experiment.py measures what it does to two language models.

    from quantize import round_trip, stored_bits
    rounded = round_trip(weight, bits=4, with_minimum=True)      # what the model computes with afterwards
    stored_bits(4, with_minimum=True)                            # 5.0 bits a weight
"""

from collections.abc import Callable

import torch
from gguf_quants import DEQUANTIZE, SUPER_BLOCK, TENSOR_TYPES
from torch import nn

BLOCK = 32  # neighbors in a row that share a scale, as in GGUF's simple formats
GROUPS = 8  # blocks of a super-block


def float16_scale(scale: torch.Tensor) -> torch.Tensor:
    """Round scales as float16 does, in which they are stored; a block of equal weights gets 1, so that nothing divides by 0."""
    scale = scale.half().float()
    return scale.masked_fill(scale == 0, 1.0)


def quantize(weight: torch.Tensor, bits: int, with_minimum: bool = False, block: int = BLOCK):
    """Blocks of weights -> whole numbers: (q, scale, minimum or None), (num_blocks, block), (num_blocks, 1), (num_blocks, 1).

    Symmetric: scale = largest absolute weight / (2**(bits - 1) - 1), and q lies between the two signs of that divisor.
    with_minimum: the scale divides the way from the smallest to the largest weight into 2**bits - 1 steps, q counts from 0.
    ValueError if the matrix is no whole number of blocks, or bits is not 2 to 8 (section 3).
    """
    if not 2 <= bits <= 8 or weight.numel() % block:
        raise ValueError(f"{weight.numel():,} weights in blocks of {block} at {bits} bits: need whole blocks and 2 to 8 bits")
    blocks = weight.detach().float().reshape(-1, block)  # (num_blocks, block)
    if with_minimum:
        steps = 2**bits - 1
        minimum = blocks.amin(dim=1, keepdim=True).half().float()  # (num_blocks, 1)
        scale = float16_scale((blocks.amax(dim=1, keepdim=True) - minimum) / steps)  # (num_blocks, 1)
        return torch.round((blocks - minimum) / scale).clamp(0, steps), scale, minimum
    highest = 2 ** (bits - 1) - 1
    scale = float16_scale(blocks.abs().amax(dim=1, keepdim=True) / highest)  # (num_blocks, 1)
    return torch.round(blocks / scale).clamp(-highest, highest), scale, None


def dequantize(q: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None, shape) -> torch.Tensor:
    """Whole numbers -> weights of `shape`: q * scale, plus the minimum where there is one (section 3)."""
    blocks = q * scale if minimum is None else q * scale + minimum
    return blocks.reshape(shape)


def round_trip(weight: torch.Tensor, bits: int, with_minimum: bool = False, block: int = BLOCK) -> torch.Tensor:
    """What is left of the weights after quantizing: float32, same shape (section 3)."""
    return dequantize(*quantize(weight, bits, with_minimum, block), weight.shape)


def stored_bits(bits: int, with_minimum: bool = False, block: int = BLOCK) -> float:
    """Bits a weight in storage: its own, and its share of the block's one or two float16 numbers (section 3)."""
    return bits + (32 if with_minimum else 16) / block


def round_trip_super_block(weight: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """As `round_trip` with a minimum, but scales and minimums of 8 blocks are numbers of 6 bits themselves (section 5).

    The layout of Q4_K and Q5_K: two float16 numbers for 256 weights, one that scales the 8 small scales and one that scales
    the 8 small minimums. ggml searches for better small numbers; here they are simply rounded. The minimum is at most 0.
    """
    if weight.numel() % SUPER_BLOCK:
        raise ValueError(f"{weight.numel():,} weights are no whole number of super-blocks of {SUPER_BLOCK}")
    steps, small_steps = 2**bits - 1, 63
    groups = weight.detach().float().reshape(-1, GROUPS, BLOCK)  # (num_super_blocks, 8, 32)
    below = -groups.amin(dim=2, keepdim=True).clamp(max=0)  # (num_super_blocks, 8, 1)
    scale = (groups.amax(dim=2, keepdim=True) + below) / steps  # (num_super_blocks, 8, 1)
    of_scales = float16_scale(scale.amax(dim=1, keepdim=True) / small_steps)  # (num_super_blocks, 1, 1)
    of_minimums = float16_scale(below.amax(dim=1, keepdim=True) / small_steps)  # (num_super_blocks, 1, 1)
    scale = torch.round(scale / of_scales).clamp(0, small_steps) * of_scales
    below = torch.round(below / of_minimums).clamp(0, small_steps) * of_minimums
    q = torch.round((groups + below) / scale.masked_fill(scale == 0, 1.0)).clamp(0, steps)
    return (q * scale - below).reshape(weight.shape)


def round_trip_gguf(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """What is left after a GGUF number format, quantized by the `gguf` package and undone by gguf_quants.py (section 5)."""
    import gguf

    stored = gguf.quantize(weight.detach().float().cpu().numpy(), gguf.GGMLQuantizationType[kind])
    return DEQUANTIZE[kind](stored.tobytes(), tuple(weight.shape)).to(weight.device)


def gguf_bits(kind: str) -> float:
    """Bits a weight of a GGUF number format."""
    per_block, block_bytes = next((weights, size) for name, weights, size in TENSOR_TYPES.values() if name == kind)
    return 8 * block_bytes / per_block


def relative_error(weight: torch.Tensor, rounded: torch.Tensor) -> float:
    """Root of the mean squared error, in units of the weights' own root mean square."""
    return float((rounded - weight).square().mean().sqrt() / weight.square().mean().sqrt())


@torch.no_grad()
def quantize_matrices(matrices: dict[str, nn.Parameter], way: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Replace each matrix by what `way` leaves of it, in place; returns the relative error of all of them together."""
    wrong = right = 0.0
    for parameter in matrices.values():
        before = parameter.float()
        rounded = way(before)
        wrong, right = wrong + float((rounded - before).square().sum()), right + float(before.square().sum())
        parameter.copy_(rounded)
    return (wrong / right) ** 0.5 if right else 0.0
