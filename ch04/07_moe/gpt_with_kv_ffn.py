"""The GPT of folder 04 with a SwiGLU feed-forward network: the dense model that the mixture of experts is compared with.

Run it:  python gpt_with_kv_ffn.py --hidden_dim 3072
"""

import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from gpt_with_kv_mha import GPTModel as BaseModel
from previous_chapters import cached_model_parser, int_at_least, run_cached_model


class FeedForward(nn.Module):
    """SwiGLU: (b, num_tokens, emb_dim) -> the same shape, each token on its own. Needs cfg's emb_dim and hidden_dim.

    silu(fc1(x)) decides how much of fc2(x) passes; fc3 leads back. From "GLU Variants Improve Transformer" (Shazeer 2020).
    """

    def __init__(self, cfg: dict):
        super().__init__()
        self.fc1 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc2 = nn.Linear(cfg["emb_dim"], cfg["hidden_dim"], bias=False)
        self.fc3 = nn.Linear(cfg["hidden_dim"], cfg["emb_dim"], bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated = F.silu(self.fc1(x)) * self.fc2(x)  # (b, num_tokens, hidden_dim)
        return self.fc3(gated)  # (b, num_tokens, emb_dim)


class GPTModel(BaseModel):
    """The GPT of gpt_with_kv_mha.py with SwiGLU in every block; `cfg` also needs hidden_dim."""

    def make_feed_forward(self, cfg: dict) -> nn.Module:
        return FeedForward(cfg)


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = cached_model_parser("Time an untrained GPT with one SwiGLU feed-forward network in each block.")
    parser.add_argument("--hidden_dim", type=int_at_least(1), default=3072, help="width between fc1, fc2 and fc3")
    return run_cached_model(parser, GPTModel, argv, cfg_options=("hidden_dim",))


if __name__ == "__main__":
    sys.exit(main())
