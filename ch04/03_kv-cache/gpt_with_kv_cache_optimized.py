"""The GPT with a KV cache made fast: room reserved once, a window of the last keys, fused attention, norms and GELU.

Same parameters, names and seeded weights as gpt_with_kv_cache.py. With kv_window_size smaller than the text, each token
attends to itself and the kv_window_size - 1 tokens before it (sliding-window attention), however the text is cut into calls.

Run it:  python gpt_with_kv_cache_optimized.py --kv_window_size 64
"""

import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from cached_script import cached_model_parser, run_cached_model
from kv_cache import check_room
from previous_chapters import FeedForward, LayerNorm, check_token_ids, int_at_least
from previous_chapters import MultiHeadAttention as PlainAttention


class FusedLayerNorm(LayerNorm):
    """Chapter 4's layer norm in one call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


def store(room: torch.Tensor, used: int, new: torch.Tensor) -> torch.Tensor:
    """Put new keys or values, (b, num_heads, num_tokens, head_dim), behind the `used` ones in room, (b, num_heads, window, head_dim).

    Returns all that the new tokens may see: their own and at most window - 1 before each of them. Section 5.
    """
    window, total = room.shape[2], used + new.shape[2]
    if total <= window:
        room[:, :, used:total] = new
        return room[:, :, :total]
    first = max(0, used - (window - 1))  # the oldest that the first new token still sees
    visible = torch.cat([room[:, :, first:used], new], dim=2)
    room.copy_(visible[:, :, -window:])  # all move to the left, the oldest fall out
    return visible


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int, dropout: float = 0.0) -> torch.Tensor:
    """Attention of the last num_tokens positions over num_keys, each over at most `window` of them. Section 5.

    queries (b, num_heads, num_tokens, head_dim) -> the same shape. A single token may see all keys that it is given.
    """
    num_tokens, num_keys = queries.shape[2], keys.shape[2]
    allowed, causal = None, num_tokens > 1
    if num_tokens > 1 and not num_tokens == num_keys <= window:  # PyTorch's own causal mask would not do
        rows = torch.arange(num_keys - num_tokens, num_keys, device=queries.device)[:, None]  # (num_tokens, 1)
        distance = rows - torch.arange(num_keys, device=queries.device)  # (num_tokens, num_keys)
        allowed, causal = (distance >= 0) & (distance < window), False
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, dropout_p=dropout, is_causal=causal)


class MultiHeadAttention(PlainAttention):
    """Causal attention with a cache of fixed size: (b, num_tokens, d_in) -> (b, num_tokens, d_out). Section 5.

    cache_k, cache_v: None, or (b, num_heads, window_size, head_dim), of which the first ptr_current_pos tokens are filled.
    max_seq_len: longest text (default context_length); window_size: how many tokens a token sees, itself included (default
    max_seq_len, and never more). ValueError for a d_out that does not divide, sizes below 1, other rows than the cache's.
    """

    def __init__(
        self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int, qkv_bias: bool = False,
        max_seq_len: int | None = None, window_size: int | None = None,
    ):  # fmt: skip
        super().__init__(d_in, d_out, 1, dropout, num_heads, qkv_bias)  # 1: no table for the mask, `attend` makes its own
        self.max_seq_len = context_length if max_seq_len is None else max_seq_len
        self.window_size = min(self.max_seq_len if window_size is None else window_size, self.max_seq_len)
        if self.window_size < 1:
            raise ValueError(f"need a window of at least 1 token, got max_seq_len {max_seq_len} and window_size {window_size}")
        self.register_buffer("cache_k", None, persistent=False)
        self.register_buffer("cache_v", None, persistent=False)
        self.ptr_current_pos = 0

    def reset_cache(self) -> None:
        self.cache_k, self.cache_v = None, None
        self.ptr_current_pos = 0

    def remember(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        b, used = keys.shape[0], self.ptr_current_pos
        if self.cache_k is None:
            self.cache_k, self.cache_v = (new.new_empty(b, self.num_heads, self.window_size, self.head_dim) for new in (keys, values))
        if self.cache_k.shape[0] != b:
            raise ValueError(f"{b} rows cannot continue a cache of {self.cache_k.shape[0]} rows: reset the cache first")
        self.ptr_current_pos = min(used + keys.shape[2], self.window_size)
        return store(self.cache_k, used, keys), store(self.cache_v, used, values)

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        b, num_tokens, _ = x.shape
        by_head = (b, num_tokens, self.num_heads, self.head_dim)
        queries = self.W_query(x).view(by_head).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        keys = self.W_key(x).view(by_head).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        values = self.W_value(x).view(by_head).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        if use_cache:
            keys, values = self.remember(keys, values)
        context_vec = attend(queries, keys, values, self.window_size, self.dropout.p if self.training else 0.0)
        return self.out_proj(context_vec.transpose(1, 2).reshape(b, num_tokens, self.d_out))  # (b, num_tokens, d_out)


class TransformerBlock(nn.Module):
    """Chapter 4's block with fused norms and GELU."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            dropout=cfg["drop_rate"],
            num_heads=cfg["n_heads"],
            qkv_bias=cfg["qkv_bias"],
            window_size=cfg.get("kv_window_size"),
        )
        self.ff = FeedForward(cfg)
        self.ff.layers[1] = nn.GELU(approximate="tanh")
        self.norm1 = FusedLayerNorm(cfg["emb_dim"])
        self.norm2 = FusedLayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), use_cache))  # (b, num_tokens, emb_dim)
        return x + self.drop_shortcut(self.ff(self.norm2(x)))  # (b, num_tokens, emb_dim)


