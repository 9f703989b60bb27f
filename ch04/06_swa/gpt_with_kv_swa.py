"""The GPT with sliding-window attention: in most layers a token sees only the nearest ones, and the cache keeps no more.

`MultiHeadAttentionWithSWA` changes the mask and trims the cache. A model mixes such layers with full ones, which keep the
far past in reach. `# changed` marks what differs from multi-head attention.

Run it:  python gpt_with_kv_swa.py --sliding_window_size 64 --sliding_window_stride 5
"""

import sys

import torch
import torch.nn as nn
from gpt_with_kv_mha import CachedAttention, attend, continued, visible
from gpt_with_kv_mha import GPTModel as BaseModel
from memory_estimator_swa import is_sliding
from previous_chapters import cached_model_parser, int_at_least, run_cached_model


class SlidingCache(CachedAttention):
    """The cache of an attention over at most sliding_window_size tokens, None for all; ValueError for a window below 1.

    cache_k, cache_v: None, or the last sliding_window_size tokens, (b, tokens, num_heads, head_dim). tokens_read counts all
    since the last reset.
    """

    def __init__(self, sliding_window_size: int | None):
        super().__init__()
        if sliding_window_size is not None and sliding_window_size < 1:
            raise ValueError(f"need a window of at least 1 token, got {sliding_window_size}")
        self.sliding_window_size = sliding_window_size
        self.tokens_read = 0

    def reset_cache(self) -> None:
        super().reset_cache()
        self.tokens_read = 0

    def crop_cache(self, length: int) -> None:
        """Forget all but the first `length` tokens; ValueError if some that the next token would see were dropped."""
        kept = self.cache_k.shape[1]
        if length < self.tokens_read and kept < self.tokens_read:
            raise ValueError(f"cannot go back to {length} tokens: the cache holds only the last {kept} of {self.tokens_read}")
        if length < self.tokens_read:
            self.cache_k, self.cache_v = self.cache_k[:, :length].clone(), self.cache_v[:, :length].clone()
        self.tokens_read = length

    def trimmed(self, keys: torch.Tensor) -> torch.Tensor:
        """The last sliding_window_size tokens, as memory of their own: a slice would keep all the rest alive."""
        window = self.sliding_window_size
        return keys if window is None or keys.shape[1] <= window else keys[:, -window:].clone()


class MultiHeadAttentionWithSWA(SlidingCache):
    """Causal attention over at most sliding_window_size tokens, None for all: (b, num_tokens, d_in) -> (b, num_tokens, d_out).

    ValueError for a d_out that num_heads does not divide and a window below 1.
    """

    def __init__(
        self, d_in: int, d_out: int, dropout: float, num_heads: int, qkv_bias: bool = False, sliding_window_size: int | None = None
    ):  # fmt: skip
        super().__init__(sliding_window_size)
        if d_out % num_heads != 0:
            raise ValueError(f"d_out {d_out} is not divisible by num_heads {num_heads}")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        b, num_tokens, _ = x.shape
        queries = self.W_query(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        keys = self.W_key(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        values = self.W_value(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        if use_cache:
            keys = continued(self.cache_k, keys, dim=1)  # (b, num_keys, num_heads, head_dim)
            values = continued(self.cache_v, values, dim=1)  # (b, num_keys, num_heads, head_dim)
            self.cache_k, self.cache_v = self.trimmed(keys), self.trimmed(values)  # changed: only what later tokens can see
            self.tokens_read += num_tokens
        queries = queries.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        keys = keys.transpose(1, 2)  # (b, num_heads, num_keys, head_dim)
        values = values.transpose(1, 2)  # (b, num_heads, num_keys, head_dim)
        allowed = visible(num_tokens, keys.shape[2], self.sliding_window_size, x.device)  # (num_tokens, num_keys), changed: a window
        context_vec = attend(queries, keys, values, allowed, self.dropout)  # (b, num_heads, num_tokens, head_dim)
        context_vec = context_vec.transpose(1, 2).reshape(b, num_tokens, self.d_out)  # (b, num_tokens, d_out)
        return self.out_proj(context_vec)  # (b, num_tokens, d_out)


class GPTModel(BaseModel):
    """The GPT of gpt_with_kv_mha.py with windows in some layers; two more keys of `cfg`, both optional.

    sliding_window_size: tokens that a sliding layer sees (default: no windows). sliding_window_stride K: K sliding layers,
    then one full one, and again; 0: all full; negative, and the default: all sliding.
    """

    def make_attention(self, cfg: dict, layer: int) -> nn.Module:
        stride = cfg.get("sliding_window_stride", -1)
        ratio = (1, 0) if stride < 0 else (stride, 1)
        window = cfg.get("sliding_window_size") if is_sliding(layer, *ratio) else None
        sizes = (cfg["emb_dim"], cfg["emb_dim"], cfg["drop_rate"], cfg["n_heads"], cfg["qkv_bias"])
        return MultiHeadAttentionWithSWA(*sizes, sliding_window_size=window)


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = cached_model_parser("Time an untrained GPT with sliding-window attention in some or all layers.")
    parser.add_argument("--sliding_window_size", type=int_at_least(1), default=1024, help="tokens that a sliding layer sees")
    parser.add_argument("--sliding_window_stride", type=int, default=5, help="sliding layers before each full one; 0: all full, -1: none")
    return run_cached_model(parser, GPTModel, argv, cfg_options=("sliding_window_size", "sliding_window_stride"))


if __name__ == "__main__":
    sys.exit(main())
