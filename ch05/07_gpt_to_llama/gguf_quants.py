"""The number formats of GGUF files, undone with NumPy: bytes of a block -> float32 weights; gguf_reader.py offers them all.

A quantized tensor is a row of equal blocks. Each block holds small whole numbers q and the scale that turns them into
weights: weight = scale * q, or scale * q + minimum. The simple formats give 32 weights one scale (Q8_0, Q4_0, Q5_0) or one
scale and one minimum (Q4_1, Q5_1). The K formats put 256 weights into a super-block, whose 8 or 16 smaller scales are
themselves quantized (Q4_K, Q5_K, Q6_K). The layouts follow ggml's published format; the results are tested, bit for bit,
against the `gguf` package.

Every function takes the stored bytes and the tensor's shape and returns a float32 tensor.
"""

import math

import numpy as np
import torch

BLOCK, SUPER_BLOCK = 32, 256  # weights in a block of the simple formats, of the K formats


def read_fields(data, *widths: int) -> list[np.ndarray]:
    """Bytes of whole blocks -> one array (num_blocks, width) of bytes for each field of a block."""
    blocks = np.frombuffer(data, dtype=np.uint8).reshape(-1, sum(widths))
    return np.split(blocks, np.cumsum(widths)[:-1], axis=1)


def read_half(field: np.ndarray) -> np.ndarray:
    """(num_blocks, 2) bytes -> (num_blocks, 1) float16 numbers as float32."""
    return np.ascontiguousarray(field).view("<f2").astype(np.float32)


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """(..., n) bytes -> (..., 2n) numbers from 0 to 15: the low halves of all bytes, then the high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def unpack_fifth_bits(field: np.ndarray) -> np.ndarray:
    """(num_blocks, 4) bytes, one bit for each weight -> (num_blocks, 32) numbers, 16 where the bit is set."""
    return np.unpackbits(field, axis=1, bitorder="little") << 4


def scaled_weights(q: np.ndarray, scale, shape, offset=0, minimum=None) -> torch.Tensor:
    """(q - offset) * scale + minimum as a float32 tensor of `shape`; computed in place, since a tensor may be large."""
    out = q.astype(np.float32)
    if offset:
        out -= offset
    out *= scale
    if minimum is not None:
        out += minimum
    return torch.from_numpy(out).reshape(shape)


def dequantize_f32(data, shape) -> torch.Tensor:
    """Float32 numbers as they are: 4 bytes, 32 bits a weight."""
    return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32)).reshape(shape)


def dequantize_f16(data, shape) -> torch.Tensor:
    """Float16 numbers: 2 bytes, 16 bits a weight."""
    return torch.from_numpy(np.frombuffer(data, dtype="<f2").astype(np.float32)).reshape(shape)


def dequantize_bf16(data, shape) -> torch.Tensor:
    """Bfloat16 numbers, the upper half of a float32 each: 2 bytes, 16 bits a weight."""
    upper = np.frombuffer(data, dtype="<u2").astype(np.uint32)
    return torch.from_numpy((upper << 16).view(np.float32)).reshape(shape)


def dequantize_q8_0(data, shape) -> torch.Tensor:
    """Blocks of 34 bytes, 8.5 bits a weight: a float16 scale, then 32 signed bytes q; weight = scale * q."""
    scale, q = read_fields(data, 2, 32)  # (num_blocks, 2), (num_blocks, 32)
    return scaled_weights(q.view(np.int8), read_half(scale), shape)


def dequantize_q4_0(data, shape) -> torch.Tensor:
    """Blocks of 18 bytes, 4.5 bits a weight: a float16 scale, then 16 bytes of two 4-bit numbers; weight = scale * (q - 8).

    The low halves of the 16 bytes are weights 0 to 15 of the block, the high halves weights 16 to 31, as in all of the
    simple formats.
    """
    scale, packed = read_fields(data, 2, 16)  # (num_blocks, 2), (num_blocks, 16)
    return scaled_weights(unpack_nibbles(packed), read_half(scale), shape, offset=8)


def dequantize_q4_1(data, shape) -> torch.Tensor:
    """Blocks of 20 bytes, 5 bits a weight: float16 scale, float16 minimum, 16 bytes of two 4-bit numbers.

    weight = scale * q + minimum with q from 0 to 15; the low halves of the 16 bytes are weights 0 to 15 of the block, the
    high halves weights 16 to 31.
    """
    scale, minimum, packed = read_fields(data, 2, 2, 16)  # (num_blocks, 2), (num_blocks, 2), (num_blocks, 16)
    return scaled_weights(unpack_nibbles(packed), read_half(scale), shape, minimum=read_half(minimum))


def dequantize_q5_0(data, shape) -> torch.Tensor:
    """Blocks of 22 bytes, 5.5 bits a weight: float16 scale, 4 bytes with the fifth bits, 16 bytes with the lower four.

    weight = scale * (q - 16) with q from 0 to 31; the fifth bit of weight i is bit i of the 4 bytes.
    """
    scale, fifth, packed = read_fields(data, 2, 4, 16)  # (num_blocks, 2), (num_blocks, 4), (num_blocks, 16)
    return scaled_weights(unpack_nibbles(packed) | unpack_fifth_bits(fifth), read_half(scale), shape, offset=16)


def dequantize_q5_1(data, shape) -> torch.Tensor:
    """Blocks of 24 bytes, 6 bits a weight: as Q5_0 with a float16 minimum after the scale; weight = scale * q + minimum."""
    scale, minimum, fifth, packed = read_fields(data, 2, 2, 4, 16)
    return scaled_weights(unpack_nibbles(packed) | unpack_fifth_bits(fifth), read_half(scale), shape, minimum=read_half(minimum))


def unpack_small_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 12 bytes of a Q4_K or Q5_K super-block -> 8 scales and 8 minimums from 0 to 63, (num_blocks, 8, 1) float32 each.

    Scales 0 to 3 are the lower 6 bits of bytes 0 to 3, minimums 0 to 3 those of bytes 4 to 7. The other eight have their
    lower 4 bits in bytes 8 to 11 (scales in the low halves, minimums in the high ones) and their upper 2 bits in the bits
    that the first eight left free.
    """
    first, second, third = np.split(packed, 3, axis=1)  # (num_blocks, 4) each
    scale = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)  # (num_blocks, 8)
    minimum = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)  # (num_blocks, 8)
    return scale[:, :, None].astype(np.float32), minimum[:, :, None].astype(np.float32)