class GPTModel(nn.Module):
    """Token ids (b, num_tokens) -> logits (b, num_tokens, vocab_size); `cfg` may have kv_window_size (default context_length).

    ptr_current_pos: how many tokens were read since the last reset, also beyond the window. ValueError as in
    gpt_with_kv_cache.py.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = FusedLayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        self.kv_window_size = self.trf_blocks[0].att.window_size
        self.ptr_current_pos = 0

    def reset_kv_cache(self) -> None:
        """Forget the text read so far; the next token is the first of a new one."""
        for block in self.trf_blocks:
            block.att.reset_cache()
        self.ptr_current_pos = 0

    def forward(self, in_idx: torch.Tensor, use_cache: bool = False, only_last: bool = False) -> torch.Tensor:
        """use_cache: in_idx continues the text read since the last reset. only_last: logits of the last token alone."""
        start = self.ptr_current_pos if use_cache else 0
        check_token_ids(in_idx, self.cfg["vocab_size"], self.cfg["context_length"])
        check_room(start, in_idx.shape[1], self.cfg["context_length"])
        positions = torch.arange(start, start + in_idx.shape[1], device=in_idx.device)  # (num_tokens)
        x = self.tok_emb(in_idx) + self.pos_emb(positions)  # (b, num_tokens, emb_dim)
        x = self.drop_emb(x)  # (b, num_tokens, emb_dim)
        for block in self.trf_blocks:
            x = block(x, use_cache)  # (b, num_tokens, emb_dim)
        if use_cache:
            self.ptr_current_pos = start + in_idx.shape[1]
        if only_last:
            x = x[:, -1:]
        return self.out_head(self.final_norm(x))


def transpose_storage(model: nn.Module) -> nn.Module:
    """Store the weights of all linear layers column by column, in which order one token reads them fastest. Section 5.

    Names, shapes, values, loading and the model's bytes stay as they are; returns the model.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.T.contiguous().T
    return model


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = cached_model_parser("Time an untrained GPT that generates with a preallocated KV cache.")
    parser.add_argument("--kv_window_size", type=int_at_least(1), help="tokens that each token sees (default: the whole text)")
    return run_cached_model(parser, GPTModel, argv, cfg_options=("kv_window_size",))


if __name__ == "__main__":
    sys.exit(main())
