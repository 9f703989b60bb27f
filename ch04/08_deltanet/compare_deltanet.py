"""Does a state of fixed size cost anything? Train full attention, a 3:1 mix and gated DeltaNet on the story, three seeds each.

DeltaNet fades, so the newest tokens weigh most from the start. To tell this apart from the rest, one more variant is full
attention with weights that fade with the distance.

Run it:  python compare_deltanet.py --draw_only        reads the committed story-comparison.json
"""

import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from gated_deltanet import GatedMultiHeadAttention, GPTModel
from gpt_with_kv_mha import GPTModel as BaseModel
from previous_chapters import run_comparison


class FadingAttention(GatedMultiHeadAttention):
    """Gated attention that fades with the distance: (b, num_tokens, d_in) -> (b, num_tokens, d_out), whole texts only.

    pace: what a score loses a token, in each head; GatedDeltaNet starts with the alphas exp(-pace).
    """

    def __init__(self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int):
        super().__init__(d_in, d_out, context_length, dropout, num_heads)
        pace = torch.linspace(-5.0, 0.0, num_heads).exp() * F.softplus(torch.ones(num_heads))
        self.register_buffer("pace", pace, persistent=False)

    def forward(self, x: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        b, num_tokens, _ = x.shape
        queries = self.W_query(x).view(b, num_tokens, self.num_heads, self.head_dim).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        keys = self.W_key(x).view(b, num_tokens, self.num_heads, self.head_dim).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        values = self.W_value(x).view(b, num_tokens, self.num_heads, self.head_dim).transpose(1, 2)  # (b, num_heads, num_tokens, head_dim)
        positions = torch.arange(num_tokens, device=x.device)  # (num_tokens)
        distance = positions[:, None] - positions  # (num_tokens, num_tokens)
        penalty = (-self.pace[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))  # (num_heads, num_tokens, num_tokens)
        context_vec = F.scaled_dot_product_attention(queries, keys, values, attn_mask=penalty)  # (b, num_heads, num_tokens, head_dim)
        context_vec = context_vec.transpose(1, 2).reshape(b, num_tokens, self.d_out)  # (b, num_tokens, d_out)
        return self.out_proj(context_vec * torch.sigmoid(self.W_gate(x)))  # (b, num_tokens, d_out)


class FadingModel(BaseModel):
    """The GPT of gpt_with_kv_mha.py with attention that fades in every layer."""

    def make_attention(self, cfg: dict, layer: int) -> nn.Module:
        return FadingAttention(cfg["emb_dim"], cfg["emb_dim"], cfg["context_length"], cfg["drop_rate"], cfg["n_heads"])


BUILDERS = {
    "full attention": lambda cfg: GPTModel({**cfg, "deltanet_stride": 0}),
    "full attention that fades": FadingModel,
    "3 DeltaNet, 1 full": lambda cfg: GPTModel({**cfg, "deltanet_stride": 3}),
    "DeltaNet only": lambda cfg: GPTModel({**cfg, "deltanet_stride": -1}),
}


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    title = "Story, 4 layers: a state in place of keys and values"
    return run_comparison("Train full attention, a mix and gated DeltaNet on the story, side by side.", BUILDERS, title, argv)


if __name__ == "__main__":
    sys.exit(main())
