"""The GPT with grouped-query attention: several heads share one set of keys and values, so the cache holds fewer of them.

`GroupedQueryAttention` changes the lines of multi-head attention that are marked `# changed`. With as many groups as heads it is
multi-head attention, with one group it is multi-query attention.

Run it:  python gpt_with_kv_gqa.py --n_kv_groups 2
"""

import sys

import torch
import torch.nn as nn
from gpt_with_kv_mha import CachedAttention, attend, continued, visible
from gpt_with_kv_mha import GPTModel as BaseModel
from previous_chapters import cached_model_parser, int_at_least, run_cached_model


class GroupedQueryAttention(CachedAttention):
    """Causal attention with num_kv_groups sets of keys and values: (b, num_tokens, d_in) -> (b, num_tokens, d_out).

    num_heads / num_kv_groups neighboring heads share a set, and the caches hold num_kv_groups of them. ValueError
    for a d_out that num_heads, or num_heads that num_kv_groups does not divide. Folder 04 of chapter 4.
    """

    def __init__(
        self, d_in: int, d_out: int, dropout: float, num_heads: int, num_kv_groups: int,
        dtype: torch.dtype | None = None, qkv_bias: bool = False,
    ):  # fmt: skip
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out {d_out} is not divisible by num_heads {num_heads}")
        if num_kv_groups < 1 or num_heads % num_kv_groups != 0:
            raise ValueError(f"num_heads {num_heads} is not divisible by num_kv_groups {num_kv_groups}")
        self.d_out = d_out
        self.num_heads = num_heads
        self.num_kv_groups = num_kv_groups
        self.head_dim = d_out // num_heads
        kv_width = num_kv_groups * self.head_dim
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias, dtype=dtype)
        self.W_key = nn.Linear(d_in, kv_width, bias=qkv_bias, dtype=dtype)  # changed: fewer columns
        self.W_value = nn.Linear(d_in, kv_width, bias=qkv_bias, dtype=dtype)  # changed
        self.out_proj = nn.Linear(d_out, d_out, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        b, num_tokens, _ = x.shape
        queries = self.W_query(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        keys = self.W_key(x).view(b, num_tokens, self.num_kv_groups, self.head_dim)  # (b, num_tokens, num_kv_groups, head_dim)
        values = self.W_value(x).view(b, num_tokens, self.num_kv_groups, self.head_dim)  # (b, num_tokens, num_kv_groups, head_dim)
        queries = queries.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        keys = keys.transpose(1, 2)  # (b, num_kv_groups, num_tokens, head_dim)
        values = values.transpose(1, 2)  # (b, num_kv_groups, num_tokens, head_dim)
        if use_cache:
            keys = self.cache_k = continued(self.cache_k, keys)  # (b, num_kv_groups, num_keys, head_dim)
            values = self.cache_v = continued(self.cache_v, values)  # (b, num_kv_groups, num_keys, head_dim)

        # changed: the queries of a group stand below each other, so that all of them meet the group's keys without a copy.
        group_size = self.num_heads // self.num_kv_groups
        rows = group_size * num_tokens
        queries = queries.reshape(b, self.num_kv_groups, rows, self.head_dim)  # (b, num_kv_groups, rows, head_dim)
        allowed = visible(num_tokens, keys.shape[2], device=x.device).repeat(group_size, 1)  # (rows, num_keys)
        context_vec = attend(queries, keys, values, allowed, self.dropout)  # (b, num_kv_groups, rows, head_dim)
        context_vec = context_vec.reshape(b, self.num_heads, num_tokens, self.head_dim)  # (b, num_heads, num_tokens, head_dim)
        context_vec = context_vec.transpose(1, 2).reshape(b, num_tokens, self.d_out)  # (b, num_tokens, d_out)
        return self.out_proj(context_vec)  # (b, num_tokens, d_out)


class GPTModel(BaseModel):
    """The GPT of gpt_with_kv_mha.py with grouped queries; `cfg` also needs n_kv_groups, the number of key-value heads."""

    def make_attention(self, cfg: dict, layer: int) -> nn.Module:
        sizes = (cfg["emb_dim"], cfg["emb_dim"], cfg["drop_rate"], cfg["n_heads"], cfg["n_kv_groups"])
        return GroupedQueryAttention(*sizes, qkv_bias=cfg["qkv_bias"])


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = cached_model_parser("Time an untrained GPT with grouped-query attention: groups of heads share keys and values.")
    parser.add_argument("--n_kv_groups", type=int_at_least(1), default=2, help="sets of keys and values, a divisor of n_heads")
    return run_cached_model(parser, GPTModel, argv, cfg_options=("n_kv_groups",))


if __name__ == "__main__":
    sys.exit(main())
