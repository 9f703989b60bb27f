"""Gemma 3 in plain PyTorch: sliding and full attention, four norms a block, two RoPE bases, a real base model's weights.

    from gemma3 import generate_text_basic_stream, load_gemma3
    model, tokenizer = load_gemma3()

Built on the Llama of chapter 5, folder 07, whose rotary positions, masks and generators are used as they are. New here: a norm
that multiplies by 1 + scale, norms for queries and keys, layers that look back no further than a window, and a cache that
keeps no more than the window. Section numbers refer to standalone-gemma3-plus-kvcache.ipynb.
"""

import warnings

import torch
import torch.nn.functional as F
from gemma3_weights import GemmaNames, load_weights_into_gemma
from gemma_files import find_gemma3
from gemma_tokenizer import GemmaTokenizer
from llama import (  # noqa: F401  offered from here
    RopeTables,
    apply_rope,
    attention_block_mask,
    compute_rope_params,
    generate_text_basic_stream,
    generate_text_simple,
    read_gguf,
    rope_rows,
)
from previous_chapters import KVCache
from torch import nn

SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA3_CONFIG_270M = {
    "vocab_size": 262_144, "context_length": 32_768, "emb_dim": 640, "n_heads": 4, "n_layers": 18, "hidden_dim": 2048,
    "head_dim": 256, "qk_norm": True, "n_kv_groups": 1, "rope_base": 1_000_000.0, "rope_local_base": 10_000.0,
    "sliding_window": 512, "layer_types": ([SLIDING] * 5 + [FULL]) * 3, "query_pre_attn_scalar": 256, "dtype": torch.bfloat16,
}
GEMMA3_CONFIG_1B = {
    **GEMMA3_CONFIG_270M, "emb_dim": 1152, "n_layers": 26, "hidden_dim": 6912, "layer_types": (([SLIDING] * 5 + [FULL]) * 5)[:26],
}
GEMMA3_CONFIG_4B = {  # the language part; every rotation of the full layers is slowed by 8, since none turns a million times
    **GEMMA3_CONFIG_270M, "vocab_size": 262_208, "context_length": 131_072, "emb_dim": 2560, "n_heads": 8, "n_layers": 34,
    "hidden_dim": 10_240, "n_kv_groups": 4, "sliding_window": 1024, "layer_types": (([SLIDING] * 5 + [FULL]) * 6)[:34],
    "rope_freq": {"factor": 8.0, "low_freq_factor": 1e6, "high_freq_factor": 2e6, "original_context_length": 131_072},
}


class RMSNorm(nn.Module):
    """Divide by the root mean square, multiply by 1 + scale: a scale of zeros, the starting value, leaves it at that (section 2)."""

    def __init__(self, emb_dim, eps=1e-6, bias=False):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.zeros(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim)) if bias else None

    def forward(self, x):
        """x (..., emb_dim) -> the same shape and dtype; computed in float32."""
        normed = F.rms_norm(x.float(), self.scale.shape, 1 + self.scale.float(), self.eps)
        if self.shift is not None:
            normed = normed + self.shift.float()
        return normed.to(x.dtype)


class FeedForward(nn.Module):
    """Gated feed-forward: gelu(fc1(x)) decides how much of fc2(x) passes, fc3 leads back to emb_dim (section 2)."""

    def __init__(self, cfg):
        super().__init__()
        self.fc1 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], dtype=cfg["dtype"], bias=False)
        self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], dtype=cfg["dtype"], bias=False)
        self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], dtype=cfg["dtype"], bias=False)

    def forward(self, x):
        gate = F.gelu(self.fc1(x), approximate="tanh")  # (b, num_tokens, hidden_dim)
        return self.fc3(gate * self.fc2(x))  # (b, num_tokens, emb_dim)


