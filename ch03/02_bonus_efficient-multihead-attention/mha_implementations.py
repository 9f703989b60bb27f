"""Nine ways to compute the causal multi-head attention of chapter 3; each gives the same numbers from the same weights.

It adds to chapter 3 the forms that one meets in other people's code: one matrix for queries, keys and values, einsum,
PyTorch's fused attention with and without a mask, `nn.MultiheadAttention`, and FlexAttention. `benchmark_mha.py` times them.

Use it:  from mha_implementations import build_variants
"""

import math
import re

import torch
import torch.nn as nn
import torch.nn.functional as F
from previous_chapters import MultiHeadAttention, MultiHeadAttentionWrapper, check_attention_input

MIN_TORCH_VERSION = "2.5.0"  # the first with torch.nn.attention.flex_attention


def head_dim_of(d_out: int, num_heads: int) -> int:
    """Width of one head; ValueError if the heads do not divide d_out. Section 3."""
    if d_out % num_heads != 0:
        raise ValueError(f"d_out {d_out} is not divisible by num_heads {num_heads}")
    return d_out // num_heads


class Ch03_MHA_Wrapper(MultiHeadAttentionWrapper):
    """Separate heads, each d_out wide, and an output projection: (b, num_tokens, d_in) -> (b, num_tokens, num_heads * d_out).

    Section 1.
    """

    def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int, qkv_bias: bool = False):
        super().__init__(d_in, d_out, context_length, dropout, num_heads, qkv_bias)
        self.out_proj = nn.Linear(num_heads * d_out, num_heads * d_out)  # new: chapter 3's wrapper has none

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        context_vec = super().forward(x)  # (b, num_tokens, width) width: num_heads * d_out
        return self.out_proj(context_vec)  # (b, num_tokens, width)


class Ch03_MHA(MultiHeadAttention):
    """Chapter 3's class, unchanged: (b, num_tokens, d_in) -> (b, num_tokens, d_out). Section 2."""


