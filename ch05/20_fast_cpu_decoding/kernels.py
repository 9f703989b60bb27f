"""Products of a weight matrix and one vector, and the small steps between them, compiled by numba for this processor.

A matrix is a tuple (weights, scale, minimum) of arrays. The number of axes of `weights` says how it is stored:

    2  (rows, d_in): float32 with a scale of 1 a row, or int8 with one scale a row
    3  (rows / 16, d_in, 16): int8, one scale for 32 numbers of a row; GGUF's Q8_0 blocks with 16 rows side by side
    4  (rows / 16, d_in / 32, 16, 16): a byte for two numbers, scale and minimum for 32; GGUF's Q4_1 blocks likewise. Or the
       same bytes as words of two, (rows / 16, d_in / 32, 8, 16), for the product that rounds the vector too

numba compiles a function for the types that it is called with and leaves out the branches these types cannot reach. Sixteen
rows side by side are a full register of the widest processors: the inner loop runs over rows, so no sum crosses lanes.
"""

import numpy as np
from fast_storage import BLOCK, LANES
from machine_code import QUICK
from numba import njit, prange


@njit(**QUICK)
def rows_times(weights, scale, x, y):
    """y = scale * (weights @ x): weights (rows, d_in), float32 or int8."""
    for i in range(weights.shape[0]):
        total = np.float32(0)
        for j in range(weights.shape[1]):
            total += np.float32(weights[i, j]) * x[j]
        y[i] = total * scale[i]


@njit(**QUICK)
def q8_group_times(weights, scale, x, y):
    """16 rows in Q8_0 blocks, weights (num_blocks, 32, 16), scale (num_blocks, 16), x (num_blocks, 32): sums of a block are scaled."""
    y[:] = np.float32(0)
    for block in range(len(x)):
        for lane in range(LANES):
            total = np.float32(0)
            for j in range(BLOCK):
                total += np.float32(weights[block, j, lane]) * x[block, j]
            y[lane] += scale[block, lane] * total


