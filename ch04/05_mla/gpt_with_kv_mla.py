"""The GPT with multi-head latent attention: one short vector a token is cached, and keys and values are computed from it.

The core of the attention of DeepSeek-V2 and V3. What those models add (a key for rotary positions, a norm on the latent
vector, compressed queries, absorbed weights) is left out here; README.md says what each is for, and `absorbed_forward`
shows the last one. `# new` and `# changed` mark what differs from multi-head attention.

Run it:  python gpt_with_kv_mla.py --latent_dim 192
"""

import sys

import torch
import torch.nn as nn
from gpt_with_kv_mha import GPTModel as BaseModel
from gpt_with_kv_mha import attend, continued, visible
from previous_chapters import cached_model_parser, int_at_least, run_cached_model


class LatentCache(nn.Module):
    """A cache of latent vectors. cache_c_kv: None, or those read since the last reset, (b, tokens so far, latent_dim)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache_c_kv", None, persistent=False)

    def reset_cache(self) -> None:
        self.cache_c_kv = None

    def crop_cache(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.cache_c_kv = self.cache_c_kv[:, :length].clone()

    def reorder_cache(self, rows: torch.Tensor) -> None:
        """Row i becomes the old row rows[i]."""
        self.cache_c_kv = self.cache_c_kv[rows]


class MultiHeadLatentAttention(LatentCache):
    """Causal attention over keys and values made from a latent vector: (b, num_tokens, d_in) -> (b, num_tokens, d_out).

    latent_dim: its width, by default an eighth of d_out and at least 16. ValueError for a d_out that num_heads does not
    divide and a width below 1.
    """

    def __init__(self, d_in: int, d_out: int, dropout: float, num_heads: int, qkv_bias: bool = False, latent_dim: int | None = None):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out {d_out} is not divisible by num_heads {num_heads}")
        if latent_dim is not None and latent_dim < 1:
            raise ValueError(f"need a latent_dim of at least 1, got {latent_dim}")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.latent_dim = max(16, d_out // 8) if latent_dim is None else latent_dim
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_DKV = nn.Linear(d_in, self.latent_dim, bias=qkv_bias)  # new: down to the latent vector
        self.W_UK = nn.Linear(self.latent_dim, d_out, bias=qkv_bias)  # new: up to the keys of all heads
        self.W_UV = nn.Linear(self.latent_dim, d_out, bias=qkv_bias)  # new: up to the values of all heads
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        b, num_tokens, _ = x.shape
        queries = self.W_query(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        latent = self.W_DKV(x)  # (b, num_tokens, latent_dim), new
        if use_cache:
            latent = self.cache_c_kv = continued(self.cache_c_kv, latent)  # (b, num_keys, latent_dim), changed: the only cache
        num_keys = latent.shape[1]
        keys = self.W_UK(latent).view(b, num_keys, self.num_heads, self.head_dim)  # (b, num_keys, num_heads, head_dim)
        values = self.W_UV(latent).view(b, num_keys, self.num_heads, self.head_dim)  # (b, num_keys, num_heads, head_dim)
        queries = queries.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        keys = keys.transpose(1, 2)  # (b, num_heads, num_keys, head_dim)
        values = values.transpose(1, 2)  # (b, num_heads, num_keys, head_dim)
        allowed = visible(num_tokens, num_keys, device=x.device)  # (num_tokens, num_keys)
        context_vec = attend(queries, keys, values, allowed, self.dropout)  # (b, num_heads, num_tokens, head_dim)
        context_vec = context_vec.transpose(1, 2).reshape(b, num_tokens, self.d_out)  # (b, num_tokens, d_out)
        return self.out_proj(context_vec)  # (b, num_tokens, d_out)


def absorbed_forward(att: MultiHeadLatentAttention, x: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    """What `att` returns for the last tokens x (b, num_tokens, d_in) of a text with these latent vectors (b, num_keys, latent_dim).

    No key and no value is ever computed: each head's slice of W_UK moves over to the query, and each head's slice of W_UV is
    applied after the weighted sum. For inference, without dropout; ValueError for an attention with biases.
    """
    if att.W_UK.bias is not None:
        raise ValueError("weights can be absorbed only without biases: qkv_bias=False")
    b, num_tokens, _ = x.shape
    queries = att.W_query(x).view(b, num_tokens, att.num_heads, att.head_dim).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
    up_keys = att.W_UK.weight.view(att.num_heads, att.head_dim, att.latent_dim)  # (num_heads, head_dim, latent_dim)
    up_values = att.W_UV.weight.view(att.num_heads, att.head_dim, att.latent_dim)  # (num_heads, head_dim, latent_dim)
    latent_queries = queries @ up_keys  # (b, num_heads, num_tokens, latent_dim)
    scores = latent_queries @ latent[:, None].transpose(2, 3) / att.head_dim**0.5  # (b, num_heads, num_tokens, num_keys)
    allowed = visible(num_tokens, latent.shape[1], device=x.device)  # (num_tokens, num_keys)
    attn_weights = torch.softmax(scores.masked_fill(~allowed, float("-inf")), dim=-1)  # (b, num_heads, num_tokens, num_keys)
    mixed = attn_weights @ latent[:, None]  # (b, num_heads, num_tokens, latent_dim)
    context_vec = mixed @ up_values.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
    return att.out_proj(context_vec.transpose(1, 2).reshape(b, num_tokens, att.d_out))  # (b, num_tokens, d_out)


class GPTModel(BaseModel):
    """The GPT of gpt_with_kv_mha.py with latent attention; `cfg` may have latent_dim."""

    def make_attention(self, cfg: dict, layer: int) -> nn.Module:
        sizes = (cfg["emb_dim"], cfg["emb_dim"], cfg["drop_rate"], cfg["n_heads"], cfg["qkv_bias"])
        return MultiHeadLatentAttention(*sizes, latent_dim=cfg.get("latent_dim"))


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = cached_model_parser("Time an untrained GPT with latent attention: one short vector a token is cached.")
    parser.add_argument("--latent_dim", type=int_at_least(1), help="width of that vector (default: emb_dim / 8, at least 16)")
    return run_cached_model(parser, GPTModel, argv, cfg_options=("latent_dim",))


if __name__ == "__main__":
    sys.exit(main())
