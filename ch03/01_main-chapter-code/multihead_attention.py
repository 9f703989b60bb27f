"""Chapter 3 in one file: self-attention from a plain softmax to causal multi-head attention.

It adds to chapter 2's loader the part of a GPT that lets tokens look at each other: `SelfAttention_v1` and `_v2` (one
sentence, no mask), `CausalAttention` (one head that cannot look ahead), `MultiHeadAttentionWrapper` (several heads side
by side) and `MultiHeadAttention` (all heads in one pass), which is the class that every later chapter uses.

Run it:  python multihead_attention.py --d_in 768 --d_out 768 --num_heads 12
"""

import argparse
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from previous_chapters import OneLineParser, int_at_least, pick_device


def softmax_naive(x: torch.Tensor) -> torch.Tensor:
    """Softmax over dimension 0, as the formula says; overflows for large x. Chapter 3, section 3.3.1."""
    return torch.exp(x) / torch.exp(x).sum(dim=0)


class SelfAttention_v1(nn.Module):
    """Self-attention of one sentence with bare parameters: (num_tokens, d_in) -> (num_tokens, d_out). Section 3.4.2."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = x @ self.W_query  # (num_tokens, d_out)
        keys = x @ self.W_key  # (num_tokens, d_out)
        values = x @ self.W_value  # (num_tokens, d_out)
        attn_scores = queries @ keys.T  # (num_tokens, num_tokens)
        attn_weights = torch.softmax(attn_scores / keys.shape[-1] ** 0.5, dim=-1)  # (num_tokens, num_tokens)
        context_vec = attn_weights @ values  # (num_tokens, d_out)
        return context_vec


class SelfAttention_v2(nn.Module):
    """The same with linear layers, whose initialization suits training: (num_tokens, d_in) -> (num_tokens, d_out).

    Chapter 3, section 3.4.2.
    """

    def __init__(self, d_in: int, d_out: int, qkv_bias: bool = False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = self.W_query(x)  # (num_tokens, d_out)
        keys = self.W_key(x)  # (num_tokens, d_out)
        values = self.W_value(x)  # (num_tokens, d_out)
        attn_scores = queries @ keys.T  # (num_tokens, num_tokens)
        attn_weights = torch.softmax(attn_scores / keys.shape[-1] ** 0.5, dim=-1)  # (num_tokens, num_tokens)
        context_vec = attn_weights @ values  # (num_tokens, d_out)
        return context_vec


class CausalAttention(nn.Module):
    """One attention head that cannot look ahead: (b, num_tokens, d_in) -> (b, num_tokens, d_out).

    Raises ValueError for inputs longer than context_length or of another width than d_in. Chapter 3, section 3.5.3.
    """

    def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float, qkv_bias: bool = False):
        super().__init__()
        self.d_out = d_out
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        # True above the diagonal: the keys a query must not see. Rebuilt, not saved: hence persistent=False.
        blocked = torch.ones(context_length, context_length, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("mask", blocked, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_attention_input(x, self.W_query.in_features, self.mask.shape[0])
        num_tokens = x.shape[1]
        queries = self.W_query(x)  # (b, num_tokens, d_out)
        keys = self.W_key(x)  # (b, num_tokens, d_out)
        values = self.W_value(x)  # (b, num_tokens, d_out)

        attn_scores = queries @ keys.transpose(1, 2)  # (b, num_tokens, num_tokens)
        blocked = self.mask[:num_tokens, :num_tokens]  # (num_tokens, num_tokens)
        attn_scores = attn_scores.masked_fill(blocked, float("-inf"))  # (b, num_tokens, num_tokens)
        attn_weights = torch.softmax(attn_scores / self.d_out**0.5, dim=-1)  # (b, num_tokens, num_tokens)
        attn_weights = self.dropout(attn_weights)  # (b, num_tokens, num_tokens)
        context_vec = attn_weights @ values  # (b, num_tokens, d_out)
        return context_vec


class MultiHeadAttentionWrapper(nn.Module):
    """`num_heads` separate heads, run one after the other: (b, num_tokens, d_in) -> (b, num_tokens, num_heads * d_out).

    Here d_out is the width of one head, and there is no output projection. Chapter 3, section 3.6.1.
    """

    def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int, qkv_bias: bool = False):
        super().__init__()
        self.heads = nn.ModuleList([CausalAttention(d_in, d_out, context_length, dropout, qkv_bias) for _ in range(num_heads)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        context_vecs = [head(x) for head in self.heads]  # a list with one tensor for each head
        return torch.cat(context_vecs, dim=-1)  # (b, num_tokens, width) width: num_heads * d_out


class MultiHeadAttention(nn.Module):
    """Causal attention with `num_heads` heads in one pass: (b, num_tokens, d_in) -> (b, num_tokens, d_out).

    Here d_out is the total width; each head works on head_dim = d_out / num_heads of it. Raises ValueError if that is
    not whole, and for inputs longer than context_length or of another width than d_in. Chapter 3, section 3.6.2.
    """

    def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int, qkv_bias: bool = False):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out {d_out} is not divisible by num_heads {num_heads}")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)  # mixes what the heads found
        self.dropout = nn.Dropout(dropout)
        blocked = torch.ones(context_length, context_length, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("mask", blocked, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_attention_input(x, self.W_query.in_features, self.mask.shape[0])
        b, num_tokens, _ = x.shape
        queries = self.W_query(x)  # (b, num_tokens, d_out)
        keys = self.W_key(x)  # (b, num_tokens, d_out)
        values = self.W_value(x)  # (b, num_tokens, d_out)

        # Split: cut the columns into heads, then move the heads to the front.
        queries = queries.view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        keys = keys.view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        values = values.view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        queries = queries.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        keys = keys.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        values = values.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)

        # Scores, weights, context vectors: all heads at once.
        attn_scores = queries @ keys.transpose(2, 3)  # (b, num_heads, num_tokens, num_tokens)
        blocked = self.mask[:num_tokens, :num_tokens]  # (num_tokens, num_tokens)
        attn_scores = attn_scores.masked_fill(blocked, float("-inf"))  # (b, num_heads, num_tokens, num_tokens)
        attn_weights = torch.softmax(attn_scores / self.head_dim**0.5, dim=-1)  # (b, num_heads, num_tokens, num_tokens)
        attn_weights = self.dropout(attn_weights)  # (b, num_heads, num_tokens, num_tokens)
        context_vec = attn_weights @ values  # (b, num_heads, num_tokens, head_dim)

        # Merge: the way back, then let the output projection mix the heads.
        context_vec = context_vec.transpose(1, 2)  # (b, num_tokens, num_heads, head_dim)
        context_vec = context_vec.reshape(b, num_tokens, self.d_out)  # (b, num_tokens, d_out)
        return self.out_proj(context_vec)  # (b, num_tokens, d_out)


def check_attention_input(x: torch.Tensor, d_in: int, context_length: int) -> None:
    """Raise ValueError, naming both numbers, unless x is (b, num_tokens <= context_length, d_in). Section 3.5.3."""
    if x.dim() != 3 or x.shape[-1] != d_in:
        raise ValueError(f"expected an input of shape (b, num_tokens, {d_in}), got {tuple(x.shape)}")
    if x.shape[1] > context_length:
        raise ValueError(f"{x.shape[1]} tokens are more than the context_length {context_length}")


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable elements of a model. Chapter 3, section 3.8.8."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@torch.no_grad()
def difference_from_sdpa(attention: MultiHeadAttention, x: torch.Tensor) -> float:
    """Return the largest difference between `attention(x)` and PyTorch's fused attention. Section 3.7.1."""
    b, num_tokens, _ = x.shape
    by_head = (b, num_tokens, attention.num_heads, attention.head_dim)
    queries = attention.W_query(x).view(by_head).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
    keys = attention.W_key(x).view(by_head).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
    values = attention.W_value(x).view(by_head).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
    fused = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)  # (b, num_heads, num_tokens, head_dim)
    fused = attention.out_proj(fused.transpose(1, 2).reshape(b, num_tokens, attention.d_out))  # (b, num_tokens, d_out)
    return (attention(x) - fused).abs().max().item()