@njit(**QUICK)
def q4_group_times(weights, scale, minimum, x, y):
    """16 rows in Q4_1 blocks, weights (num_blocks, 16, 16), scale and minimum (num_blocks, 16), x (num_blocks, 32).

    weight = scale * q + minimum; the low half of byte j is number j of its block, the high half number j + 16. Without int32
    around each half it would be an int64, as in Python, and fill two lanes.
    """
    y[:] = np.float32(0)
    for block in range(len(x)):
        sum_of_x = np.float32(0)
        for j in range(BLOCK):
            sum_of_x += x[block, j]
        for lane in range(LANES):
            total = np.float32(0)
            for j in range(BLOCK // 2):
                byte = weights[block, j, lane]
                total += np.float32(np.int32(byte & 15)) * x[block, j] + np.float32(np.int32(byte >> 4)) * x[block, j + 16]
            y[lane] += scale[block, lane] * total + minimum[block, lane] * sum_of_x


@njit(**QUICK)
def round_blocks(x, numbers, scale, sums):
    """x (num_blocks, 32) -> whole numbers from -127 to 127 of the same shape, and for each block their scale and sum."""
    for block in range(len(x)):
        largest, total = np.float32(1e-30), np.int32(0)
        for j in range(BLOCK):
            largest = max(largest, abs(x[block, j]))
        for j in range(BLOCK):
            numbers[block, j] = np.int16(np.rint(x[block, j] * (np.float32(127) / largest)))
            total += numbers[block, j]
        scale[block], sums[block] = largest / np.float32(127), total


@njit(**QUICK)
def q4_rounded_group_times(weights, scale, minimum, numbers, x_scale, sums, y):
    """As `q4_group_times`, with x rounded by `round_blocks` and weights as words of two bytes, (num_blocks, 8, 16).

    Word j holds the numbers 2j, 2j + 16, 2j + 1 and 2j + 17, from its low end. All products are int16, of which a register
    has twice as many lanes. A sum of 32 may leave the range of int16 and start again at its other end; the sum for q - 8,
    at most 32 * 8 * 127 = 32,512, fits, so after the subtraction the number is right.
    """
    y[:] = np.float32(0)
    for block in range(len(sums)):
        for lane in range(LANES):
            total = np.int16(-8 * sums[block])
            for j in range(BLOCK // 4):
                word = weights[block, j, lane]
                total = np.int16(
                    total
                    + np.int16(word & 15) * numbers[block, 2 * j]
                    + np.int16(word >> 4 & 15) * numbers[block, 2 * j + 16]
                    + np.int16(word >> 8 & 15) * numbers[block, 2 * j + 1]
                    + np.int16(word >> 12) * numbers[block, 2 * j + 17]
                )
            whole = np.float32(sums[block])
            product = scale[block, lane] * (np.float32(total) + np.float32(8) * whole) + minimum[block, lane] * whole
            y[lane] += x_scale[block] * product


@njit(**QUICK)
def q4_groups_times(weights, scale, minimum, x, y):
    """All groups of a part: weights (num_groups, num_blocks, 16, 16) of bytes, or (num_groups, num_blocks, 8, 16) of words."""
    num_blocks = len(x)
    if weights.itemsize == 2:
        numbers, sums = np.empty((num_blocks, BLOCK), np.int16), np.empty(num_blocks, np.int32)
        x_scale = np.empty(num_blocks, np.float32)
        round_blocks(x, numbers, x_scale, sums)
        for group in range(len(weights)):
            q4_rounded_group_times(weights[group], scale[group], minimum[group], numbers, x_scale, sums, y[group])
    else:
        for group in range(len(weights)):
            q4_group_times(weights[group], scale[group], minimum[group], x, y[group])


@njit(**QUICK)
def part_times(weights, scale, minimum, x, y, part, parts):
    """Part number `part` of `parts` about equal ones of y = matrix @ x."""
    count = weights.shape[0]  # rows, or groups of 16 rows
    first, last = count * part // parts, count * (part + 1) // parts
    if weights.ndim == 2:
        rows_times(weights[first:last], scale[first:last], x, y[first:last])
    if weights.ndim == 3:
        for group in range(first, last):
            blocks = weights[group].reshape(-1, BLOCK, LANES)
            q8_group_times(blocks, scale[group], x.reshape(-1, BLOCK), y[group * LANES : (group + 1) * LANES])
    if weights.ndim == 4:
        groups = y.reshape(-1, LANES)[first:last]
        q4_groups_times(weights[first:last], scale[first:last], minimum[first:last], x.reshape(-1, BLOCK), groups)


@njit(parallel=True, **QUICK)
def parts_times(weights, scale, minimum, x, y, parts):
    """y = matrix @ x by `parts` threads at once."""
    for part in prange(parts):
        part_times(weights, scale, minimum, x, y, part, parts)


@njit(**QUICK)
def multiply(matrix, x, y, threads):
    """y = matrix @ x: matrix as at the top of this file, x (d_in), y (rows)."""
    weights, scale, minimum = matrix
    if threads > 1:
        parts_times(weights, scale, minimum, x, y, threads)
    else:
        part_times(weights, scale, minimum, x, y, 0, 1)


@njit(**QUICK)
def of_layer(matrices, layer):
    """The matrix of one layer from arrays in which all layers are stacked."""
    return matrices[0][layer], matrices[1][layer], matrices[2][layer]


@njit(**QUICK)
def quick_exp(x):
    """e to the power of x in float32 with a relative error below 3e-7, without a call: so a loop of it runs in lanes.

    x = n ln 2 + r with |r| <= ln 2 / 2; 2**n is written into the exponent of a float32, e**r is a polynomial.
    """
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = (x - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)  # ln 2 in two pieces, so that r keeps its digits
    series = np.float32(1 / 5040)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = series * r + np.float32(factor)
    return series * np.int32((np.int32(n) + 127) << 23).view(np.float32)


@njit(**QUICK)
def rms_norm(x, weight, eps, y):
    """y = weight * x / root mean square of x."""
    squares = np.float32(0)
    for i in range(len(x)):
        squares += x[i] * x[i]
    factor = np.float32(1) / np.sqrt(squares / np.float32(len(x)) + np.float32(eps))
    for i in range(len(x)):
        y[i] = x[i] * factor * weight[i]


@njit(**QUICK)
def layer_norm(x, scale, shift, eps, y):
    """y = scale * (x - mean) / standard deviation + shift."""
    mean, variance = np.float32(0), np.float32(0)
    for i in range(len(x)):
        mean += x[i]
    mean /= np.float32(len(x))
    for i in range(len(x)):
        variance += (x[i] - mean) * (x[i] - mean)
    factor = np.float32(1) / np.sqrt(variance / np.float32(len(x)) + np.float32(eps))
    for i in range(len(x)):
        y[i] = (x[i] - mean) * factor * scale[i] + shift[i]


@njit(**QUICK)
def rotate(heads, cos, sin):
    """Rotary positions in place: heads (num_heads, head_dim), number i paired with i + head_dim / 2; cos, sin (head_dim / 2)."""
    half = len(cos)
    for head in range(heads.shape[0]):
        for i in range(half):
            first, second = heads[head, i], heads[head, half + i]
            heads[head, i] = first * cos[i] - second * sin[i]
            heads[head, half + i] = second * cos[i] + first * sin[i]


@njit(**QUICK)
def add_weighted(weights, values, context):
    """context (head_dim) += weights (num_tokens) @ values (num_tokens, head_dim).

    Eight tokens at a time, so that the context is loaded and stored an eighth as often.
    """
    eights = len(weights) // 8
    w, v = weights[: 8 * eights].reshape(-1, 8), values[: 8 * eights].reshape(-1, 8, values.shape[1])
    for eight in range(eights):
        for i in range(len(context)):
            total = np.float32(0)
            for token in range(8):
                total += w[eight, token] * v[eight, token, i]
            context[i] += total
    for token in range(8 * eights, len(weights)):
        for i in range(len(context)):
            context[i] += weights[token] * values[token, i]


@njit(**QUICK)
def attend_head(query, keys, values, scaling, scores, context):
    """One query (head_dim) over keys and values (num_tokens, head_dim) -> context (head_dim); scores (num_tokens): working space."""
    largest, total = np.float32(-np.inf), np.float32(0)
    for token in range(len(scores)):
        score = np.float32(0)
        for i in range(len(query)):
            score += query[i] * keys[token, i]
        scores[token] = score * scaling
        largest = max(largest, scores[token])
    for token in range(len(scores)):
        scores[token] = quick_exp(scores[token] - largest)
        total += scores[token]
    context[:] = np.float32(0)
    add_weighted(scores, values, context)
    for i in range(len(context)):
        context[i] /= total


@njit(**QUICK)
def attend(queries, keys, values, first, last, scaling, scores, context):
    """All heads over the cached tokens first to last - 1: queries, context (heads, head_dim); keys, values (groups, room, head_dim).

    Slices start loops at 0: where a first index might be negative, numba checks every access, and nothing runs in lanes.
    """
    group_size = len(queries) // len(keys)
    for head in range(len(queries)):
        group = head // group_size
        attend_head(queries[head], keys[group, first:last], values[group, first:last], scaling, scores[first:last], context[head])


@njit(**QUICK)
def rows_of(matrices):
    """How many rows the matrix of each layer has, in any storage."""
    weights = matrices[0]  # one more axis than a single matrix: the layers
    return weights.shape[1] if weights.ndim == 3 else weights.shape[1] * LANES


@njit(**QUICK)
def gelu(x):
    """GELU with tanh, as GPT-2 and Gemma have it; tanh(z) = 1 - 2 / (e**2z + 1)."""
    z = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(2) - np.float32(2) / (quick_exp(np.float32(2) * z) + np.float32(1)))


@njit(**QUICK)
def add(x, y):
    """x += y"""
    for i in range(len(x)):
        x[i] += y[i]
