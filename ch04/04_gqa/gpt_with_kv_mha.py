"""Chapter 4's GPT with a KV cache in every attention layer, built so that another attention or feed-forward can take its place.

Same parameters, names and seeded weights as `GPTModel` of gpt.py, and the caches of chapter 4's folder 03. The masks are
made when they are needed, so the attention does not have to know how long a text may get. The folders 05 to 07 borrow this
model and override `make_attention` or `make_feed_forward`.

Run it:  python gpt_with_kv_mha.py        and to compare:  python gpt_with_kv_mha.py --no_kv_cache
"""

import sys

import torch
import torch.nn as nn
from previous_chapters import FeedForward, LayerNorm, cached_model_parser, check_room, check_token_ids, run_cached_model


def visible(num_tokens: int, num_keys: int, window: int | None = None, device=None) -> torch.Tensor:
    """True where one of the last num_tokens positions may look: (num_tokens, num_keys), rows by query, columns by key.

    A position sees itself and what was before it; with a window, no more than `window` tokens. Folder 04 of chapter 4.
    """
    key_positions = torch.arange(num_keys, device=device)  # (num_keys)
    query_positions = key_positions[num_keys - num_tokens :, None]  # (num_tokens, 1)
    distance = query_positions - key_positions  # (num_tokens, num_keys)
    return (distance >= 0) & (distance < (num_keys if window is None else window))  # (num_tokens, num_keys)


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor, dropout: nn.Module) -> torch.Tensor:
    """Scaled dot-product attention: queries (b, num_heads, rows, head_dim), keys and values (b, num_heads, num_keys, head_dim).

    allowed (rows, num_keys): where each query may look. Returns (b, num_heads, rows, head_dim). Folder 04 of chapter 4.
    """
    attn_scores = queries @ keys.transpose(2, 3)  # (b, num_heads, rows, num_keys)
    attn_scores = attn_scores.masked_fill(~allowed, float("-inf"))  # (b, num_heads, rows, num_keys)
    attn_weights = torch.softmax(attn_scores / queries.shape[-1] ** 0.5, dim=-1)  # (b, num_heads, rows, num_keys)
    return dropout(attn_weights) @ values  # (b, num_heads, rows, head_dim)


def continued(cached: torch.Tensor | None, new: torch.Tensor, dim: int = -2) -> torch.Tensor:
    """What the cache holds with the new tokens behind it; `dim` counts the tokens. Folder 04 of chapter 4.

    ValueError if the number of rows differs: then this is another text, and the cache should have been reset.
    """
    if cached is None:
        return new
    if cached.shape[0] != new.shape[0]:
        raise ValueError(f"{new.shape[0]} rows cannot continue a cache of {cached.shape[0]} rows: reset the cache first")
    return torch.cat([cached, new], dim=dim)


class CachedAttention(nn.Module):
    """What the attentions with a cache of keys and values share: to reset it, to cut it back, to exchange its rows.

    cache_k, cache_v: None, or what was read since the last reset, (b, key-value heads, tokens so far, head_dim); they follow
    the model to another device or number type and are not saved with it. Folder 04 of chapter 4.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("cache_k", None, persistent=False)
        self.register_buffer("cache_v", None, persistent=False)

    def reset_cache(self) -> None:
        self.cache_k, self.cache_v = None, None

    def crop_cache(self, length: int) -> None:
        """Forget all but the first `length` tokens, as when a text is taken back and continued in another way."""
        self.cache_k, self.cache_v = self.cache_k[:, :, :length].clone(), self.cache_v[:, :, :length].clone()

    def reorder_cache(self, rows: torch.Tensor) -> None:
        """Row i becomes the old row rows[i], as a beam search needs it."""
        self.cache_k, self.cache_v = self.cache_k[rows], self.cache_v[rows]


class MultiHeadAttention(CachedAttention):
    """Causal attention with a cache: (b, num_tokens, d_in) -> (b, num_tokens, d_out). Folder 04 of chapter 4.

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
        if use_cache:
            keys = self.cache_k = continued(self.cache_k, keys)  # (b, num_heads, num_keys, head_dim)
            values = self.cache_v = continued(self.cache_v, values)  # (b, num_heads, num_keys, head_dim)
        allowed = visible(num_tokens, keys.shape[2], device=x.device)  # (num_tokens, num_keys)
        context_vec = attend(queries, keys, values, allowed, self.dropout)  # (b, num_heads, num_tokens, head_dim)
        context_vec = context_vec.transpose(1, 2).reshape(b, num_tokens, self.d_out)  # (b, num_tokens, d_out)
        return self.out_proj(context_vec)  # (b, num_tokens, d_out)