def attend(queries, keys, values, mask, scaling):
    """Fused attention of queries (b, num_heads, num_tokens, head_dim) over keys and values with fewer heads (section 2).

    mask: bool, True = blocked, its columns ending with the newest token; None: causal. Returns (b, num_tokens, num_heads, head_dim).
    """
    b, num_heads, num_tokens, head_dim = queries.shape
    allowed = None if mask is None else ~mask[..., -keys.shape[2] :]
    if num_tokens == 1:  # the query heads of a group are rows of one small matrix, so nothing is repeated
        grouped = queries.reshape(b, keys.shape[1], -1, head_dim)  # (b, groups, group_size, head_dim)
        context_vec = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=allowed, scale=scaling)
        return context_vec.reshape(b, 1, num_heads, head_dim)
    keys = keys.repeat_interleave(num_heads // keys.shape[1], dim=1)  # (b, num_heads, seen_tokens, head_dim)
    values = values.repeat_interleave(num_heads // values.shape[1], dim=1)  # (b, num_heads, seen_tokens, head_dim)
    context_vec = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, is_causal=mask is None, scale=scaling)
    return context_vec.transpose(1, 2)  # (b, num_tokens, num_heads, head_dim)


class GroupedQueryAttention(nn.Module):
    """Attention in which query heads share key and value heads; queries and keys are normed, then rotated (section 2).

    head_dim: d_in / num_heads if None. query_pre_attn_scalar: scores are divided by its square root (None: head_dim).
    sliding_window: a token sees itself and the sliding_window - 1 tokens before it (None: all). ValueError for widths and
    heads that do not divide.
    """

    def __init__(
        self, d_in, num_heads, num_kv_groups, head_dim=None, qk_norm=False, query_pre_attn_scalar=None, dtype=None, sliding_window=None
    ):
        super().__init__()
        if num_heads % num_kv_groups or (head_dim is None and d_in % num_heads):
            raise ValueError(f"{num_heads} heads must divide by {num_kv_groups} groups, and the width {d_in} by the heads without head_dim")
        self.num_heads, self.num_kv_groups, self.head_dim = num_heads, num_kv_groups, head_dim or d_in // num_heads
        self.W_query = nn.Linear(d_in, num_heads * self.head_dim, bias=False, dtype=dtype)
        self.W_key = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False, dtype=dtype)
        self.W_value = nn.Linear(d_in, num_kv_groups * self.head_dim, bias=False, dtype=dtype)
        self.out_proj = nn.Linear(num_heads * self.head_dim, d_in, bias=False, dtype=dtype)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.scaling = (query_pre_attn_scalar or self.head_dim) ** -0.5
        self.sliding_window = sliding_window

    def forward(self, x, mask, cos, sin, start_pos=0, cache=None, layer_idx=0):
        """x (b, num_tokens, d_in) -> the same shape. mask: see `attend`. Keys and values are appended to `cache`.

        start_pos: position of the first token, int or (b,); None: cos and sin are the tokens' rows already.
        """
        b, num_tokens, _ = x.shape
        queries = self.W_query(x).view(b, num_tokens, self.num_heads, self.head_dim).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        keys = self.W_key(x).view(b, num_tokens, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, groups, num_tokens, head_dim)
        values = self.W_value(x).view(b, num_tokens, self.num_kv_groups, self.head_dim).transpose(1, 2)  # (b, groups, num_tokens, head_dim)
        if self.q_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = apply_rope(queries, cos, sin, start_pos), apply_rope(keys, cos, sin, start_pos)
        if cache is not None:
            keys, values = cache.append(layer_idx, keys, values)  # (b, groups, all_tokens, head_dim)
        if self.sliding_window is not None:  # what lies before the first new token's window is not even read
            seen = self.sliding_window + num_tokens - 1
            keys, values = keys[:, :, -seen:], values[:, :, -seen:]
        context_vec = attend(queries, keys, values, mask, self.scaling)  # (b, num_tokens, num_heads, head_dim)
        return self.out_proj(context_vec.reshape(b, num_tokens, -1))  # (b, num_tokens, d_in)


class TransformerBlock(nn.Module):
    """Norm, attention, norm, add; norm, feed-forward, norm, add (section 2). attn_type: sliding_attention or full_attention."""

    def __init__(self, cfg, attn_type):
        super().__init__()
        if attn_type not in (SLIDING, FULL):
            raise ValueError(f"the layer type {attn_type!r} is neither {SLIDING!r} nor {FULL!r}")
        self.attn_type = attn_type
        self.att = GroupedQueryAttention(
            cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"], cfg["head_dim"], cfg["qk_norm"], cfg["query_pre_attn_scalar"],
            cfg["dtype"], cfg["sliding_window"] if attn_type == SLIDING else None,
        )
        self.ff = FeedForward(cfg)
        self.input_layernorm = RMSNorm(cfg["emb_dim"])
        self.post_attention_layernorm = RMSNorm(cfg["emb_dim"])
        self.pre_feedforward_layernorm = RMSNorm(cfg["emb_dim"])
        self.post_feedforward_layernorm = RMSNorm(cfg["emb_dim"])

    def forward(self, x, masks, ropes, start_pos=0, cache=None, layer_idx=0):
        """x (b, num_tokens, emb_dim) -> the same shape. masks, ropes: layer type -> mask, and -> (cos, sin)."""
        cos, sin = ropes[self.attn_type]
        attended = self.att(self.input_layernorm(x), masks[self.attn_type], cos, sin, start_pos, cache, layer_idx)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.ff(self.pre_feedforward_layernorm(x)))


