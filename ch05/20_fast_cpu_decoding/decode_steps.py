"""A whole decoding step as one compiled function, for each architecture: one token in, the logits of the next one out.

Python is entered once a token instead of several hundred times, and nothing is allocated but a few vectors. `weights` are
matrices as kernels.py describes them, those of all layers stacked; cache: keys and values (n_layers, groups, room, head_dim),
into which the step writes those of its token; x (emb_dim): the token's embedding, used up; logits (vocab_size): written.
"""

import numpy as np
from kernels import add, attend, gelu, layer_norm, multiply, of_layer, quick_exp, rms_norm, rotate, rows_of
from machine_code import KEPT
from numba import njit


@njit(**KEPT)
def llama_step(x, position, weights, norms, tables, cache, threads, logits):
    """Llama 3 and SmolLM2. weights: (qkv, out, gate_up, down, head); norms: (norm1, norm2, final), the first two (n_layers, emb_dim).

    tables: cos and sin (context_length, head_dim / 2).
    """
    qkv_of, out_of, gate_up_of, down_of, head = weights
    norm1, norm2, final = norms
    cos, sin = tables
    keys, values = cache
    groups, head_dim, emb_dim = keys.shape[1], keys.shape[3], len(x)
    heads = rows_of(qkv_of) // head_dim - 2 * groups
    qkv, context = np.empty((heads + 2 * groups, head_dim), np.float32), np.empty((heads, head_dim), np.float32)
    normed, change, scores = np.empty(emb_dim, np.float32), np.empty(emb_dim, np.float32), np.empty(position + 1, np.float32)
    gate_up, hidden = np.empty(rows_of(gate_up_of), np.float32), np.empty(rows_of(gate_up_of) // 2, np.float32)
    scaling = np.float32(1 / np.sqrt(head_dim))
    for layer in range(len(norm1)):
        rms_norm(x, norm1[layer], 1e-5, normed)
        multiply(of_layer(qkv_of, layer), normed, qkv.reshape(-1), threads)
        rotate(qkv[: heads + groups], cos[position], sin[position])  # queries and keys, not values
        keys[layer, :, position] = qkv[heads : heads + groups]
        values[layer, :, position] = qkv[heads + groups :]
        attend(qkv[:heads], keys[layer], values[layer], 0, position + 1, scaling, scores, context)
        multiply(of_layer(out_of, layer), context.reshape(-1), change, threads)
        add(x, change)
        rms_norm(x, norm2[layer], 1e-5, normed)
        multiply(of_layer(gate_up_of, layer), normed, gate_up, threads)
        for i in range(len(hidden)):  # SwiGLU: silu(gate) * up
            hidden[i] = gate_up[i] / (np.float32(1) + quick_exp(-gate_up[i])) * gate_up[len(hidden) + i]
        multiply(of_layer(down_of, layer), hidden, change, threads)
        add(x, change)
    rms_norm(x, final, 1e-5, normed)
    multiply(head, normed, logits, threads)


@njit(**KEPT)
def gpt_step(x, position, weights, vectors, cache, threads, logits):
    """GPT-2 and chapter 4's GPTModel; x: token and position embedding added. weights: (qkv, out, fc1, fc2, head).

    vectors: (norm1 scale, shift, norm2 scale, shift, qkv bias, out bias, fc1 bias, fc2 bias, all (n_layers, ...), final scale, shift).
    """
    qkv_of, out_of, fc1_of, fc2_of, head = weights
    scale1, shift1, scale2, shift2, qkv_bias, out_bias, fc1_bias, fc2_bias, final_scale, final_shift = vectors
    keys, values = cache
    heads, head_dim, emb_dim = keys.shape[1], keys.shape[3], len(x)
    qkv, context = np.empty((3 * heads, head_dim), np.float32), np.empty((heads, head_dim), np.float32)
    normed, change, scores = np.empty(emb_dim, np.float32), np.empty(emb_dim, np.float32), np.empty(position + 1, np.float32)
    hidden = np.empty(rows_of(fc1_of), np.float32)
    scaling = np.float32(1 / np.sqrt(head_dim))
    for layer in range(len(scale1)):
        layer_norm(x, scale1[layer], shift1[layer], 1e-5, normed)
        multiply(of_layer(qkv_of, layer), normed, qkv.reshape(-1), threads)
        add(qkv.reshape(-1), qkv_bias[layer])
        keys[layer, :, position] = qkv[heads : 2 * heads]
        values[layer, :, position] = qkv[2 * heads :]
        attend(qkv[:heads], keys[layer], values[layer], 0, position + 1, scaling, scores, context)
        multiply(of_layer(out_of, layer), context.reshape(-1), change, threads)
        add(change, out_bias[layer])
        add(x, change)
        layer_norm(x, scale2[layer], shift2[layer], 1e-5, normed)
        multiply(of_layer(fc1_of, layer), normed, hidden, threads)
        for i in range(len(hidden)):
            hidden[i] = gelu(hidden[i] + fc1_bias[layer, i])
        multiply(of_layer(fc2_of, layer), hidden, change, threads)
        add(change, fc2_bias[layer])
        add(x, change)
    layer_norm(x, final_scale, final_shift, 1e-5, normed)
    multiply(head, normed, logits, threads)


@njit(**KEPT)
def gemma_step(x, position, weights, norms, tables, windows, scaling, cache, threads, logits):
    """Gemma 3; x: the embedding times sqrt(emb_dim). weights: (qkv, out, gate_up, down, head).

    norms: (input, post_attention, pre_feedforward, post_feedforward, q, k, all (n_layers, ...), final), the 1 added already.
    tables: (cos, sin, cos_local, sin_local); windows (n_layers): tokens that a sliding layer sees, 0 for a full layer.
    """
    qkv_of, out_of, gate_up_of, down_of, head = weights
    norm_in, norm_attention, norm_feedforward, norm_out, q_norm, k_norm, final = norms
    cos, sin, cos_local, sin_local = tables
    keys, values = cache
    groups, head_dim, emb_dim = keys.shape[1], keys.shape[3], len(x)
    heads = rows_of(qkv_of) // head_dim - 2 * groups
    qkv, context = np.empty((heads + 2 * groups, head_dim), np.float32), np.empty((heads, head_dim), np.float32)
    normed, change, scores = np.empty(emb_dim, np.float32), np.empty(emb_dim, np.float32), np.empty(position + 1, np.float32)
    gate_up, hidden = np.empty(rows_of(gate_up_of), np.float32), np.empty(rows_of(gate_up_of) // 2, np.float32)
    for layer in range(len(norm_in)):
        rms_norm(x, norm_in[layer], 1e-6, normed)
        multiply(of_layer(qkv_of, layer), normed, qkv.reshape(-1), threads)
        for head_number in range(heads + groups):
            weight = q_norm[layer] if head_number < heads else k_norm[layer]
            rms_norm(qkv[head_number], weight, 1e-6, qkv[head_number])
        first = 0
        if windows[layer] > 0:
            first = max(0, position + 1 - windows[layer])
            rotate(qkv[: heads + groups], cos_local[position], sin_local[position])
        else:
            rotate(qkv[: heads + groups], cos[position], sin[position])
        keys[layer, :, position] = qkv[heads : heads + groups]
        values[layer, :, position] = qkv[heads + groups :]
        attend(qkv[:heads], keys[layer], values[layer], first, position + 1, np.float32(scaling), scores, context)
        multiply(of_layer(out_of, layer), context.reshape(-1), change, threads)
        rms_norm(change, norm_attention[layer], 1e-6, change)
        add(x, change)
        rms_norm(x, norm_feedforward[layer], 1e-6, normed)
        multiply(of_layer(gate_up_of, layer), normed, gate_up, threads)
        for i in range(len(hidden)):
            hidden[i] = gelu(gate_up[i]) * gate_up[len(hidden) + i]
        multiply(of_layer(down_of, layer), hidden, change, threads)
        rms_norm(change, norm_out[layer], 1e-6, change)
        add(x, change)
    rms_norm(x, final, 1e-6, normed)
    multiply(head, normed, logits, threads)