class TransformerBlock(nn.Module):
    """Chapter 4's block around the attention and the feed-forward network that it is given. Folder 04 of chapter 4."""

    def __init__(self, cfg: dict, att: nn.Module, ff: nn.Module):
        super().__init__()
        self.att = att
        self.ff = ff
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), use_cache))  # (b, num_tokens, emb_dim)
        return x + self.drop_shortcut(self.ff(self.norm2(x)))  # (b, num_tokens, emb_dim)


class GPTModel(nn.Module):
    """Token ids (b, num_tokens) -> logits (b, num_tokens, vocab_size). Folder 04 of chapter 4.

    `cfg` as for chapter 4's model. current_pos: how many tokens the caches have read. ValueError for ids that are no batch
    or leave the vocabulary, and for a text longer than context_length.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.ModuleList()
        for layer in range(cfg["n_layers"]):
            att = self.make_attention(cfg, layer)  # the order of these two lines is the order of the random draws
            ff = self.make_feed_forward(cfg)
            self.trf_blocks.append(TransformerBlock(cfg, att, ff))
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        self.current_pos = 0

    def make_attention(self, cfg: dict, layer: int) -> nn.Module:
        """The attention of one layer; other folders override this."""
        return MultiHeadAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["drop_rate"], cfg["n_heads"], cfg["qkv_bias"])

    def make_feed_forward(self, cfg: dict) -> nn.Module:
        """The feed-forward network of one layer; other folders override this."""
        return FeedForward(cfg)

    def reset_kv_cache(self) -> None:
        """Forget the text read so far; the next token is the first of a new one."""
        for block in self.trf_blocks:
            block.att.reset_cache()
        self.current_pos = 0

    def crop_kv_cache(self, length: int) -> None:
        """Go back to the first `length` tokens of the text; ValueError if fewer were read."""
        if not 0 <= length <= self.current_pos:
            raise ValueError(f"cannot crop a cache of {self.current_pos} tokens to {length}")
        if length == 0:
            return self.reset_kv_cache()
        for block in self.trf_blocks:
            block.att.crop_cache(length)
        self.current_pos = length

    def reorder_kv_cache(self, rows: torch.Tensor) -> None:
        """Row i of every cache becomes the old row rows[i]; rows may repeat or be left out. Nothing to do for an empty cache."""
        for block in self.trf_blocks if self.current_pos else ():
            block.att.reorder_cache(rows)

    def forward(self, in_idx: torch.Tensor, use_cache: bool = False, only_last: bool = False) -> torch.Tensor:
        """use_cache: in_idx continues the text read since the last reset. only_last: logits of the last token alone."""
        start = self.current_pos if use_cache else 0
        check_token_ids(in_idx, self.cfg["vocab_size"], self.cfg["context_length"])
        check_room(start, in_idx.shape[1], self.cfg["context_length"])
        positions = torch.arange(start, start + in_idx.shape[1], device=in_idx.device)  # (num_tokens)
        x = self.tok_emb(in_idx) + self.pos_emb(positions)  # (b, num_tokens, emb_dim)
        x = self.drop_emb(x)  # (b, num_tokens, emb_dim)
        for block in self.trf_blocks:
            x = block(x, use_cache)  # (b, num_tokens, emb_dim)
        if use_cache:
            self.current_pos = start + in_idx.shape[1]
        if only_last:
            x = x[:, -1:]  # the head is the largest matrix, and generation needs one row of its result
        return self.out_head(self.final_norm(x))


def cache_bytes(model: nn.Module) -> int:
    """Bytes of memory behind all cache tensors of a model, measured. Folder 04 of chapter 4."""
    caches = [buffer for name, buffer in model.named_buffers() if "cache" in name]
    return sum(cache.untyped_storage().nbytes() for cache in caches)


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = cached_model_parser("Time an untrained GPT with multi-head attention: every head has keys and values of its own.")
    return run_cached_model(parser, GPTModel, argv)


if __name__ == "__main__":
    sys.exit(main())
