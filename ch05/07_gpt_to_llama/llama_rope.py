"""Rotary positions (RoPE): queries and keys are turned by angles that grow with the position; llama.py offers these under its name."""

import torch
from packed_linears import unpack
from torch import nn


def compute_rope_params(head_dim, theta_base=10_000, context_length=4096, freq_config=None, dtype=torch.float32):
    """Cosines and sines of every position: two tensors (context_length, head_dim), their halves equal (section 3.1).

    freq_config: None, or Llama 3.1's smoothing (keys factor, low_freq_factor, high_freq_factor, original_context_length),
    which slows rotations that would not complete a turn in the original context. ValueError for an odd head_dim.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions pair the numbers of a head, so head_dim must be even, not {head_dim}")
    inv_freq = 1.0 / theta_base ** (torch.arange(0, head_dim, 2, dtype=dtype) / head_dim)  # (head_dim / 2)
    if freq_config is not None:
        original, factor = freq_config["original_context_length"], freq_config["factor"]
        low, high = freq_config["low_freq_factor"], freq_config["high_freq_factor"]
        turns = original * inv_freq / (2 * torch.pi)  # how often each pair turns within the original context
        blend = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slowed by factor, 1: as it was
        inv_freq = (1 - blend) * inv_freq / factor + blend * inv_freq
    angles = torch.arange(context_length, dtype=dtype)[:, None] * inv_freq  # (context_length, head_dim / 2)
    angles = torch.cat([angles, angles], dim=1)  # (context_length, head_dim)
    return torch.cos(angles), torch.sin(angles)


def rope_rows(cos, sin, offset, num_tokens):
    """The rows of both tables for tokens that begin at `offset`: (num_tokens, head_dim), or for an offset (b,) one set a row.

    Then they are (b, 1, num_tokens, head_dim); negative positions (padding at the left) are taken as 0 (section 3.1).
    """
    if isinstance(offset, int):
        return cos[offset : offset + num_tokens], sin[offset : offset + num_tokens]
    positions = (offset[:, None] + torch.arange(num_tokens, device=offset.device)).clamp(min=0)  # (b, num_tokens)
    return cos[positions][:, None], sin[positions][:, None]


def apply_rope(x, cos, sin, offset=0):
    """Rotate x (b, heads, num_tokens, head_dim) by the angles of its positions; returns the same shape and dtype.

    Number i of a head is paired with number i + head_dim / 2. offset: position of the first token, an int or a tensor (b,);
    None: cos and sin are the tokens' rows already (section 3.1).
    """
    if offset is not None:
        cos, sin = rope_rows(cos, sin, offset, x.shape[2])
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)  # (b, heads, num_tokens, head_dim)
    return (x * cos + turned * sin).to(x.dtype)


class RopeTables(nn.Module):
    """A model with the tables of its rotations, which stay in float32 whatever happens to the weights (section 3.8).

    A subclass sets cfg and tok_emb, then calls build_rope_tables.
    """

    def build_rope_tables(self):
        """(Re)compute cos and sin (context_length, head_dim) in float32, also for a model on device meta; not in the state dict."""
        cfg, device = self.cfg, self.tok_emb.weight.device
        with torch.device("cpu"):
            cos, sin = compute_rope_params(cfg["emb_dim"] // cfg["n_heads"], cfg["rope_base"], cfg["context_length"], cfg.get("rope_freq"))
        if device.type != "meta":
            cos, sin = cos.to(device), sin.to(device)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _apply(self, fn, recurse=True):
        """What .to(), .bfloat16() and to_empty() call: the weights are converted, the tables computed again in float32."""
        super()._apply(fn, recurse)
        unpack(self)
        self.build_rope_tables()
        return self