class MultiHeadAttentionCombinedQKV(nn.Module):
    """One linear layer for queries, keys and values: (b, num_tokens, d_in) -> (b, num_tokens, d_out).

    Raises ValueError if d_out is not divisible by num_heads, and for inputs that do not fit. Section 3.
    """

    def __init__(self, d_in: int, d_out: int, num_heads: int, context_length: int, dropout: float = 0.0, qkv_bias: bool = False):
        super().__init__()
        self.d_in, self.d_out, self.context_length = d_in, d_out, context_length
        self.num_heads, self.head_dim = num_heads, head_dim_of(d_out, num_heads)
        self.qkv = nn.Linear(d_in, 3 * d_out, bias=qkv_bias)  # changed: one layer for three
        self.proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        blocked = torch.ones(context_length, context_length, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("mask", blocked, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_attention_input(x, self.d_in, self.context_length)
        b, num_tokens, _ = x.shape
        qkv = self.qkv(x)  # (b, num_tokens, 3 * d_out)
        qkv = qkv.view(b, num_tokens, 3, self.num_heads, self.head_dim)  # (b, num_tokens, 3, num_heads, head_dim)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, b, num_heads, num_tokens, head_dim)
        queries, keys, values = qkv.unbind(0)  # (b, num_heads, num_tokens, head_dim)
        context_vec = self.attend(queries, keys, values)  # (b, num_heads, num_tokens, head_dim)
        context_vec = context_vec.transpose(1, 2)  # (b, num_tokens, num_heads, head_dim)
        context_vec = context_vec.flatten(2)  # (b, num_tokens, d_out)
        return self.proj(context_vec)  # (b, num_tokens, d_out)

    def attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        num_tokens = queries.shape[2]
        attn_scores = queries @ keys.transpose(2, 3)  # (b, num_heads, num_tokens, num_tokens)
        blocked = self.mask[:num_tokens, :num_tokens]  # (num_tokens, num_tokens)
        attn_scores = attn_scores.masked_fill(blocked, float("-inf"))  # (b, num_heads, num_tokens, num_tokens)
        attn_weights = torch.softmax(attn_scores / self.head_dim**0.5, dim=-1)  # (b, num_heads, num_tokens, num_tokens)
        return self.dropout(attn_weights) @ values  # (b, num_heads, num_tokens, head_dim)


def project_to_heads(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, num_heads: int) -> torch.Tensor:
    """(b, num_tokens, d_in) times (d_in, d_out), plus bias (d_out), cut into heads of head_dim. Section 4."""
    by_head = weight.unflatten(1, (num_heads, -1))  # (d_in, num_heads, head_dim)
    projected = torch.einsum("bti,ihd->bhtd", x, by_head)  # (b, num_heads, num_tokens, head_dim)
    if bias is None:
        return projected
    return projected + bias.view(num_heads, 1, -1)  # (b, num_heads, num_tokens, head_dim)


class MHAEinsum(nn.Module):
    """Every product written as a sum over named axes: (b, num_tokens, d_in) -> (b, num_tokens, d_out).

    Raises ValueError if d_out is not divisible by num_heads, and for inputs that do not fit. Section 4.
    """

    def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int, qkv_bias: bool = False):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim_of(d_out, num_heads)
        self.W_query = nn.Parameter(torch.empty(d_in, d_out))
        self.W_key = nn.Parameter(torch.empty(d_in, d_out))
        self.W_value = nn.Parameter(torch.empty(d_in, d_out))
        self.bias_q = nn.Parameter(torch.empty(d_out)) if qkv_bias else None
        self.bias_k = nn.Parameter(torch.empty(d_out)) if qkv_bias else None
        self.bias_v = nn.Parameter(torch.empty(d_out)) if qkv_bias else None
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        blocked = torch.ones(context_length, context_length, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("mask", blocked, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights as nn.Linear would: a range that shrinks with the number of inputs, d_in."""
        for weight in (self.W_query, self.W_key, self.W_value):
            nn.init.kaiming_uniform_(weight.T, a=math.sqrt(5))  # .T: nn.init counts the columns as inputs
        bound = 1 / math.sqrt(self.W_query.shape[0])
        for bias in (self.bias_q, self.bias_k, self.bias_v):
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_attention_input(x, self.W_query.shape[0], self.mask.shape[0])
        num_tokens = x.shape[1]
        queries = project_to_heads(x, self.W_query, self.bias_q, self.num_heads)  # (b, num_heads, num_tokens, head_dim)
        keys = project_to_heads(x, self.W_key, self.bias_k, self.num_heads)  # (b, num_heads, num_tokens, head_dim)
        values = project_to_heads(x, self.W_value, self.bias_v, self.num_heads)  # (b, num_heads, num_tokens, head_dim)
        attn_scores = torch.einsum("bhqd,bhkd->bhqk", queries, keys)  # (b, num_heads, num_tokens, num_tokens)
        blocked = self.mask[:num_tokens, :num_tokens]  # (num_tokens, num_tokens)
        attn_scores = attn_scores.masked_fill(blocked, float("-inf"))  # (b, num_heads, num_tokens, num_tokens)
        attn_weights = torch.softmax(attn_scores / self.head_dim**0.5, dim=-1)  # (b, num_heads, num_tokens, num_tokens)
        attn_weights = self.dropout(attn_weights)  # (b, num_heads, num_tokens, num_tokens)
        context_vec = torch.einsum("bhqk,bhkd->bqhd", attn_weights, values)  # (b, num_tokens, num_heads, head_dim)
        return self.out_proj(context_vec.flatten(2))  # (b, num_tokens, d_out)


class MHAPyTorchScaledDotProduct(MultiHeadAttentionCombinedQKV):
    """The fused call, which never stores the table of weights: (b, num_tokens, d_in) -> (b, num_tokens, d_out). Section 5."""

    def __init__(self, d_in: int, d_out: int, num_heads: int, context_length: int, dropout: float = 0.0, qkv_bias: bool = False):
        super().__init__(d_in, d_out, num_heads, context_length, dropout, qkv_bias)
        self.mask = None  # changed: is_causal says it all

    def attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        rate = self.dropout.p if self.training else 0.0  # the function does not know the mode of the module
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=rate, is_causal=True)


class MHAPyTorchSDPAWithoutFlash(MultiHeadAttentionCombinedQKV):
    """The fused call with an explicit mask: (b, num_tokens, d_in) -> (b, num_tokens, d_out). Section 6."""

    def __init__(self, d_in: int, d_out: int, num_heads: int, context_length: int, dropout: float = 0.0, qkv_bias: bool = False):
        super().__init__(d_in, d_out, num_heads, context_length, dropout, qkv_bias)
        self.register_buffer("allowed", ~self.mask, persistent=False)  # changed: here True means "may attend"
        self.mask = None

    def attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        rate, num_tokens = self.dropout.p if self.training else 0.0, queries.shape[2]
        allowed = self.allowed[:num_tokens, :num_tokens]  # (num_tokens, num_tokens)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, dropout_p=rate)


class MHAPyTorchClass(nn.Module):
    """`nn.MultiheadAttention` in the course's clothes: (b, num_tokens, d_in) -> (b, num_tokens, d_out).

    Raises ValueError unless d_in equals d_out: the PyTorch class has one width. Sections 7 and 8.
    """

    def __init__(
        self, d_in: int, d_out: int, num_heads: int, context_length: int,
        dropout: float = 0.0, qkv_bias: bool = False, need_weights: bool = True,
    ):  # fmt: skip
        super().__init__()
        if d_in != d_out:
            raise ValueError(f"nn.MultiheadAttention has one width, but d_in is {d_in} and d_out {d_out}")
        head_dim_of(d_out, num_heads)
        self.need_weights = need_weights
        self.multihead_attn = nn.MultiheadAttention(d_out, num_heads, dropout=dropout, bias=qkv_bias, batch_first=True)
        if not qkv_bias:  # PyTorch's flag decides about both biases; the course's output projection always has one
            self.multihead_attn.out_proj.bias = nn.Parameter(torch.zeros(d_out))
        blocked = torch.ones(context_length, context_length, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("mask", blocked, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_attention_input(x, self.multihead_attn.embed_dim, self.mask.shape[0])
        num_tokens = x.shape[1]
        blocked = self.mask[:num_tokens, :num_tokens]  # (num_tokens, num_tokens)
        context_vec, _ = self.multihead_attn(x, x, x, attn_mask=blocked, need_weights=self.need_weights, is_causal=True)
        return context_vec  # (b, num_tokens, d_out)


def normalize_version(version: str) -> tuple[int, ...]:
    """Numbers that can be compared: "2.13.0+cpu" -> (2, 13, 0). ValueError for a text that is no version. Section 9."""
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if not numbers:
        raise ValueError(f"{version!r} is not a version such as {MIN_TORCH_VERSION}")
    return tuple(int(number or 0) for number in numbers.groups())


def causal(b, h, q_idx, kv_idx):
    """The mask as a rule: may the query at q_idx see the key at kv_idx? Batch and head do not matter. Section 9."""
    return q_idx >= kv_idx


class MHAPyTorchFlexAttention(MultiHeadAttentionCombinedQKV):
    """FlexAttention, which is given the mask as a function: (b, num_tokens, d_in) -> (b, num_tokens, d_out).

    The table of blocks is built at the first call for a length and kept. On a CPU it has no backward pass: call it under
    torch.no_grad(). Raises ValueError for dropout, which FlexAttention does not know. Section 9.
    """

    def __init__(self, d_in: int, d_out: int, num_heads: int, context_length: int, dropout: float = 0.0, qkv_bias: bool = False):
        super().__init__(d_in, d_out, num_heads, context_length, dropout, qkv_bias)
        if dropout:
            raise ValueError(f"FlexAttention has no dropout, got {dropout}")
        self.mask = None
        self.block_masks = {}  # for each length and device, the blocks to compute

    def attend(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        key = (queries.shape[2], str(queries.device))
        if key not in self.block_masks:
            self.block_masks[key] = create_block_mask(causal, None, None, key[0], key[0], device=key[1])
        return flex_attention(queries, keys, values, block_mask=self.block_masks[key])


VARIANTS = {  # name for --only -> title
    "wrapper": "1 stacked heads",
    "chapter3": "2 chapter 3",
    "combined": "3 combined QKV",
    "einsum": "4 einsum",
    "sdpa": "5 SDPA, is_causal",
    "sdpa_mask": "6 SDPA, mask",
    "mha": "7 nn.MHA, weights",
    "mha_no_weights": "8 nn.MHA, no weights",
    "flex": "9 FlexAttention",
}


def build_variants(d_in: int, d_out: int, context_length: int, num_heads: int, qkv_bias: bool = False) -> dict[str, nn.Module]:
    """Name -> module, all with the weights of one seeded `Ch03_MHA`; 7 and 8 only for d_in == d_out, 9 where PyTorch has it.

    Section 10.
    """
    sizes, fused = (context_length, 0.0, num_heads, qkv_bias), (num_heads, context_length, 0.0, qkv_bias)
    variants = {"chapter3": Ch03_MHA(d_in, d_out, *sizes)}
    variants["wrapper"] = Ch03_MHA_Wrapper(d_in, d_out // num_heads, *sizes)
    variants["einsum"] = MHAEinsum(d_in, d_out, *sizes)
    for name, variant in (
        ("combined", MultiHeadAttentionCombinedQKV), ("sdpa", MHAPyTorchScaledDotProduct), ("sdpa_mask", MHAPyTorchSDPAWithoutFlash),
    ):  # fmt: skip
        variants[name] = variant(d_in, d_out, *fused)
    if d_in == d_out:
        variants["mha"] = MHAPyTorchClass(d_in, d_out, *fused, need_weights=True)
        variants["mha_no_weights"] = MHAPyTorchClass(d_in, d_out, *fused, need_weights=False)
    if normalize_version(torch.__version__) >= normalize_version(MIN_TORCH_VERSION):
        variants["flex"] = MHAPyTorchFlexAttention(d_in, d_out, *fused)
    for variant in variants.values():
        copy_weights(variants["chapter3"], variant)
    return {name: variants[name] for name in VARIANTS if name in variants}


@torch.no_grad()
def copy_weights(source: Ch03_MHA, target: nn.Module) -> None:
    """Give any of the nine variants the weights and biases of `source`. Section 10."""
    layers = (source.W_query, source.W_key, source.W_value)
    weight = torch.cat([layer.weight for layer in layers])  # (width, d_in) width: 3 * d_out
    bias = torch.cat([layer.bias for layer in layers]) if layers[0].bias is not None else None
    if isinstance(target, Ch03_MHA):
        target.load_state_dict(source.state_dict())
        return
    if isinstance(target, MHAPyTorchClass):
        pairs, out = (
            [(target.multihead_attn.in_proj_weight, weight), (target.multihead_attn.in_proj_bias, bias)],
            target.multihead_attn.out_proj,
        )
    elif isinstance(target, MultiHeadAttentionCombinedQKV):
        pairs, out = [(target.qkv.weight, weight), (target.qkv.bias, bias)], target.proj
    elif isinstance(target, MHAEinsum):
        pairs, out = list(zip((target.W_query, target.W_key, target.W_value), weight.T.chunk(3, dim=1))), target.out_proj
        pairs += zip((target.bias_q, target.bias_k, target.bias_v), bias.chunk(3) if bias is not None else ())
    else:
        pairs, out, heads = [], target.out_proj, target.heads
        for name, layer in zip(("W_query", "W_key", "W_value"), layers):
            pairs += [(getattr(head, name).weight, rows) for head, rows in zip(heads, layer.weight.chunk(len(heads)))]
            if bias is not None:
                pairs += [(getattr(head, name).bias, part) for head, part in zip(heads, layer.bias.chunk(len(heads)))]
    for ours, theirs in [*pairs, (out.weight, source.out_proj.weight), (out.bias, source.out_proj.bias)]:
        if theirs is not None:
            ours.copy_(theirs)