def dropout_rate(text: str) -> float:
    """argparse type for a rate in [0, 1)."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{value} is outside the allowed range [0, 1)")
    return value


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Run multi-head attention on random inputs and compare it with PyTorch's fused attention.")
    parser.add_argument("--batch_size", type=int_at_least(1), default=8, help="sequences")
    parser.add_argument("--context_length", type=int_at_least(1), default=1024, help="tokens per sequence")
    parser.add_argument("--d_in", type=int_at_least(1), default=768, help="width of the input vectors")
    parser.add_argument("--d_out", type=int_at_least(1), default=768, help="total width of the output vectors")
    parser.add_argument("--num_heads", type=int_at_least(1), default=12, help="attention heads")
    parser.add_argument("--dropout", type=dropout_rate, default=0.0, help="dropout on the attention weights (training only)")
    parser.add_argument("--qkv_bias", action="store_true", help="biases in the query, key and value projections")
    parser.add_argument("--seed", type=int, default=123, help="random seed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    try:
        attention = MultiHeadAttention(args.d_in, args.d_out, args.context_length, args.dropout, args.num_heads, args.qkv_bias)
        device = pick_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    attention.eval().to(device)
    x = torch.randn(args.batch_size, args.context_length, args.d_in).to(device)  # (b, num_tokens, d_in)
    with torch.no_grad():
        print(f"input {tuple(x.shape)} -> output {tuple(attention(x).shape)}")
    print(f"parameters: {count_parameters(attention):,}")
    print(f"largest difference from F.scaled_dot_product_attention: {difference_from_sdpa(attention, x):.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
