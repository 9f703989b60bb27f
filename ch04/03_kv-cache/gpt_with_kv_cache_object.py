"""Chapter 4's GPT with the cache outside the model: a `KVCache` of kv_cache.py is handed in, and the program owns it.

So one model can read several texts in turn, a conversation can be cut back to the part that did not change, and rows of a
batch can be dropped or reordered. Larger models of the course work this way.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from kv_cache import KVCache, check_room, generate_text_simple_stream, new_tokens_that_fit
from previous_chapters import FeedForward, LayerNorm, check_token_ids
from previous_chapters import MultiHeadAttention as PlainAttention


class MultiHeadAttention(PlainAttention):
    """Chapter 3's attention in PyTorch's fused call; keys and values go to layer `layer_idx` of the KVCache, if there is one."""

    def forward(self, x: torch.Tensor, cache: KVCache | None = None, layer_idx: int = 0) -> torch.Tensor:
        b, num_tokens, _ = x.shape
        by_head = (b, num_tokens, self.num_heads, self.head_dim)
        queries = self.W_query(x).view(by_head).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        keys = self.W_key(x).view(by_head).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        values = self.W_value(x).view(by_head).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        if cache is not None:  # new
            keys, values = cache.append(layer_idx, keys, values)
        num_keys = keys.shape[2]
        allowed = ~self.mask[num_keys - num_tokens : num_keys, :num_keys]  # (num_tokens, num_keys)
        rate = self.dropout.p if self.training else 0.0
        context_vec = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, dropout_p=rate)
        context_vec = context_vec.transpose(1, 2).reshape(b, num_tokens, self.d_out)  # (b, num_tokens, d_out)
        return self.out_proj(context_vec)  # (b, num_tokens, d_out)


class TransformerBlock(nn.Module):
    """Chapter 4's block; it hands cache and layer number on to its attention."""

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

    def forward(self, x: torch.Tensor, cache: KVCache | None = None, layer_idx: int = 0) -> torch.Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), cache, layer_idx))  # (b, num_tokens, emb_dim)
        return x + self.drop_shortcut(self.ff(self.norm2(x)))  # (b, num_tokens, emb_dim)


class GPTModel(nn.Module):
    """Token ids (b, num_tokens) -> logits (b, num_tokens, vocab_size), reading and extending a KVCache.

    current_pos: tokens of the text after the last call with a cache. ValueError as in gpt_with_kv_cache.py.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        self.own_cache = KVCache(cfg["n_layers"], cfg["context_length"])  # for use_cache=True without a cache
        self.current_pos = 0

    def reset_kv_cache(self) -> None:
        """Empty the model's own cache; a cache that was handed in is the caller's to reset."""
        self.own_cache.reset()
        self.current_pos = 0

    def forward(
        self, in_idx: torch.Tensor, use_cache: bool = False, cache: KVCache | None = None, only_last: bool = False
    ) -> torch.Tensor:
        """cache: the text that in_idx continues; use_cache=True without one: the model's own. only_last: the last token's logits."""
        if cache is None and use_cache:
            cache = self.own_cache
        start = 0 if cache is None else len(cache)
        check_token_ids(in_idx, self.cfg["vocab_size"], self.cfg["context_length"])
        check_room(start, in_idx.shape[1], self.cfg["context_length"])
        positions = torch.arange(start, start + in_idx.shape[1], device=in_idx.device)  # (num_tokens)
        x = self.tok_emb(in_idx) + self.pos_emb(positions)  # (b, num_tokens, emb_dim)
        x = self.drop_emb(x)  # (b, num_tokens, emb_dim)
        for layer_idx, block in enumerate(self.trf_blocks):
            x = block(x, cache, layer_idx)  # (b, num_tokens, emb_dim)
        if cache is not None:
            self.current_pos = start + in_idx.shape[1]
        if only_last:
            x = x[:, -1:]
        return self.out_head(self.final_norm(x))


@torch.no_grad()
def generate_text_simple(
    model: nn.Module, idx: torch.Tensor, max_new_tokens: int, context_size: int | None = None, use_cache: bool = True
) -> torch.Tensor:
    """Greedy continuation: ids (b, num_tokens) -> (b, num_tokens + new tokens), the same with and without a cache."""
    if use_cache:
        return torch.cat([idx, *generate_text_simple_stream(model, idx, max_new_tokens, context_size=context_size)], dim=1)
    for _ in range(new_tokens_that_fit(model, idx, max_new_tokens, context_size)):
        logits = model(idx, only_last=True)  # (b, 1, vocab_size)
        idx = torch.cat([idx, logits[:, -1].argmax(dim=-1, keepdim=True).to(idx.dtype)], dim=1)
    return idx
