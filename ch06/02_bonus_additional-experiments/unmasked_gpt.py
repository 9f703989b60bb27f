"""Chapter 4's GPT with one more switch: without the causal mask every token sees all others, as in BERT.

The parameters have the same names and are drawn in the same order as in chapter 4, so a seed gives the same weights and
pretrained weights fit. Attention is PyTorch's fused call (chapter 3, section 3.7.1), which gives the same numbers in less time.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from previous_chapters import FeedForward, LayerNorm, check_token_ids

PAD_TOKEN_ID = 50256  # messages are encoded so that this id never stands for text


def text_lengths(token_ids: torch.Tensor, pad_token_id: int = PAD_TOKEN_ID) -> torch.Tensor:
    """Return how many tokens of each row (b, num_tokens) come before the padding at its end, as (b); 1 for nothing but padding."""
    numbers = torch.arange(1, token_ids.shape[1] + 1, device=token_ids.device)  # (num_tokens)
    is_text = token_ids != pad_token_id  # (b, num_tokens)
    return (numbers * is_text).max(dim=1).values.clamp(min=1)  # (b)


def is_text_token(token_ids: torch.Tensor) -> torch.Tensor:
    """Return True for the tokens of each text and False for the padding behind it: (b, num_tokens) -> the same."""
    positions = torch.arange(token_ids.shape[1], device=token_ids.device)  # (num_tokens)
    return positions < text_lengths(token_ids)[:, None]  # (b, num_tokens)


class MultiHeadAttention(nn.Module):
    """Multi-head attention, causal unless disable_causal_mask: (b, num_tokens, d_in) -> (b, num_tokens, d_out).

    Without the mask `is_text` (b, num_tokens) hides the padding; with it no text token can see the padding behind it anyway.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
        disable_causal_mask: bool = False,  # new
    ):
        super().__init__()
        if d_out % num_heads != 0:
            raise ValueError(f"d_out {d_out} is not divisible by num_heads {num_heads}")
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.causal = not disable_causal_mask  # changed: the fused call needs no stored mask
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, is_text: torch.Tensor | None = None) -> torch.Tensor:
        b, num_tokens, _ = x.shape
        by_head = (b, num_tokens, self.num_heads, self.head_dim)
        queries = self.W_query(x).view(by_head).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        keys = self.W_key(x).view(by_head).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        values = self.W_value(x).view(by_head).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)

        allowed = None if self.causal or is_text is None else is_text[:, None, None, :]  # new: every token may see every text token
        dropout = self.dropout.p if self.training else 0.0
        context_vec = F.scaled_dot_product_attention(queries, keys, values, allowed, dropout, is_causal=self.causal)
        context_vec = context_vec.transpose(1, 2).reshape(b, num_tokens, self.d_out)  # (b, num_tokens, d_out)
        return self.out_proj(context_vec)  # (b, num_tokens, d_out)


class TransformerBlock(nn.Module):
    """Chapter 4's block; `is_text` goes on to the attention. Shape kept."""

    def __init__(self, cfg: dict, disable_causal_mask: bool = False):
        super().__init__()
        width = cfg["emb_dim"]
        self.att = MultiHeadAttention(
            width, width, cfg["context_length"], cfg["drop_rate"], cfg["n_heads"], cfg["qkv_bias"], disable_causal_mask
        )
        self.ff = FeedForward(cfg)
        self.ff.layers[1] = nn.GELU(approximate="tanh")  # the same function in one piece
        self.norm1 = LayerNorm(width)
        self.norm2 = LayerNorm(width)
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: torch.Tensor, is_text: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), is_text))  # (b, num_tokens, emb_dim)
        x = x + self.drop_shortcut(self.ff(self.norm2(x)))  # (b, num_tokens, emb_dim)
        return x


class GPTModel(nn.Module):
    """Chapter 4's GPT, causal unless disable_causal_mask: token ids (b, num_tokens) -> logits (b, num_tokens, vocab_size).

    Raises ValueError for ids that the model cannot take.
    """

    def __init__(self, cfg: dict, disable_causal_mask: bool = False):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*[TransformerBlock(cfg, disable_causal_mask) for _ in range(cfg["n_layers"])])
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def embed(self, in_idx: torch.Tensor) -> torch.Tensor:
        check_token_ids(in_idx, self.tok_emb.num_embeddings, self.pos_emb.num_embeddings)
        positions = torch.arange(in_idx.shape[1], device=in_idx.device)  # (num_tokens)
        x = self.tok_emb(in_idx) + self.pos_emb(positions)  # (b, num_tokens, emb_dim)
        return self.drop_emb(x)  # (b, num_tokens, emb_dim)

    def forward(self, in_idx: torch.Tensor) -> torch.Tensor:
        x = self.embed(in_idx)  # (b, num_tokens, emb_dim)
        is_text = is_text_token(in_idx)  # (b, num_tokens)
        for block in self.trf_blocks:
            x = block(x, is_text)  # (b, num_tokens, emb_dim)
        return self.out_head(self.final_norm(x))  # (b, num_tokens, vocab_size)


class RememberingGPT(nn.Module):
    """The same function as a GPTModel whose first blocks do not learn, in less time: what enters the others is computed once a text.

    With reads_padding=False what stands behind a text is not kept: zeros take its place, and nobody looks at them.
    """

    def __init__(self, model: GPTModel, num_frozen: int, reads_padding: bool):
        super().__init__()
        self.model, self.num_frozen, self.reads_padding = model, num_frozen, reads_padding
        self.known = {}  # a row of ids -> what leaves the frozen blocks, (num_tokens, emb_dim)

    @torch.no_grad()
    def remember(self, keys: list[tuple], in_idx: torch.Tensor) -> None:
        x = self.model.embed(in_idx)  # (b, num_tokens, emb_dim)
        is_text = is_text_token(in_idx)  # (b, num_tokens)
        for block in self.model.trf_blocks[: self.num_frozen]:
            x = block(x, is_text)  # (b, num_tokens, emb_dim)
        for key, row in zip(keys, x):
            self.known[key] = row[: len(key)].clone()

    def forward(self, in_idx: torch.Tensor) -> torch.Tensor:
        is_text = is_text_token(in_idx)  # (b, num_tokens)
        lengths = [in_idx.shape[1]] * len(in_idx) if self.reads_padding else text_lengths(in_idx).tolist()
        keys = [tuple(row[:length].tolist()) for row, length in zip(in_idx, lengths)]
        if not all(key in self.known for key in keys):
            self.remember(keys, in_idx)
        x = nn.utils.rnn.pad_sequence([self.known[key] for key in keys], batch_first=True)
        x = nn.functional.pad(x, (0, 0, 0, in_idx.shape[1] - x.shape[1]))  # (b, num_tokens, emb_dim)
        for block in self.model.trf_blocks[self.num_frozen :]:
            x = block(x, is_text)  # (b, num_tokens, emb_dim)
        return self.model.out_head(self.model.final_norm(x))  # (b, num_tokens, num_classes)
