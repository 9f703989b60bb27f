"""The GPT with gated DeltaNet: most layers replace the list of keys and values by a state of fixed size.

`GatedDeltaNet` writes each token into a small matrix by the delta rule and reads from it; `GatedMultiHeadAttention` is full
attention with a gate. A model mixes them, three to one by default. Left out: the short causal convolution over queries, keys
and values of the published layers, and their fused GPU kernels. `# new` marks what multi-head attention does not have.

Run it:  python gated_deltanet.py --deltanet_stride 3
"""

import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from gpt_with_kv_mha import CachedAttention, attend, continued, visible
from gpt_with_kv_mha import GPTModel as BaseModel
from previous_chapters import cached_model_parser, run_cached_model

CHUNK = 32  # tokens that the whole-sequence form computes at once


def l2norm(x: torch.Tensor, dim: int = -1, eps: float = 1e-6) -> torch.Tensor:
    """x divided by its length along `dim`; eps keeps a vector of zeros what it is."""
    return x * torch.rsqrt(x.square().sum(dim=dim, keepdim=True) + eps)


def delta_rule_steps(queries, keys, values, log_alpha, beta, state):
    """The delta rule, token by token: fade the state, correct what it says at the key, read at the query.

    queries, keys, values (b, num_heads, num_tokens, head_dim); log_alpha, beta (b, num_heads, num_tokens); state (b, num_heads,
    head_dim, head_dim), rows by key, columns by value. Returns (outputs (b, num_heads, num_tokens, head_dim), the new state).
    """
    outputs = []
    for t in range(keys.shape[2]):
        key, value, query = keys[:, :, t, :, None], values[:, :, t, None, :], queries[:, :, t, None, :]
        state = log_alpha[:, :, t, None, None].exp() * state  # (b, num_heads, head_dim, head_dim)
        remembered = key.transpose(2, 3) @ state  # (b, num_heads, 1, head_dim)
        delta = beta[:, :, t, None, None] * (value - remembered)  # (b, num_heads, 1, head_dim)
        state = state + key @ delta  # (b, num_heads, head_dim, head_dim)
        output = query @ state  # (b, num_heads, 1, head_dim)
        outputs.append(output)
    return torch.cat(outputs, dim=2), state


def delta_rule_chunk(queries, keys, values, log_alpha, beta, state):
    """The same as `delta_rule_steps` without a loop: all corrections at once, from one triangular system of equations.

    A later token sees what an earlier one wrote as attention sees values: weighted by key times key, and faded since then.
    """
    faded = log_alpha.cumsum(dim=-1)  # (b, num_heads, num_tokens)
    fading = faded[..., :, None] - faded[..., None, :]  # (b, num_heads, num_tokens, num_tokens)
    past = visible(keys.shape[2], keys.shape[2], device=keys.device)  # (num_tokens, num_tokens)
    fading = fading.masked_fill(~past, float("-inf")).exp()  # (b, num_heads, num_tokens, num_tokens)
    from_start = faded[..., None].exp()  # (b, num_heads, num_tokens, 1)

    # Each correction depends on those before it: deltas + mixing @ deltas = surprise, with the part of mixing below its diagonal.
    mixing = beta[..., None] * (keys @ keys.transpose(2, 3)) * fading  # (b, num_heads, num_tokens, num_tokens)
    surprise = beta[..., None] * (values - from_start * (keys @ state))  # (b, num_heads, num_tokens, head_dim)
    deltas = torch.linalg.solve_triangular(mixing, surprise, upper=False, unitriangular=True)  # (b, num_heads, num_tokens, head_dim)

    outputs = (queries @ keys.transpose(2, 3) * fading) @ deltas  # (b, num_heads, num_tokens, head_dim)
    outputs = outputs + from_start * (queries @ state)  # (b, num_heads, num_tokens, head_dim)
    until_end = fading[..., -1, :, None]  # (b, num_heads, num_tokens, 1)
    state = from_start[..., -1:, :] * state + keys.transpose(2, 3) @ (until_end * deltas)  # (b, num_heads, head_dim, head_dim)
    return outputs, state