class TwoRopes(RopeTables):
    """Llama's RopeTables, which stay in float32 whatever happens to the weights, with one more pair for sliding layers (section 2)."""

    def build_rope_tables(self):
        """(Re)compute the four tables (context_length, head_dim), also for a model on device meta; they are not in the state dict."""
        cfg, device = self.cfg, self.tok_emb.weight.device
        head_dim = cfg["head_dim"] or cfg["emb_dim"] // cfg["n_heads"]
        with torch.device("cpu"):
            full = compute_rope_params(head_dim, cfg["rope_base"], cfg["context_length"], cfg.get("rope_freq"))
            local = compute_rope_params(head_dim, cfg["rope_local_base"], cfg["context_length"])
        for name, table in zip(("cos", "sin", "cos_local", "sin_local"), full + local):
            self.register_buffer(name, table if device.type == "meta" else table.to(device), persistent=False)

    def ropes_at(self, position, num_tokens):
        """Layer type -> the rows (cos, sin) of num_tokens tokens from `position`, int or (b,), on: looked up once for all layers."""
        full = rope_rows(self.cos, self.sin, position, num_tokens)
        return {FULL: full, SLIDING: rope_rows(self.cos_local, self.sin_local, position, num_tokens)}


class Gemma3Model(TwoRopes):
    """Token ids (b, num_tokens) -> logits (b, num_tokens, vocab_size); section 2."""

    def __init__(self, cfg):
        super().__init__()
        if len(cfg["layer_types"]) != cfg["n_layers"]:
            raise ValueError(f"layer_types names {len(cfg['layer_types'])} layers, n_layers is {cfg['n_layers']}")
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"], dtype=cfg["dtype"])
        self.blocks = nn.ModuleList([TransformerBlock(cfg, attn_type) for attn_type in cfg["layer_types"]])
        self.final_norm = RMSNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False, dtype=cfg["dtype"])
        self.current_pos = 0
        self.build_rope_tables()

    def reset_kv_cache(self):
        """Begin a new text; the cache itself is the caller's."""
        self.current_pos = 0

    def _create_masks(self, seq_len, device, start=0, attention_mask=None):
        """(mask of the full layers, mask of the sliding ones) for seq_len tokens behind `start` others; bool, True = blocked.

        Each (seq_len, start + seq_len), with attention_mask (b, 1, seq_len, start + seq_len).
        """
        mask_global = attention_block_mask(seq_len, start, attention_mask, device)
        rows = torch.arange(start, start + seq_len, device=device)[:, None]  # (seq_len, 1)
        too_far = rows - torch.arange(start + seq_len, device=device) >= self.cfg["sliding_window"]  # (seq_len, start + seq_len)
        return mask_global, mask_global | too_far

    def forward(self, in_idx, cache=None, attention_mask=None, only_last=False):
        """cache: KVCache of earlier calls, extended here; attention_mask (b, cached + num_tokens), 0 = padding at the left.

        only_last: compute the logits of the last token alone, (b, 1, vocab_size). ValueError for a text longer than the
        context, for a mask of another shape or with padding elsewhere, and for ids outside the vocabulary.
        """
        num_tokens, start = in_idx.shape[1], 0 if cache is None else len(cache)
        check_input(in_idx, start, attention_mask, self.cfg)
        position = start if attention_mask is None else start - (attention_mask == 0).sum(dim=1)  # int or (b,)
        masks = {FULL: None, SLIDING: None}  # enough for one token, and for the beginning of a text that fits into the window
        if attention_mask is not None or (num_tokens > 1 and start + num_tokens > min(num_tokens, self.cfg["sliding_window"])):
            masks[FULL], masks[SLIDING] = self._create_masks(num_tokens, in_idx.device, start, attention_mask)
        ropes = self.ropes_at(position, num_tokens)
        x = self.tok_emb(in_idx)  # (b, num_tokens, emb_dim)
        x = x * torch.tensor(self.cfg["emb_dim"] ** 0.5, dtype=x.dtype)  # rounded to the dtype, as in training
        for layer_idx, block in enumerate(self.blocks):
            x = block(x, masks, ropes, None, cache, layer_idx)  # (b, num_tokens, emb_dim)
        self.current_pos = start + num_tokens
        x = self.final_norm(x[:, -1:] if only_last else x)
        return self.out_head(x.to(self.out_head.weight.dtype))