def dequantize_q4_k(data, shape) -> torch.Tensor:
    """Super-blocks of 144 bytes, 4.5 bits a weight: 8 groups of 32 weights, each with a 6-bit scale and a 6-bit minimum.

    float16 scale of the scales, float16 scale of the minimums, 12 bytes with both (see `unpack_small_scales`), then 128 bytes: each
    32 of them hold one group in the low halves and the next in the high halves.
    weight = (scale * small scale) * q - (minimum scale * small minimum), q from 0 to 15.
    """
    scale, minimum, small, packed = read_fields(data, 2, 2, 12, 128)
    small_scale, small_minimum = unpack_small_scales(small)
    q = unpack_nibbles(packed.reshape(-1, 4, 32)).reshape(-1, 8, 32)  # (num_blocks, 8, 32)
    return scaled_weights(q, read_half(scale)[:, :, None] * small_scale, shape, minimum=-read_half(minimum)[:, :, None] * small_minimum)


def dequantize_q5_k(data, shape) -> torch.Tensor:
    """Super-blocks of 176 bytes, 5.5 bits a weight: as Q4_K, with 32 bytes of fifth bits before the 128 bytes.

    Bit g of byte i is the fifth bit of weight i in group g, so q goes from 0 to 31.
    """
    scale, minimum, small, fifth, packed = read_fields(data, 2, 2, 12, 32, 128)
    small_scale, small_minimum = unpack_small_scales(small)
    group = np.arange(8, dtype=np.uint8)[:, None]  # (8, 1)
    high = (fifth[:, None, :] >> group & 1) << 4  # (num_blocks, 8, 32)
    q = unpack_nibbles(packed.reshape(-1, 4, 32)).reshape(-1, 8, 32) | high  # (num_blocks, 8, 32)
    return scaled_weights(q, read_half(scale)[:, :, None] * small_scale, shape, minimum=-read_half(minimum)[:, :, None] * small_minimum)