def delta_rule(queries, keys, values, log_alpha, beta, state, chunk_size: int = CHUNK):
    """`delta_rule_chunk` for chunk_size tokens at a time, the state handed on; `delta_rule_steps` where that is one token.

    Computed in float32 or better, as the real kernels do; outputs and state come back in the number type of the keys.
    """
    rule = delta_rule_steps if min(keys.shape[2], chunk_size) == 1 else delta_rule_chunk
    exact = torch.promote_types(keys.dtype, torch.float32)
    outputs, dtype, state = [], keys.dtype, state.to(exact)
    pieces = (part.to(exact).split(chunk_size, dim=2) for part in (queries, keys, values, log_alpha, beta))
    for piece in zip(*pieces):
        output, state = rule(*piece, state)
        outputs.append(output)
    return torch.cat(outputs, dim=2).to(dtype), state.to(dtype)


class GatedMultiHeadAttention(CachedAttention):
    """Causal attention with a cache and a gate: (b, num_tokens, d_in) -> (b, num_tokens, d_out).

    ValueError for a d_out that num_heads does not divide, and for more than context_length tokens.
    """

    def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int, qkv_bias: bool = False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out {d_out} is not divisible by num_heads {num_heads}")
        self.d_out = d_out
        self.context_length = context_length
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_gate = nn.Linear(d_in, d_out, bias=False)  # new
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        b, num_tokens, _ = x.shape
        queries = self.W_query(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        keys = self.W_key(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        values = self.W_value(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        queries = queries.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        keys = keys.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        values = values.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        read_before = self.cache_k.shape[2] if use_cache and self.cache_k is not None else 0
        if read_before + num_tokens > self.context_length:
            raise ValueError(f"{read_before} cached + {num_tokens} new tokens do not fit into context_length {self.context_length}")
        if use_cache:
            keys = self.cache_k = continued(self.cache_k, keys)  # (b, num_heads, num_keys, head_dim)
            values = self.cache_v = continued(self.cache_v, values)  # (b, num_heads, num_keys, head_dim)
        allowed = visible(num_tokens, keys.shape[2], device=x.device)  # (num_tokens, num_keys)
        context_vec = attend(queries, keys, values, allowed, self.dropout)  # (b, num_heads, num_tokens, head_dim)
        context_vec = context_vec.transpose(1, 2).reshape(b, num_tokens, self.d_out)  # (b, num_tokens, d_out)
        context_vec = context_vec * torch.sigmoid(self.W_gate(x))  # (b, num_tokens, d_out), new
        return self.out_proj(context_vec)  # (b, num_tokens, d_out)


class StateMemory(nn.Module):
    """What stands in for a cache: a state that does not grow, and so cannot be cut back.

    state: None, or what was read since the last reset, (b, num_heads, head_dim, head_dim); tokens_read counts it.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("state", None, persistent=False)
        self.tokens_read = 0

    def reset_cache(self) -> None:
        self.state, self.tokens_read = None, 0

    def crop_cache(self, length: int) -> None:
        """Nothing to do for all tokens that were read; ValueError for fewer: what a token wrote cannot be taken out again."""
        if length != self.tokens_read:
            raise ValueError(f"cannot go back to {length} tokens: the state holds all {self.tokens_read} in one")

    def reorder_cache(self, rows: torch.Tensor) -> None:
        """Row i becomes the old row rows[i]."""
        self.state = self.state[rows]


class GatedDeltaNet(StateMemory):
    """Reads and writes a state of fixed size in each head: (b, num_tokens, d_in) -> (b, num_tokens, d_out).

    ValueError for a d_out that num_heads does not divide.
    """

    def __init__(self, d_in: int, d_out: int, dropout: float, num_heads: int, qkv_bias: bool = False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out {d_out} is not divisible by num_heads {num_heads}")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_gate = nn.Linear(d_in, d_out, bias=False)  # new
        self.W_beta = nn.Linear(d_in, num_heads, bias=False)  # new: how much of a correction is written
        self.W_alpha = nn.Linear(d_in, num_heads, bias=False)  # new: how much of the state is kept
        self.dt_bias = nn.Parameter(torch.ones(num_heads))
        self.A_log = nn.Parameter(torch.linspace(-5.0, 0.0, num_heads))  # new: heads begin with long and with short memories
        self.chunk_size = CHUNK
        self.norm_scale = nn.Parameter(torch.ones(self.head_dim))
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        b, num_tokens, _ = x.shape
        queries = self.W_query(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        keys = self.W_key(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        values = self.W_value(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        queries = l2norm(queries.transpose(1, 2)) / self.head_dim**0.5  # (b, num_heads, num_tokens, head_dim), new: length 1
        keys = l2norm(keys.transpose(1, 2))  # (b, num_heads, num_tokens, head_dim), new: length 1
        values = values.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        log_alpha = self.log_alpha(x).transpose(1, 2)  # (b, num_heads, num_tokens), new
        beta = torch.sigmoid(self.W_beta(x)).transpose(1, 2)  # (b, num_heads, num_tokens), new

        state = self.start(keys, use_cache)  # (b, num_heads, head_dim, head_dim)
        context_vec, state = delta_rule(queries, keys, values, log_alpha, beta, state, self.chunk_size)  # new: instead of attention
        if use_cache:
            self.state, self.tokens_read = state, self.tokens_read + num_tokens
        mean_square = context_vec.square().mean(dim=-1, keepdim=True)  # (b, num_heads, num_tokens, 1)
        context_vec = self.norm_scale * context_vec * torch.rsqrt(mean_square + 1e-6)  # (b, num_heads, num_tokens, head_dim), new
        context_vec = context_vec.transpose(1, 2).reshape(b, num_tokens, self.d_out)  # (b, num_tokens, d_out)
        context_vec = self.dropout(context_vec * F.silu(self.W_gate(x)))  # (b, num_tokens, d_out), new
        return self.out_proj(context_vec)  # (b, num_tokens, d_out)

    def log_alpha(self, x: torch.Tensor) -> torch.Tensor:
        """Logarithm of the share of the state that is kept, below 0: (b, num_tokens, d_in) -> (b, num_tokens, num_heads)."""
        return -self.A_log.exp() * F.softplus(self.W_alpha(x) + self.dt_bias)

    def start(self, keys: torch.Tensor, use_cache: bool) -> torch.Tensor:
        """The state before these keys (b, num_heads, num_tokens, head_dim): zeros for a new text; ValueError for another batch."""
        b = keys.shape[0]
        if not use_cache or self.state is None:
            return keys.new_zeros(b, self.num_heads, self.head_dim, self.head_dim)
        if self.state.shape[0] != b:
            raise ValueError(f"{b} rows cannot continue a state of {self.state.shape[0]} rows: reset the cache first")
        return self.state


def is_deltanet(layer: int, stride: int) -> bool:
    """Whether this layer has a state. stride K: K DeltaNet layers, then one full one, and again; 0: all full; negative: all DeltaNet."""
    return stride < 0 or layer % (stride + 1) < stride


class GPTModel(BaseModel):
    """The GPT of gpt_with_kv_mha.py with gated DeltaNet in most layers; `cfg` may have deltanet_stride, 3 by default."""

    def make_attention(self, cfg: dict, layer: int) -> nn.Module:
        width, rate, heads, qkv_bias = cfg["emb_dim"], cfg["drop_rate"], cfg["n_heads"], cfg["qkv_bias"]
        if is_deltanet(layer, cfg.get("deltanet_stride", 3)):
            return GatedDeltaNet(width, width, rate, heads, qkv_bias)
        return GatedMultiHeadAttention(width, width, cfg["context_length"], rate, heads, qkv_bias)


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = cached_model_parser("Time an untrained GPT with gated DeltaNet in some or all layers.")
    parser.add_argument("--deltanet_stride", type=int, default=3, help="DeltaNet layers before each full one; 0: all full, -1: none full")
    return run_cached_model(parser, GPTModel, argv, cfg_options=("deltanet_stride",))


if __name__ == "__main__":
    sys.exit(main())