def check_input(in_idx, start, attention_mask, cfg):
    """ValueError, in one line, for what Gemma3Model cannot read behind `start` cached tokens. Folder 12 of chapter 5, section 2."""
    b, num_tokens = in_idx.shape
    if num_tokens == 0:
        raise ValueError("there is no token to read")
    if start + num_tokens > cfg["context_length"]:
        raise ValueError(f"{start + num_tokens} tokens do not fit the context of {cfg['context_length']}")
    if attention_mask is not None:
        if attention_mask.shape != (b, start + num_tokens):
            raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, not {(b, start + num_tokens)}")
        if not (attention_mask[:, -1] != 0).all() or (attention_mask[:, 1:].bool() < attention_mask[:, :-1].bool()).any():
            raise ValueError("attention_mask must be 0 for padding at the left, then 1 up to the last token of every row")
    if in_idx.device.type == "cpu":  # a GPU would have to wait for the answer
        low, high = int(in_idx.min()), int(in_idx.max())
        if low < 0 or high >= cfg["vocab_size"]:
            raise ValueError(f"token ids from {low} to {high}: outside the vocabulary of {cfg['vocab_size']:,}")


class SlidingKVCache(KVCache):
    """A KVCache that keeps, for sliding layers, only the sliding_window - 1 tokens a next one can see (section 4).

    The price: `crop` works only while nothing has left the window.
    """

    def __init__(self, cfg):
        super().__init__(cfg["n_layers"], cfg["context_length"])
        self.kept = [cfg["sliding_window"] - 1 if kind == SLIDING else None for kind in cfg["layer_types"]]
        self.num_tokens = [0] * cfg["n_layers"]  # read so far, in each layer

    def __len__(self):
        return self.num_tokens[0]

    def reset(self):
        super().reset()
        self.num_tokens = [0] * len(self.num_tokens)

    def append(self, layer_idx, keys, values):
        """Returns what the new tokens may see: up to sliding_window - 1 old keys and values, then the new ones."""
        self.num_tokens[layer_idx] += keys.shape[2]
        kept, old = self.kept[layer_idx], self.get(layer_idx)
        if kept is None:
            return super().append(layer_idx, keys, values)
        if old is not None:
            keys, values = torch.cat([old[0], keys], dim=2), torch.cat([old[1], values], dim=2)
        self.update(layer_idx, tuple(part[:, :, -kept:].clone() for part in (keys, values)) if kept else None)
        return keys, values

    def crop(self, length):
        if any(kept is not None and 0 < length < num > kept for kept, num in zip(self.kept, self.num_tokens)):
            raise ValueError(f"cannot crop {len(self)} tokens to {length}: the sliding layers have forgotten what came before their window")
        super().crop(length)
        self.num_tokens = [length] * len(self.num_tokens)


def load_gemma3(dtype=torch.float32):
    """Gemma 3 270M, the base model, from its pip packages: (model in eval mode, tokenizer). Section 5.

    FileNotFoundError with the command that installs the packages if they are missing.
    """
    metadata, tensors = read_gguf(find_gemma3())
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        model = Gemma3Model({**GEMMA3_CONFIG_270M, "dtype": dtype})
    model.out_head.weight = model.tok_emb.weight
    model.to_empty(device="cpu")
    if dtype == torch.float32:  # still empty, so it costs nothing: matrices column by column, as one row is multiplied by them fastest
        for parameter in filter(lambda parameter: parameter.dim() == 2, model.parameters()):
            parameter.data = parameter.data.view(parameter.shape[::-1]).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file's numbers are float32 after dequantization; dtype was asked for
        load_weights_into_gemma(model, GEMMA3_CONFIG_270M, GemmaNames(tensors))
    return model.eval(), GemmaTokenizer.from_metadata(metadata)
