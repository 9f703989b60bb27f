"""Chapter 4's GPT with a KV cache, in its clearest form: the keys and values of each layer grow by concatenation.

Same parameters, names and seeded weights as `GPTModel` of gpt.py; `# new` and `# changed` mark what differs. The faster
form is gpt_with_kv_cache_optimized.py.

Run it:  python gpt_with_kv_cache.py        and to compare:  python gpt_with_kv_cache.py --no_kv_cache
"""

import sys

import torch
import torch.nn as nn
from cached_script import cached_model_parser, run_cached_model
from kv_cache import check_room
from previous_chapters import FeedForward, LayerNorm, check_token_ids
from previous_chapters import MultiHeadAttention as PlainAttention


def continued(cached: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
    """The cached keys or values with the new ones behind them, both (b, their tokens, num_heads, head_dim). Section 2.

    ValueError if the number of rows differs: then this is another text, and the cache should have been reset.
    """
    if cached is None:
        return new
    if cached.shape[0] != new.shape[0]:
        raise ValueError(f"{new.shape[0]} rows cannot continue a cache of {cached.shape[0]} rows: reset the cache first")
    return torch.cat([cached, new], dim=1)


class MultiHeadAttention(PlainAttention):
    """Chapter 3's attention, which now can remember: (b, num_tokens, d_in) -> (b, num_tokens, d_out). Section 2.

    cache_k, cache_v: None, or what was read since the last reset, (b, tokens so far, num_heads, head_dim).
    """

    def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int, qkv_bias: bool = False):
        super().__init__(d_in, d_out, context_length, dropout, num_heads, qkv_bias)
        self.register_buffer("cache_k", None, persistent=False)  # new: follows .to(device), is not saved
        self.register_buffer("cache_v", None, persistent=False)  # new
        self.ptr_current_pos = 0  # new: how many tokens the cache holds

    def reset_cache(self) -> None:  # new
        self.cache_k, self.cache_v = None, None
        self.ptr_current_pos = 0

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        b, num_tokens, _ = x.shape
        queries = self.W_query(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        keys = self.W_key(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        values = self.W_value(x).view(b, num_tokens, self.num_heads, self.head_dim)  # (b, num_tokens, num_heads, head_dim)
        if use_cache:  # new: from here on, keys and values are those of the whole text
            keys = self.cache_k = continued(self.cache_k, keys)  # (b, num_keys, num_heads, head_dim)
            values = self.cache_v = continued(self.cache_v, values)  # (b, num_keys, num_heads, head_dim)
            self.ptr_current_pos = keys.shape[1]
        num_keys = keys.shape[1]

        queries = queries.transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        keys = keys.transpose(1, 2)  # (b, num_heads, num_keys, head_dim)
        values = values.transpose(1, 2)  # (b, num_heads, num_keys, head_dim)
        attn_scores = queries @ keys.transpose(2, 3)  # (b, num_heads, num_tokens, num_keys)
        blocked = self.mask[num_keys - num_tokens : num_keys, :num_keys]  # (num_tokens, num_keys), changed: the last rows
        attn_scores = attn_scores.masked_fill(blocked, float("-inf"))
        attn_weights = torch.softmax(attn_scores / self.head_dim**0.5, dim=-1)  # (b, num_heads, num_tokens, num_keys)

        context_vec = self.dropout(attn_weights) @ values  # (b, num_heads, num_tokens, head_dim)
        context_vec = context_vec.transpose(1, 2).reshape(b, num_tokens, self.d_out)  # (b, num_tokens, d_out)
        return self.out_proj(context_vec)  # (b, num_tokens, d_out)


class TransformerBlock(nn.Module):
    """Chapter 4's block; it only hands use_cache on to its attention. Section 2."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            dropout=cfg["drop_rate"],
            num_heads=cfg["n_heads"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), use_cache))  # changed: use_cache
        return x + self.drop_shortcut(self.ff(self.norm2(x)))  # (b, num_tokens, emb_dim)


class GPTModel(nn.Module):
    """Token ids (b, num_tokens) -> logits (b, num_tokens, vocab_size), with a cache of what was read before. Section 2.

    `cfg` as for chapter 4's model. current_pos: how many tokens the caches hold. ValueError for ids that are no batch or
    leave the vocabulary, and for a text longer than context_length.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg["n_layers"])])  # changed: Sequential takes one argument
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        self.current_pos = 0  # new

    def reset_kv_cache(self) -> None:  # new
        """Forget the text read so far; the next token is the first of a new one."""
        for block in self.trf_blocks:
            block.att.reset_cache()
        self.current_pos = 0

    def forward(self, in_idx: torch.Tensor, use_cache: bool = False, only_last: bool = False) -> torch.Tensor:
        """use_cache: in_idx continues the text read since the last reset. only_last: logits of the last token alone."""
        start = self.current_pos if use_cache else 0  # new: where the first token of in_idx stands in the text
        check_token_ids(in_idx, self.cfg["vocab_size"], self.cfg["context_length"])
        check_room(start, in_idx.shape[1], self.cfg["context_length"])
        positions = torch.arange(start, start + in_idx.shape[1], device=in_idx.device)  # (num_tokens)
        x = self.tok_emb(in_idx) + self.pos_emb(positions)  # (b, num_tokens, emb_dim)
        x = self.drop_emb(x)  # (b, num_tokens, emb_dim)
        for block in self.trf_blocks:
            x = block(x, use_cache)  # (b, num_tokens, emb_dim)
        if use_cache:
            self.current_pos = start + in_idx.shape[1]
        if only_last:  # new: the head is the largest matrix, and generation needs one row of its result
            x = x[:, -1:]
        return self.out_head(self.final_norm(x))


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = cached_model_parser("Time an untrained GPT that generates with a KV cache which grows by concatenation.")
    return run_cached_model(parser, GPTModel, argv)


if __name__ == "__main__":
    sys.exit(main())