def dequantize_q6_k(data, shape) -> torch.Tensor:
    """Super-blocks of 210 bytes, 6.5625 bits a weight: 16 groups of 16 weights, each with a signed 8-bit scale.

    128 bytes with the lower four bits, 64 bytes with the upper two, 16 small scales, and last a float16 scale of the
    scales; weight = (scale * small scale) * (q - 32), q from 0 to 63. Each half of the super-block (128 weights) has 64
    bytes of lower bits (the low halves are its first 64 weights, the high halves the others) and 32 bytes of upper bits,
    of which byte i holds those of weights i, 32 + i, 64 + i and 96 + i.
    """
    lower, upper, small, scale = read_fields(data, 128, 64, 16, 2)
    low = unpack_nibbles(lower.reshape(-1, 2, 64))  # (num_blocks, 2, 128)
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]  # (4, 1)
    high = upper.reshape(-1, 2, 1, 32) >> shift & 3  # (num_blocks, 2, 4, 32)
    q = (low | high.reshape(-1, 2, 128) << 4).reshape(-1, 16, 16)  # (num_blocks, 16, 16)
    group_scale = read_half(scale) * small.view(np.int8).astype(np.float32)  # (num_blocks, 16)
    return scaled_weights(q, group_scale[:, :, None], shape, offset=32)


# type number -> (name, weights in a block, bytes of a block)
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", BLOCK, 18), 3: ("Q4_1", BLOCK, 20), 6: ("Q5_0", BLOCK, 22), 7: ("Q5_1", BLOCK, 24), 8: ("Q8_0", BLOCK, 34),
    12: ("Q4_K", SUPER_BLOCK, 144), 13: ("Q5_K", SUPER_BLOCK, 176), 14: ("Q6_K", SUPER_BLOCK, 210),
}
DEQUANTIZE = {
    "F32": dequantize_f32, "F16": dequantize_f16, "BF16": dequantize_bf16,
    "Q4_0": dequantize_q4_0, "Q4_1": dequantize_q4_1, "Q5_0": dequantize_q5_0, "Q5_1": dequantize_q5_1, "Q8_0": dequantize_q8_0,
    "Q4_K": dequantize_q4_k, "Q5_K": dequantize_q5_k, "Q6_K": dequantize_q6_k,
}
# numbers of the types that exist and are not read here, for the message that refuses them
OTHER_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}


def bytes_of_tensor(number: int, shape) -> int:
    """Bytes that a tensor of a type and shape (rows last but one, as in PyTorch) takes in the file.

    ValueError names a type that is unknown here, an empty tensor, or a row length that is no multiple of the block.
    """
    if number not in TENSOR_TYPES:
        known = ", ".join(name for name, _, _ in TENSOR_TYPES.values())
        named = f"{number} ({OTHER_TYPES[number]})" if number in OTHER_TYPES else str(number)
        raise ValueError(f"has the unknown type {named}; known here: {known}")
    name, per_block, block_bytes = TENSOR_TYPES[number]
    if 0 in shape:
        raise ValueError(f"has the shape {shape}, so it is empty")
    row = shape[-1] if shape else 1
    if row % per_block:
        raise ValueError(f"has rows of {row:,} weights, which {name} cannot store in blocks of {per_block}")
    return math.prod(shape) // per_block * block_bytes
