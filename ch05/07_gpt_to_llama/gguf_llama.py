"""A Llama model out of a GGUF file: its sizes, and its tensors under Hugging Face's names; gguf_reader.py offers both.

The file keeps its sizes under keys such as llama.block_count, calls a weight blk.3.attn_q.weight, orders the rows of queries
and keys for another pairing of RoPE, and stores Llama 3.1's slowed rotations as a table. Here all four become what llama.py
expects; whatever llama.py cannot compute is refused by name, because a model that is nearly right answers nonsense.
"""

import math
from collections.abc import Mapping

import torch

ROPE_TABLE = "rope_freqs.weight"  # Llama 3.1 and later: by how much each rotation is slowed; a constant, not a trained weight
LLAMA31_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 8192}


def permute_back(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo the row order that GGUF gives to query and key weights: pairs side by side -> the halves of a head.

    weight: (num_heads * head_dim, d_in). The file keeps the two partners of a rotation in neighboring rows 2i and 2i + 1;
    this course's RoPE pairs row i with row i + head_dim / 2. ValueError if the rows do not make pairs in each head.
    """
    rows, d_in = weight.shape
    if rows % (2 * num_heads):
        raise ValueError(f"{rows} rows cannot be split into pairs in {num_heads} heads")
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, d_in)  # (num_heads, half, 2, d_in)
    return pairs.transpose(1, 2).reshape(rows, d_in)


class HuggingFaceNames(Mapping):
    """The tensors of a Llama GGUF file under Hugging Face's names, queries and keys in the split-half order.

    The table of slowed rotations is not among them (`config_from_gguf` reads it). ValueError names a tensor that does not
    belong to a Llama model.
    """

    PARTS = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }
    TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}

    def __init__(self, metadata, tensors):
        self.tensors = tensors
        heads = positive(metadata, "llama.attention.head_count")
        self.heads = {"attn_q": heads, "attn_k": positive(metadata, "llama.attention.head_count_kv", heads)}
        self.source = {self.rename(name): name for name in tensors if name != ROPE_TABLE}

    @property
    def shapes(self) -> dict:
        """Name -> shape, from the file's table: no weight is read for it."""
        return {name: self.tensors.table[source][1] for name, source in self.source.items()}

    def rename(self, name):
        """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
        if name in self.TOP:
            return self.TOP[name]
        parts = name.split(".")
        if len(parts) != 4 or parts[0] != "blk" or not parts[1].isdecimal() or parts[2] not in self.PARTS or parts[3] != "weight":
            raise ValueError(f"tensor {name} has no place in a Llama model")
        return f"model.layers.{parts[1]}.{self.PARTS[parts[2]]}.weight"

    def __getitem__(self, name):
        source = self.source[name]
        tensor, part = self.tensors[source], source.split(".")[-2]
        return permute_back(tensor, self.heads[part]) if part in self.heads else tensor

    def __iter__(self):
        return iter(self.source)

    def __len__(self):
        return len(self.source)


def positive(metadata, key: str, default=None) -> int:
    """A size of the model; ValueError if it is missing, no whole number, or not positive."""
    value = metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"{key} is {'missing' if value is None else repr(value)[:40]}; a positive whole number is needed")
    return value


def rope_freq_from_table(table: torch.Tensor, head_dim: int, rope_base: float) -> dict | None:
    """The settings of Llama 3.1's smoothing that give this table (head_dim / 2), or None if it slows nothing.

    The file stores the result alone: rotations that are too slow for the original context divided by a factor, fast ones by
    1, those between by something between. The factor is the largest entry; the other settings have been the same in all
    models of the family so far, so they are assumed and the table is computed again. ValueError if it comes out different.
    """
    factor = round(float(table.max()), 4)
    if table.numel() != head_dim // 2 or not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"{ROPE_TABLE} holds {table.numel()} numbers up to {factor}, which slow no rotation of {head_dim // 2}")
    if torch.all(table == 1):
        return None
    inv_freq = 1.0 / rope_base ** (torch.arange(0, head_dim, 2) / head_dim)  # (head_dim / 2)
    low, high, original = LLAMA31_ROPE.values()
    turns = original * inv_freq / (2 * torch.pi)  # how often each pair turns within the original context
    blend = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slowed by factor, 1: as it was
    if not torch.allclose(table.flatten(), 1 / ((1 - blend) / factor + blend), rtol=1e-3):
        raise ValueError(f"{ROPE_TABLE} is not Llama 3.1's smoothing with {LLAMA31_ROPE}")
    return {"factor": factor, **LLAMA31_ROPE}


def check_computable(metadata, head_dim: int) -> None:
    """ValueError for settings of a Llama file that llama.py does not compute: other head widths, scalings, norms, experts."""
    for key in ("llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count"):
        if metadata.get(key, head_dim) != head_dim:
            raise ValueError(f"{key} is {metadata[key]!r}; only heads of emb_dim / n_heads = {head_dim} numbers, all rotated, are computed")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"llama.rope.scaling.type is {scaling!r}; only the smoothing of Llama 3.1 is computed")
    eps = metadata.get("llama.attention.layer_norm_rms_epsilon", 1e-5)
    if not isinstance(eps, float) or not math.isclose(eps, 1e-5, rel_tol=1e-3):
        raise ValueError(f"llama.attention.layer_norm_rms_epsilon is {eps!r}; 1e-5 is computed")
    if metadata.get("llama.expert_count", 0):
        raise ValueError("llama.expert_count is not 0; a mixture of experts is not computed")


def config_from_gguf(metadata, tensors) -> dict:
    """The configuration of any model of the Llama family, in llama.py's keys, with dtype float32.

    metadata, tensors: what `read_gguf` returns. "tied" says that the file has no output.weight, so that head and embedding
    are one matrix. ValueError in one line for another architecture, missing sizes, and whatever llama.py cannot compute.
    """
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"this file holds a model of architecture {architecture!r}, not a Llama")
    shapes = {name: entry[1] for name, entry in tensors.table.items()}
    if len(shapes.get("token_embd.weight", ())) != 2:
        raise ValueError("this file has no matrix token_embd.weight, so it holds no whole model")
    vocab_size, emb_dim = shapes["token_embd.weight"]
    n_heads = positive(metadata, "llama.attention.head_count")
    if emb_dim != positive(metadata, "llama.embedding_length") or emb_dim % n_heads:
        raise ValueError(f"token_embd.weight is {emb_dim} wide; llama.embedding_length must say so and {n_heads} heads must divide it")
    head_dim = emb_dim // n_heads
    check_computable(metadata, head_dim)
    rope_base = metadata.get("llama.rope.freq_base", 10_000.0)
    if not isinstance(rope_base, (int, float)) or not 0 < rope_base < math.inf:
        raise ValueError(f"llama.rope.freq_base is {rope_base!r}; a positive number is needed")
    return {
        "vocab_size": vocab_size, "context_length": positive(metadata, "llama.context_length"), "emb_dim": emb_dim,
        "n_heads": n_heads, "n_layers": positive(metadata, "llama.block_count"),
        "hidden_dim": positive(metadata, "llama.feed_forward_length"),
        "n_kv_groups": positive(metadata, "llama.attention.head_count_kv", n_heads), "rope_base": float(rope_base),
        "rope_freq": rope_freq_from_table(tensors[ROPE_TABLE], head_dim, rope_base) if ROPE_TABLE in shapes else None,
        "dtype": torch.float32, "tied": "output.weight" not in shapes,
    }
