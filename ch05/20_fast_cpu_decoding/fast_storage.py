"""Weights in the forms that kernels.py multiplies with: float32, int8, and GGUF's own blocks with 16 rows side by side.

Each function returns a matrix as a tuple (weights, scale, minimum) of arrays; parts that a form does not need are zeros.
"""

import numpy as np

LANES, BLOCK = 16, 32  # rows side by side; numbers of a row that share a scale
NONE = np.zeros(1, np.float32)


def as_array(tensor) -> np.ndarray:
    """A contiguous float32 array with the numbers of a tensor."""
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy())


def store_float32(weight: np.ndarray) -> tuple:
    """(rows, d_in) as it is, with a scale of 1 for each row."""
    return weight, np.ones(len(weight), np.float32), NONE


def store_int8(weight: np.ndarray) -> tuple:
    """(rows, d_in) -> whole numbers from -127 to 127 and one scale a row: weight = scale * q."""
    scale = np.maximum(np.abs(weight).max(axis=1), 1e-30) / 127  # (rows)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale.astype(np.float32), NONE


def pad_rows(weight: np.ndarray) -> np.ndarray:
    """(rows, d_in) with rows of zeros behind, up to a multiple of 16."""
    missing = -len(weight) % LANES
    return np.pad(weight, ((0, missing), (0, 0))) if missing else weight


def side_by_side(rows: np.ndarray) -> np.ndarray:
    """(rows, ...) -> (rows / 16, ..., 16): 16 rows become the last axis. ValueError if there is another number of rows."""
    if len(rows) % LANES:
        raise ValueError(f"{len(rows)} rows are no multiple of {LANES}")
    return np.ascontiguousarray(np.moveaxis(rows.reshape(-1, LANES, *rows.shape[1:]), 1, -1))


def store_int8_blocks(weight: np.ndarray) -> tuple:
    """(rows, d_in) -> whole numbers from -127 to 127, a scale for 32: weights (rows / 16, d_in, 16), scale (..., d_in / 32, 16)."""
    if weight.shape[1] % BLOCK:
        raise ValueError(f"{weight.shape[1]} numbers in a row are no multiple of {BLOCK}")
    blocks = weight.reshape(len(weight), -1, BLOCK)  # (rows, num_blocks, 32)
    scale = np.maximum(np.abs(blocks).max(axis=2), 1e-30) / 127  # (rows, num_blocks)
    q = np.rint(blocks / scale[..., None]).astype(np.int8).reshape(weight.shape)
    return side_by_side(q), side_by_side(scale.astype(np.float32)), NONE


def store_file_blocks(kind: str, shape: tuple, data: bytes, order=None, rounded: bool = False) -> tuple:
    """A GGUF tensor's stored bytes, Q4_1 or Q8_0, with its rows in another `order` and 16 of them side by side; nothing is unpacked.

    rounded: Q4_1 as words of two bytes, for the product that rounds the vector too. The float16 scales and minima become float32,
    two bytes more for each. ValueError for other types.
    """
    if kind not in ("Q4_1", "Q8_0"):
        raise ValueError(f"blocks of type {kind} are not known here, only Q4_1 and Q8_0")
    head = 4 if kind == "Q4_1" else 2  # bytes before the numbers of a block
    blocks = np.frombuffer(data, np.uint8).reshape(shape[0], shape[1] // BLOCK, -1)  # (rows, num_blocks, num_bytes)
    blocks = blocks if order is None else blocks[order]
    halves = np.ascontiguousarray(blocks[..., :head]).view(np.float16).astype(np.float32)  # (rows, num_blocks, num_halves)
    numbers = blocks[..., head:]
    if kind == "Q4_1":
        numbers = np.ascontiguousarray(numbers).view("<u2") if rounded else numbers
        return side_by_side(numbers), side_by_side(halves[..., 0]), side_by_side(halves[..., 1])
    return side_by_side(numbers.reshape(shape).view(np.int8)), side_by_side(halves[..., 0]), NONE


def stack_matrices(layers: list[list[tuple]]) -> tuple:
    """For each layer the matrices that read one input -> one matrix of all layers, with a first axis for the layer."""
    joined = []
    for matrices in layers:
        joined.append([np.concatenate(parts) if parts[0] is not NONE else NONE for parts in zip(*matrices)])
    return tuple(np.stack(parts) for parts in zip(*joined))


def bytes_of(matrices) -> int:
    """Bytes that one step reads of these matrices."""
    return sum(part.nbytes for matrix in matrices for part in matrix)
